"""What a study compares, as data: its arms, how they are trained and tuned, and the contrasts stated beforehand."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..catalogue import near_miss
from ..errors import ConfigError

MAY_CHANGE = ("seeds", "margin", "contrasts", "target", "data")
"""Fields of a study that may change while it runs: pairs are added, data may move (its digest is checked), the others
only judge."""

Matched = Literal["parameters", "flops", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One variant. choices: dotted axes of a TransformerConfig and their values, on top of the study's model.

    With a user's own objective an arm is its name, which says its choices too.
    """

    name: str
    choices: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "choices": dict(self.choices)}


@dataclass(frozen=True)
class Contrast:
    """A question stated before any trial runs: is `arm` better than `against`?"""

    arm: str
    against: str

    def to_dict(self) -> dict[str, str]:
        return {"arm": self.arm, "against": self.against}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how.

    arms: at least two, each with a name of its own. baseline: the name of one; matched arms are made as large as it.
    contrasts: pairs of names; by default every other arm against the baseline. model: fields of the TransformerConfig
    that the arms change, nested. match: what arms have equal. data: a file or directory of text, "" for the sources of
    Python's standard library. rows: sequences in a batch, each as long as the model's context. steps: of each trial;
    None: as many as the budget allows. budget: seconds for the whole study, on the machine that begins it. seeds:
    pairs. tuning_trials: learning rates tried for each arm, spread evenly in their logarithm over learning_rates, both
    ends among them; the range grows by a step on the side where an arm's best lies. margin: arms whose losses differ by
    less count as equal, in nats per token. target: the held-out loss to which an arm's steps are counted; None: the
    baseline's own at its end. objective: "" for training a Transformer on the data, else what names the user's own.
    Raises ConfigError for fields that contradict each other.
    """

    arms: tuple[Arm, ...]
    baseline: str
    contrasts: tuple[Contrast, ...] = ()
    model: Mapping[str, Any]
    match: Matched = "parameters"
    data: str = ""
    rows: int = 16
    steps: int | None = None
    budget: float = 600.0
    seeds: int = 5
    tuning_trials: int = 5
    learning_rates: tuple[float, float] = (1e-3, 1.6e-2)
    margin: float = 0.01
    target: float | None = None
    objective: str = ""

    def __post_init__(self) -> None:
        for name in ("budget", "margin"):  # 600 and 600.0 are one study
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "learning_rates", tuple(map(float, self.learning_rates)))
        names = [arm.name for arm in self.arms]
        if len(names) < 2:
            raise ConfigError(f"a study compares at least two arms and this has {len(names)}; give an axis more values")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{names.count(name)} arms are called {name!r}; give each a name of its own")
        object.__setattr__(self, "contrasts", self.contrasts or self.default_contrasts)
        for name in (self.baseline, *(part for item in self.contrasts for part in (item.arm, item.against))):
            if name not in names:
                raise ConfigError(f"no arm is called {name!r}; {near_miss(name, names)}")
        for item in self.contrasts:
            if item.arm == item.against:
                raise ConfigError(f"a contrast sets {item.arm!r} against itself; name two arms")
            if self.contrasts.count(item) > 1:
                raise ConfigError(f"{item.arm!r} against {item.against!r} is asked twice; ask it once")
        if self.match not in get_args(Matched):
            raise ConfigError(f"match is {self.match!r}; {near_miss(self.match, get_args(Matched))}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, least in (("rows", 1), ("seeds", 2), ("tuning_trials", 3), ("steps", 10)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value} and must be at least {least}")
        low, high = self.learning_rates
        if not (0 < low < high and math.isfinite(high)):
            raise ConfigError(
                f"learning_rates are {low:g} and {high:g}; give two numbers above 0, the smaller one first, for "
                "instance 1e-3 and 1.6e-2"
            )
        for name in ("budget", "margin", "target"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value} and must be above 0 and finite")

    @property
    def names(self) -> tuple[str, ...]:
        """The arms' names, in their order."""
        return tuple(arm.name for arm in self.arms)

    @property
    def default_contrasts(self) -> tuple[Contrast, ...]:
        """Every other arm against the baseline."""
        return tuple(Contrast(name, self.baseline) for name in self.names if name != self.baseline)

    @property
    def fixed(self) -> dict[str, Any]:
        """The fields that decide what a trial does, beside the data's digest."""
        changing = (*MAY_CHANGE, *(() if self.steps is None else ("budget",)))
        return {name: value for name, value in self.to_dict().items() if name not in changing}

    @property
    def identity(self) -> str:
        """A digest of all that decides what a trial does, beside the data."""
        return hashlib.sha256(json.dumps(self.fixed, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {
            "arms": [arm.to_dict() for arm in self.arms],
            "baseline": self.baseline,
            "contrasts": [item.to_dict() for item in self.contrasts],
            "model": dict(self.model),
            "match": self.match,
            "data": self.data,
            "rows": self.rows,
            "steps": self.steps,
            "budget": self.budget,
            "seeds": self.seeds,
            "tuning_trials": self.tuning_trials,
            "learning_rates": list(self.learning_rates),
            "margin": self.margin,
            "target": self.target,
            "objective": self.objective,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Study:
        """Read what `to_dict` wrote."""
        plain = dict(data)
        plain["arms"] = tuple(Arm(name=arm["name"], choices=arm["choices"]) for arm in data["arms"])
        plain["contrasts"] = tuple(Contrast(item["arm"], item["against"]) for item in data["contrasts"])
        low, high = data["learning_rates"]
        plain["learning_rates"] = (float(low), float(high))
        return cls(**plain)
