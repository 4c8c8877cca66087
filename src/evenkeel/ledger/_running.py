"""Running the experiments of claims, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from ..catalogue import Catalogue
from ..schema import SCHEMA_VERSION
from . import (
    binary,
    centring,
    conventions,
    cost,
    depth,
    descent,
    families,
    gates,
    gating,
    head_sizes,
    low_precision,
    nonlinearity,
    overflow,
    pixels,
    predicting,
    sampling,
    saturation,
    scores,
    similarity,
    sizes,
    softmax,
    without_softmax,
)
from ._claim import Claim, MeasuredClaim

CLAIMS: Catalogue[Claim] = Catalogue("claim")

for _claim in (
    saturation.C01,
    depth.C02,
    saturation.C03,
    descent.C04,
    families.C06,
    families.C07,
    conventions.C08,
    centring.C09,
    gates.C11,
    pixels.C12,
    scores.C14,
    scores.C15,
    scores.C16,
    scores.C17,
    low_precision.C18,
    softmax.C20,
    sampling.C21,
    overflow.C22,
    sampling.C24,
    sizes.C25,
    families.C26,
    gates.C29,
    centring.C31,
    families.C32,
    gating.C33,
    binary.C34,
    binary.C35,
    depth.C36,
    conventions.C37,
    cost.C40,
    softmax.C41,
    without_softmax.C42,
    softmax.C43,
    sizes.C44,
    conventions.C45,
    conventions.C48,
    nonlinearity.C49,
    saturation.C50,
    conventions.C51,
    predicting.C52,
    predicting.C53,
    similarity.C54,
    head_sizes.C55,
    gating.C56,
):
    CLAIMS.add(_claim.id, _claim)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Claims with their numbers and verdicts; `tool` and `torch` say what measured them."""

    tool: str
    torch: str
    claims: tuple[MeasuredClaim, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": self.tool,
            "torch": self.torch,
            "claims": [item.to_dict() for item in self.claims],
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The ledger as JSON text; every text in all its languages."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)


def claims(ids: Iterable[str] | None = None, *, progress: Callable[[int, int], object] | None = None) -> Ledger:
    """Run the experiments of some claims and judge them; without ids, of all, in about a minute.

    ids: one or more, as in "C15"; each is measured once, in the order given. progress: called with how many are done,
    and of how many, before the first experiment and after each. The experiments have their own seeds and draw nothing
    from torch's generator. Raises UsageError for an id that is not in the ledger.
    """
    ids = (ids,) if isinstance(ids, str) else ids
    wanted = [CLAIMS[name] for name in dict.fromkeys(CLAIMS if ids is None else ids)]
    say = progress or (lambda done, total: None)
    measured: list[MeasuredClaim] = []
    say(0, len(wanted))
    with _own_settings():
        for claim in wanted:
            measured.append(MeasuredClaim(claim=claim, measurements=tuple(claim.measure())))
            say(len(measured), len(wanted))
    return Ledger(tool=f"evenkeel {version('evenkeel')}", torch=torch.__version__, claims=tuple(measured))


@contextmanager
def _own_settings() -> Iterator[None]:
    """Whatever the caller has set: the CPU, gradients, no mixed precision, one thread, since the tensors are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
