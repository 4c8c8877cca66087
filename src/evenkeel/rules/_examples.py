"""Small measurements written down by hand, on which a rule must fire or stay silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from ..errors import UsageError
from ..schema import SITE_KINDS, DataInfo, ModelInfo, Phase, Reading, Site, SiteKind, StepLog
from ._measurements import Measurements

Values = float | tuple[float, ...]

MODEL = ModelInfo(class_name="Example", parameters=1, dtype="float32", device="cpu")
DATA = DataInfo(source="example", kind="given", tokens=2048)


@dataclass(frozen=True)
class Place:
    """A site of an example with what was read there."""

    site: Site
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Example:
    """A situation in words, and the measurements that show it."""

    about: str
    measurements: Measurements


def at(
    address: str,
    *,
    step: int = 0,
    backward: Mapping[str, Values] | None = None,
    update: Mapping[str, Values] | None = None,
    **forward: Values,
) -> Place:
    """Readings at the site `path:kind.op`: `at("layers.0:residual.block", backward={"gradient_rms": 0.1})`.

    A tuple of values runs over heads. Raises UsageError for an address of another form.
    """
    path, _, name = address.rpartition(":")
    kind, _, op = name.partition(".")
    if kind not in SITE_KINDS or not op:
        raise UsageError(f"{address!r} is no address of a site; write path:kind.op")
    site = Site(path=path, kind=cast(SiteKind, kind), op=op)
    given: tuple[tuple[Phase, Mapping[str, Values]], ...] = (
        ("forward", forward),
        ("backward", backward or {}),
        ("update", update or {}),
    )
    readings = tuple(
        Reading(
            site=site.id,
            step=step,
            phase=phase,
            stat=stat,
            values=values if isinstance(values, tuple) else (values,),
            unit="",
            axis="head" if isinstance(values, tuple) else "",
        )
        for phase, stats in given
        for stat, values in stats.items()
    )
    return Place(site, readings)


def example(about: str, *places: Place, log: tuple[StepLog, ...] = (), dtype: str = "float32") -> Example:
    """An example from its places, in execution order; a place may come again with a later step."""
    sites = tuple({place.site.id: place.site for place in places}.values())
    readings = tuple(reading for place in places for reading in place.readings)
    model = ModelInfo(class_name=MODEL.class_name, parameters=1, dtype=dtype, device="cpu")
    return Example(about, Measurements(sites, readings, log, model, DATA))


GUESSING = at("lm_head:head.softmax", loss=5.7, classes=256.0)
"""A head that knows nothing yet."""

NEW_HEAD = at("score:head.softmax", loss=0.71, classes=2.0)
"""Two classes, not learned yet."""
