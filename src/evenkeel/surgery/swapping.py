"""swap: a Change applied to a live model, and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..catalogue import near_miss
from ..errors import UsageError
from ..schema import Change, in_one_line
from .axes import AXES, Chosen, Plan
from .edits import Edit, ModuleEdit
from .places import Survey, as_found, run
from .rewriting import Forward, Replaced
from .samples import made_up

Model = TypeVar("Model", bound=nn.Module)


class Swapped(Generic[Model]):
    """A change that is in force in a model until `restore()`, or to the end of a `with` block.

    model: the same object that was given. sites: the ids of what was changed, as they were before.
    """

    def __init__(self, model: Model, change: Change, plan: Plan) -> None:
        self.model, self.change = model, change
        self.sites = plan.sites
        self._before = plan.before
        self._edits: tuple[Edit, ...] = ()
        self._later: list[Swapped[Any]] = []
        for earlier in _owners(model):
            earlier._later.append(self)
        for edit in plan.edits:
            edit.install(self)
            self._edits = (*self._edits, edit)

    @property
    def active(self) -> bool:
        """Whether the change is in force."""
        return bool(self._edits)

    def restore(self) -> None:
        """Take the change back: the model has the very modules and forwards it had. Again, it does nothing.

        Raises UsageError, and changes nothing, while a later swap of the model is in force: it was planned on top of
        this one, so that one is to be restored first.
        """
        later = [item for item in self._later if item.active]
        if self.active and later:
            raise UsageError(f"{_named(self.change)} lies under {_named(later[-1].change)}; restore() that one first")
        blocked = [reason for edit in self._edits if (reason := edit.blocked())]
        if blocked:
            raise UsageError(f"{_named(self.change)} cannot be taken back: {blocked[0]}; undo that first")
        for edit in reversed(self._edits):
            edit.remove()
        self._edits = ()

    def __enter__(self) -> Swapped[Model]:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        first = ", ".join(self.sites[:2]) + (", ..." if len(self.sites) > 2 else "")
        state = f"was {self._before}" if self.active else "restored"
        places = "1 site" if len(self.sites) == 1 else f"{len(self.sites)} sites"
        return f"<swapped {self.change.axis} = {self.change.value!r} ({state}) at {places}: {first}>"


def swap(model: Model, change: Change, *, sites: Iterable[str] | None = None, batch: Any = None) -> Swapped[Model]:
    """Apply a change to a live model, at once and reversibly: in place, without a copy, its weights untouched.

    change: an axis of `evenkeel.surgery.AXES` and its value. sites: only these: ids as a finding has them, or module
    paths, which stand for all sites in them. batch: an input to trace once, in eval mode, as `inspect` takes it; by
    default a tiny made-up one, for Hugging Face models and our own. The result is a context manager that restores on
    exit. Changed functions compute in the dtype that the model's own would. Weights, names and optimizers stay: no
    change adds a parameter. What cannot be done is refused before anything is changed.
    Raises UsageError for an unknown axis, value or site, for a place that cannot be changed, and for none that is left.
    """
    if not isinstance(change, Change):
        raise UsageError(f'{change!r} is no Change; give one, as Change("feedforward.activation", "gelu")')
    axis = AXES[change.axis]
    value = axis.check(change.value)
    _refuse_compiled(model)
    survey = _surveyed(model) if batch is None else Survey(model, batch)
    plan = axis.plan(survey, value, _chosen(survey, sites))
    swapped = Swapped(model, change, plan)
    try:
        _refuse_bypassed(model, survey.batch, plan)
    except BaseException:
        swapped.restore()
        raise
    return swapped


def _surveyed(model: nn.Module) -> Survey:
    batch = made_up(model)
    try:
        return Survey(model, batch)
    except Exception as error:  # a model may raise anything when it is given what it does not take
        given = ", ".join(batch)
        raise UsageError(
            f"{type(model).__name__} did not take the made-up input of {given} ({in_one_line(error)}); give batch=, an "
            "input that it can be called with"
        ) from error


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or type(module).__name__} is TorchScript, whose calls are fixed; give it as Python"
            )
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise UsageError(
                f"{name or type(module).__name__} is compiled, and may keep running what was compiled before; swap the "
                "model first, then compile it"
            )


def _chosen(survey: Survey, sites: Iterable[str] | None) -> Chosen:
    if sites is None:
        return Chosen(None)
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    if not names:
        raise UsageError("sites is empty; name some sites or module paths, or leave it out for all of them")
    for name in names:
        if not any(Chosen((name,)).takes(site) for site in survey.sites):
            known = dict.fromkeys(item for site in survey.sites for item in (site.id, site.path))
            hint = near_miss(name, known, otherwise="inspect(model, ...).sites lists them")
            raise UsageError(f"there is no site {name!r}; {hint}")
    return Chosen(names)


def _refuse_bypassed(model: nn.Module, batch: Any, plan: Plan) -> None:
    """Raises UsageError where an activation that ran when traced is not called when it is not: torch has fast paths."""
    edits = [edit for edit in plan.edits if isinstance(edit, ModuleEdit)]
    if not edits:
        return
    called: set[int] = set()
    functions = [edit.made.function for edit in edits]
    for edit in edits:
        edit.made.function = _noting(edit.made.function, called, id(edit))
    try:
        with as_found(model):
            run(model, batch)
    finally:
        for edit, function in zip(edits, functions, strict=True):
            edit.made.function = function
    for edit in edits:
        if id(edit) not in called:
            raise UsageError(
                f"{edit.path} cannot be changed: a fused path computes the activation without calling the module; turn "
                "it off with torch.backends.mha.set_fastpath_enabled(False), then swap"
            )


def _noting(function: Callable[[Tensor], Tensor], called: set[int], key: int) -> Callable[[Tensor], Tensor]:
    def noting(x: Tensor) -> Tensor:
        called.add(key)
        return function(x)

    return noting


def _owners(model: nn.Module) -> list[Swapped[Any]]:
    """The swaps that are in force in a model or a part of it."""
    found: dict[int, Swapped[Any]] = {}
    for module in model.modules():
        item = module if isinstance(module, Replaced) else module.__dict__.get("forward")
        while isinstance(item, Replaced | Forward):
            if item.owner is not None:
                found[id(item.owner)] = item.owner
            item = item.inner if isinstance(item, Forward) else None
    return list(found.values())


def _named(change: Change) -> str:
    return f"swap of {change.axis} to {change.value!r}"
