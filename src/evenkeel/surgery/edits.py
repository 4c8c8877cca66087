"""What a swap does to a model, one edit at a time: put in, and taken out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from ..errors import UsageError
from .places import Survey
from .rewriting import Action, Calls, Forward, Replaced, Rules
from .tape import Entry, Frame

# Functions that mean one thing, so that every call of theirs is meant where every traced one is; of a product or a
# sum only those calls are that were traced.
_WHOLE = frozenset(
    "scaled_dot_product_attention attention multi_head_attention_forward flex_attention gated glu cross_entropy "
    "linear_cross_entropy relu relu6 leaky_relu elu selu celu gelu silu mish softplus hardswish prelu".split()
)


class Edit(Protocol):
    """One thing that is put into a model."""

    def install(self, owner: Any) -> None:
        """Put it in, for a swap."""
        ...

    def blocked(self) -> str:
        """Why it cannot be taken out, in words; empty where it can."""
        ...

    def remove(self) -> None:
        """Take it out."""
        ...


@dataclass(eq=False)
class ForwardEdit:
    """Another `forward` in a module."""

    made: Forward

    def install(self, owner: Any) -> None:
        attributes = self.made.module.__dict__
        self.made.inner, self.made.owner = attributes.get("forward"), owner
        attributes["forward"] = self.made

    def blocked(self) -> str:
        if self.made.module.__dict__.get("forward") is self.made:
            return ""
        return (
            f"the forward of {self.made.path or type(self.made.module).__name__} was replaced since by something else"
        )

    def remove(self) -> None:
        if self.made.inner is None:
            del self.made.module.__dict__["forward"]
        else:
            self.made.module.__dict__["forward"] = self.made.inner


@dataclass(eq=False)
class ModuleEdit:
    """Another module in the place of one."""

    module: nn.Module
    path: str
    holders: list[tuple[nn.Module, str]]
    made: Replaced

    def install(self, owner: Any) -> None:
        self.made.owner = owner
        for parent, name in self.holders:
            parent._modules[name] = self.made

    def blocked(self) -> str:
        if all(parent._modules.get(name) is self.made for parent, name in self.holders):
            return ""
        return f"{self.path} was replaced since by something else"

    def remove(self) -> None:
        self.module.train(self.made.training)
        for parent, name in self.holders:
            parent._modules[name] = self.module


def rewritings(survey: Survey, calls: Iterable[tuple[Entry, Action]]) -> list[ForwardEdit]:
    """The forwards to rewrite so that these calls of the traced run are changed in every run."""
    by_module: dict[nn.Module, dict[Entry, Action]] = {}
    for entry, action in calls:
        if not entry.frames:
            raise UsageError(f"a call of {entry.name} outside of every module; swap changes what modules do")
        by_module.setdefault(entry.frames[-1].module, {})[entry] = action
    edits = []
    for module, actions in by_module.items():
        path, rules = survey.path_of(module), rules_of(survey, module, actions)
        edits.append(ForwardEdit(Forward(module=module, path=path, rules=rules)))
    return edits


def rules_of(survey: Survey, module: nn.Module, actions: dict[Entry, Action]) -> Rules:
    """What to do at which call in a run of a module; raises UsageError where its runs differ."""
    for entry in actions:
        if entry.own_backward:
            raise UsageError(
                f"{survey.path_of(module) or 'the model'} calls {entry.name} in an autograd.Function, whose own "
                "backward pass would not know of the change"
            )
    found = [_rules_in(survey, frame, actions) for frame in survey.tape.calls_of(module)]
    if any(rules != found[0] for rules in found):
        raise UsageError(
            f"{survey.path_of(module)} runs {len(found)} times in one pass and not all of its calls are to be changed; "
            "leave sites= out"
        )
    return found[0]


def _rules_in(survey: Survey, frame: Frame, actions: dict[Entry, Action]) -> Rules:
    numbered: dict[Any, dict[int, Action]] = {}
    counts: Counter[Any] = Counter()
    for entry in survey.tape.within(frame):
        if entry in actions:
            numbered.setdefault(entry.func, {})[counts[entry.func]] = actions[entry]
        counts[entry.func] += 1
    return {func: _calls(func, found, counts[func]) for func, found in numbered.items()}


def _calls(func: Any, actions: dict[int, Action], total: int) -> Calls:
    first = next(iter(actions.values()))
    every = len(actions) == total and all(action == first for action in actions.values())
    if every and getattr(func, "__name__", type(func).__name__) in _WHOLE:
        return Calls({0: first})
    return Calls(actions, total)
