"""Instruments: which statistics are read at which kind of site. Outside packages add theirs by entry point."""

from __future__ import annotations

from ..catalogue import Catalogue
from ._protocol import Instrument, Stat
from .activation import ActivationInstrument
from .attention import AttentionInstrument
from .gate import GateInstrument
from .head import HeadInstrument
from .numerics import NumericsInstrument
from .parameter import ParameterInstrument
from .residual import ResidualInstrument
from .router import RouterInstrument

INSTRUMENTS: Catalogue[type[Instrument]] = Catalogue("instrument", entry_point_group="evenkeel.instruments")
for _name, _instrument in (
    ("activation", ActivationInstrument),
    ("attention", AttentionInstrument),
    ("gate", GateInstrument),
    ("head", HeadInstrument),
    ("numerics", NumericsInstrument),
    ("parameter", ParameterInstrument),
    ("residual", ResidualInstrument),
    ("router", RouterInstrument),
):
    INSTRUMENTS.add(_name, _instrument)


def for_kind(kind: str) -> tuple[type[Instrument], ...]:
    """The instruments that read a kind of site."""
    return tuple(instrument for instrument in INSTRUMENTS.values() if instrument.kind == kind)


__all__ = ["INSTRUMENTS", "Instrument", "Stat", "for_kind"]
