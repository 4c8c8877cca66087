"""Instruments: which statistics are read at which kind of site. Outside packages add theirs by entry point."""

from __future__ import annotations

from typing import Any

from ..catalogue import Catalogue
from ..schema import SITE_KINDS
from ._protocol import Instrument, Stat
from .activation import ActivationInstrument
from .attention import AttentionInstrument
from .causality import BlockCausality, HeadCausality
from .gate import GateInstrument
from .head import HeadInstrument
from .norm import NormInstrument
from .numerics import NumericsInstrument
from .parameter import ParameterInstrument
from .residual import ResidualInstrument
from .router import RouterInstrument
from .sigmoid_head import SigmoidHeadInstrument


def flaw_of_instrument(name: str, entry: Any) -> str:
    """What an instrument of this name breaks of the protocol, as the rest of a sentence; "" where nothing."""
    if not isinstance(entry, type):
        return f"is of type {type(entry).__name__} and must be a class"
    if getattr(entry, "kind", None) not in SITE_KINDS:
        return f"reads sites of kind {getattr(entry, 'kind', None)!r}; kinds are {', '.join(SITE_KINDS)}"
    stats = getattr(entry, "stats", None)
    if not isinstance(stats, tuple) or not stats or not all(isinstance(stat, Stat) for stat in stats):
        return f"has {stats!r} as stats, which must be a tuple of evenkeel.instruments.Stat"
    for method in ("observe", "merge", "read"):
        if not callable(getattr(entry, method, None)):
            return f"has no method {method}()"
    made = {(stat.name, stat.phase): name for stat in stats}
    if len(made) < len(stats):
        return "produces a stat twice"
    for other, known in INSTRUMENTS.items():
        taken = [stat.name for stat in known.stats if (stat.name, stat.phase) in made and known.kind == entry.kind]
        if taken and other != name:
            return f"produces {taken[0]!r} of every {entry.kind}, as the instrument {other!r} does; rename it"
    try:
        entry()
    except Exception as error:
        return f"cannot be made without arguments ({type(error).__name__}: {' '.join(str(error).split())})"
    return ""


INSTRUMENTS: Catalogue[type[Instrument]] = Catalogue(
    "instrument", entry_point_group="evenkeel.instruments", flaw=flaw_of_instrument
)
for _name, _instrument in (
    ("activation", ActivationInstrument),
    ("attention", AttentionInstrument),
    ("block_causality", BlockCausality),
    ("gate", GateInstrument),
    ("head", HeadInstrument),
    ("head_causality", HeadCausality),
    ("norm", NormInstrument),
    ("numerics", NumericsInstrument),
    ("parameter", ParameterInstrument),
    ("residual", ResidualInstrument),
    ("router", RouterInstrument),
    ("sigmoid_head", SigmoidHeadInstrument),
):
    INSTRUMENTS.add(_name, _instrument)


def for_kind(kind: str) -> tuple[type[Instrument], ...]:
    """The instruments that read a kind of site."""
    return tuple(instrument for instrument in INSTRUMENTS.values() if instrument.kind == kind)


__all__ = ["INSTRUMENTS", "Instrument", "Stat", "flaw_of_instrument", "for_kind"]
