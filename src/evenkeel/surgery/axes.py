"""The axes that swap knows: which values each takes, and what it does to a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from ..catalogue import Catalogue, near_miss
from ..errors import UsageError
from ..functional import ACTIVATIONS, scale_factor
from ..nn import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    TransformerConfig,
)
from ..schema import Site
from .activating import Activating, activatings, in_feedforward, is_below
from .attending import Attending, attendings, is_normed
from .edits import Edit, ModuleEdit, rewritings
from .gating import fused
from .heads import losses
from .places import Survey
from .residual import branches, edits_for, frames_of
from .rewriting import Action, Replaced
from .tape import Entry, Frame

Calls = list[tuple[Entry, Action]]

_SAME = 1e-6  # scales that agree to float32's last bits are one scale


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which sites a swap may touch: those that names (ids or module paths) stand for, or all where it is None."""

    names: tuple[str, ...] | None

    def takes(self, site: Site) -> bool:
        """Whether a site is one of them."""
        return self.names is None or any(site.id == name or is_below(site.path, name) for name in self.names)

    def takes_part_of(self, site: Site) -> bool:
        """Whether it is one of them, or lies in a module that is the place of one (as a block is)."""
        paths = [name.partition(":")[0] for name in self.names or ()]
        return self.takes(site) or any(is_below(site.path, path) for path in paths)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a swap is going to do: its edits, the ids of the sites that they change, and what was there before."""

    edits: tuple[Edit, ...]
    sites: tuple[str, ...]
    before: str


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a Change. check: the value to apply, or UsageError. plan: the edits for a surveyed model."""

    name: str
    check: Callable[[Any], Any]
    plan: Callable[[Survey, Any, Chosen], Plan]


AXES: Catalogue[Axis] = Catalogue("axis of a change")


# --- attention -------------------------------------------------------------------------------------------------------


def _check_scale(value: Any) -> Any:
    if isinstance(value, str):
        _among("attention.scale", value, ("sqrt", "dim", "none"), "or a number above 0")
        return value
    return _positive("attention.scale", value, "give 'sqrt', 'dim', 'none', or a finite number above 0")


def _plan_scale(survey: Survey, value: Any, chosen: Chosen) -> Plan:
    def calls(form: Attending) -> Calls:
        factor = scale_factor(value, form.head_dim) / form.scale
        return [] if abs(factor - 1) <= _SAME else form.scaled(factor)

    return _attention_plan(survey, chosen, calls, lambda form: f"{form.scale:.4g}", f"a scale of {value!r}")


def _plan_temperature(survey: Survey, value: float, chosen: Chosen) -> Plan:
    def calls(form: Attending) -> Calls:
        return [] if value == 1 else form.scaled(1 / value)

    return _attention_plan(survey, chosen, calls, lambda _: "1", "a temperature of 1")


def _check_softcap(value: Any) -> float | None:
    if value is None:
        return None
    return _positive("attention.softcap", value, "give a finite number above 0, or None for no softcap")


def _plan_softcap(survey: Survey, value: float | None, chosen: Chosen) -> Plan:
    def calls(form: Attending) -> Calls:
        same = form.softcap == value or (
            value is not None and form.softcap is not None and abs(form.softcap / value - 1) <= _SAME
        )
        return [] if same else form.capped(value)

    return _attention_plan(survey, chosen, calls, lambda form: _number(form.softcap), f"a softcap of {value}")


def _check_norm(value: Any) -> bool:
    if value is True:
        return True
    raise UsageError(
        f"attention.qk_norm is {value!r}; swap can put a norm in (True). One that the model was built with holds "
        "trained weights and stays; one that a swap put in goes with its restore()"
    )


def _plan_norm(survey: Survey, _: bool, chosen: Chosen) -> Plan:
    def calls(form: Attending) -> Calls:
        return [] if is_normed(survey.tape, form) else form.normed()

    return _attention_plan(survey, chosen, calls, lambda _: "without", "a norm of queries and keys")


def _attention_plan(
    survey: Survey,
    chosen: Chosen,
    calls_of: Callable[[Attending], Calls],
    told: Callable[[Attending], str],
    wanted: str,
) -> Plan:
    found = [item for item in attendings(survey) if chosen.takes(item[0])]
    if not found:
        raise UsageError(_nothing(survey, "attention", chosen))
    calls: Calls = []
    sites: list[str] = []
    before: list[str] = []
    for site, form in ((site, form) for site, _, form in found):
        if isinstance(form, str):
            raise UsageError(f"{site.id} cannot be changed: {form}")
        own = _naming(site, lambda form=form: calls_of(form))
        if own:
            calls, sites, before = [*calls, *own], [*sites, site.id], [*before, told(form)]
    if not calls:
        raise UsageError(f"nothing to change: every attention that was asked for has {wanted} already")
    return Plan(tuple(rewritings(survey, calls)), _once(sites), ", ".join(_once(before)))


# --- feed-forward ----------------------------------------------------------------------------------------------------


def _check_activation(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"feedforward.activation is {value!r}; give a name: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value].name


def _plan_activation(survey: Survey, value: str, chosen: Chosen) -> Plan:
    found = list(activatings(survey))
    found = (
        in_feedforward(survey, found) if chosen.names is None else [item for item in found if chosen.takes(item.site)]
    )
    if not found:
        raise UsageError(_nothing(survey, "activation", chosen))
    different = [item for item in found if item.op != value]
    if not different:
        raise UsageError(f"nothing to change: every activation that was asked for is {value} already")
    calls: Calls = []
    edits: list[Edit] = []
    for item in different:
        if item.module is None:
            calls += _naming(item.site, lambda item=item: item.calls(survey, value))
        elif not any(isinstance(edit, ModuleEdit) and edit.module is item.module for edit in edits):
            edits.append(_replacement(survey, item, value))
    sites = _once(item.site.id for item in different)
    before = ", ".join(_once(item.op for item in different))
    return Plan((*edits, *rewritings(survey, calls)), sites, before)


def _replacement(survey: Survey, item: Activating, value: str) -> ModuleEdit:
    assert item.module is not None
    holders = survey.holders(item.module)
    if not holders:
        raise UsageError(f"{item.site.id} is the model itself; apply another function instead")
    made = Replaced.of(item.module, ACTIVATIONS[value].function, f"{value}, was {item.op}")
    return ModuleEdit(item.module, item.site.path, holders, made)


def _check_kernel(value: Any) -> str:
    _among("feedforward.kernel", value, ("fused",), "which restore() takes back")
    return value


def _plan_kernel(survey: Survey, _: str, chosen: Chosen) -> Plan:
    gates = [item for item in survey.events("gate") if chosen.takes(item[0])]
    if not gates:
        raise UsageError(_nothing(survey, "gate", chosen))
    for site in survey.unmeasured("gate"):
        if chosen.takes(site):
            raise UsageError(f"{site.id} cannot be changed: {site.reason}")
    open_gates: Any = [item for item in gates if item[2].name not in ("gated", "clamped_swiglu")]
    if not open_gates:
        raise UsageError("nothing to change: every gate that was asked for is one kernel already")
    edits = fused(survey, open_gates, list(activatings(survey)))
    return Plan(tuple(edits), _once(site.id for site, _, _ in open_gates), "an activation and a product")


# --- residual branches -----------------------------------------------------------------------------------------------


def _check_residual(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise UsageError(f"{name} is {value!r}; give True, which adds a block's input to the branch, or False")


def _plan_attention_residual(survey: Survey, value: bool, chosen: Chosen) -> Plan:
    found = [(site, entry.frames[::-1]) for site, _, entry in survey.events("attention") if chosen.takes(site)]
    if not found:
        raise UsageError(_nothing(survey, "attention", chosen))
    return _residual_plan(survey, found, value)


def _plan_feedforward_residual(survey: Survey, value: bool, chosen: Chosen) -> Plan:
    found = [item for item in in_feedforward(survey, list(activatings(survey))) if chosen.takes_part_of(item.site)]
    if not found:
        raise UsageError(_nothing(survey, "activation", chosen))
    frames = [frames_of(survey, item.module or survey.module_at(item.site.path)) for item in found]
    return _residual_plan(survey, [(item.site, own) for item, own in zip(found, frames, strict=True)], value)


def _residual_plan(survey: Survey, found: Sequence[tuple[Site, Sequence[Frame]]], value: bool) -> Plan:
    different = [branch for branch in branches(survey, found) if (branch.added is not None) != value]
    if not different:
        have = "has a residual connection" if value else "has no residual connection"
        raise UsageError(f"nothing to change: every branch that was asked for {have} already")
    edits = edits_for(survey, different, value)
    return Plan(tuple(edits), _once(branch.site.id for branch in different), str(not value))


# --- head ------------------------------------------------------------------------------------------------------------


def _check_z_loss(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise UsageError(f"head.z_loss is {value!r}; give a finite weight of log²Z that is not negative, as 1e-4")


def _plan_z_loss(survey: Survey, value: float, chosen: Chosen) -> Plan:
    heads = [site.id for site in survey.sites if site.kind == "head" and chosen.takes(site)]
    if not heads:
        raise UsageError(_nothing(survey, "head", chosen))
    found = list(losses(survey))
    if not found:
        raise UsageError(
            "the model computed no cross-entropy in its own forward, so there is no loss to add z-loss to; give batch= "
            "with labels, or use evenkeel.functional.cross_entropy(..., z_loss=...) in the training loop"
        )
    different = [item for item in found if item.z_loss != value]
    if not different:
        raise UsageError(f"nothing to change: the loss has a z-loss of {value:g} already")
    calls = [call for item in different for call in item.calls(value)]
    before = ", ".join(_once(f"{item.z_loss:g}" for item in different))
    return Plan(tuple(rewritings(survey, calls)), _once(heads), before)


# --- what cannot be done to a live model -----------------------------------------------------------------------------

_PARTS = {
    "embedding": EmbeddingConfig,
    "position": PositionConfig,
    "attention": AttentionConfig,
    "feedforward": FeedForwardConfig,
    "norm": NormConfig,
    "head": HeadConfig,
}
_WHY = {
    "norm.placement": "norms elsewhere have other weights, and the weights behind them were trained on what these give",
    "norm.kind": "the other kind has other weights",
    "feedforward.gated": "the other form has other matrices",
    "feedforward.d_ff": "its matrices have that size",
    "attention.heads": "its matrices were trained for that split of their rows",
}


def _only_built(name: str, config: str) -> Axis:
    def refuse(value: Any) -> NoReturn:
        reason = _WHY.get(name, "the model was built with it, and swap changes no more than calls of functions")
        raise UsageError(f"{name} cannot be swapped in a live model: {reason}; build one with {config} and train it")

    return Axis(name, refuse, lambda survey, value, chosen: refuse(value))


def _built() -> Iterator[Axis]:
    """Every axis of the configs that cannot be swapped."""
    for part, config in _PARTS.items():
        for item in fields(config):
            if f"{part}.{item.name}" not in AXES:
                yield _only_built(f"{part}.{item.name}", f"{config.__name__}({item.name}=...)")
    for item in fields(TransformerConfig):
        if item.type in ("int", "bool"):
            yield _only_built(item.name, f"TransformerConfig({item.name}=...)")


# --- words -----------------------------------------------------------------------------------------------------------


def _positive(name: str, value: Any, remedy: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise UsageError(f"{name} is {value!r}; {remedy}")


def _among(name: str, value: Any, known: tuple[str, ...], further: str) -> None:
    if value not in known:
        hint = near_miss(str(value), known, otherwise=f"give {', '.join(map(repr, known))}, {further}")
        raise UsageError(f"{name} is {value!r}; {hint}")


def _nothing(survey: Survey, kind: str, chosen: Chosen) -> str:
    there = _once(site.id for site in survey.sites if site.kind == kind)
    if not there:
        return f"the model ran no {kind} that tracing could see, so there is nothing to change"
    where = "in its feed-forwards" if chosen.names is None else f"in {', '.join(chosen.names)}"
    return f"there is no {kind} {where}; there are {', '.join(there[:4])}: name some in sites="


def _naming(site: Site, make: Callable[[], Calls]) -> Calls:
    try:
        return make()
    except UsageError as error:
        raise UsageError(f"{site.id} cannot be changed: {error}") from error


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _once(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


for _axis in (
    Axis("attention.scale", _check_scale, _plan_scale),
    Axis(
        "attention.temperature",
        lambda value: _positive("attention.temperature", value, "give a finite number above 0; 1 changes nothing"),
        _plan_temperature,
    ),
    Axis("attention.softcap", _check_softcap, _plan_softcap),
    Axis("attention.qk_norm", _check_norm, _plan_norm),
    Axis("feedforward.activation", _check_activation, _plan_activation),
    Axis("feedforward.kernel", _check_kernel, _plan_kernel),
    Axis("attention.residual", lambda value: _check_residual("attention.residual", value), _plan_attention_residual),
    Axis(
        "feedforward.residual", lambda value: _check_residual("feedforward.residual", value), _plan_feedforward_residual
    ),
    Axis("head.z_loss", _check_z_loss, _plan_z_loss),
):
    AXES.add(_axis.name, _axis)
for _axis in _built():
    AXES.add(_axis.name, _axis)
