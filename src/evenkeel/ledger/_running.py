"""Running the experiments of claims, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from ..catalogue import Catalogue
from ..errors import UsageError
from ..schema import SCHEMA_VERSION
from . import (
    _studies,
    binary,
    centring,
    conventions,
    cost,
    depth,
    descent,
    families,
    feedforwards,
    gates,
    gating,
    head_sizes,
    interaction,
    layers,
    low_precision,
    nonlinearity,
    output_heads,
    overflow,
    pixels,
    predicting,
    sampling,
    saturation,
    score_scales,
    scores,
    similarity,
    sizes,
    softmax,
    starting,
    training_speed,
    without_softmax,
)
from ._claim import Claim, MeasuredClaim
from ._studies import Comparisons, Provenance, RunKind, StudyRun, Watcher

CLAIMS: Catalogue[Claim] = Catalogue("claim")

for _claim in (
    saturation.C01,
    depth.C02,
    saturation.C03,
    descent.C04,
    feedforwards.C05,
    families.C06,
    families.C07,
    conventions.C08,
    centring.C09,
    output_heads.C10,
    gates.C11,
    pixels.C12,
    starting.C13,
    scores.C14,
    scores.C15,
    scores.C16,
    scores.C17,
    low_precision.C18,
    score_scales.C19,
    softmax.C20,
    sampling.C21,
    overflow.C22,
    output_heads.C23,
    sampling.C24,
    sizes.C25,
    families.C26,
    feedforwards.C27,
    feedforwards.C28,
    gates.C29,
    layers.C30,
    centring.C31,
    families.C32,
    gating.C33,
    binary.C34,
    binary.C35,
    depth.C36,
    conventions.C37,
    layers.C38,
    training_speed.C39,
    cost.C40,
    softmax.C41,
    without_softmax.C42,
    softmax.C43,
    sizes.C44,
    conventions.C45,
    interaction.C46,
    layers.C47,
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


def claims(
    ids: Iterable[str] | None = None,
    *,
    train: bool = False,
    budget: float | str | None = None,
    storage: str | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], object] | None = None,
    watcher: Watcher | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Ledger:
    """Run the experiments of some claims and judge them; without ids, of all, in about two minutes.

    ids: one or more, as in "C15"; each is measured once, in the order given. progress: called with how many are done,
    and of how many, before the first experiment and after each. The experiments have their own seeds and draw nothing
    from torch's generator. Claims that rest on studies take the full run that came with the package; with train they
    run them, or go on with what was begun: within a budget (seconds, or "30m") for all of them together, or as
    specified, which takes hours; storage, jobs: as of `compare`. watcher: is given each study's name and Run before
    work on it, and gives what is told of the progress. tell: is given lines that a user has to see. Ctrl-C ends the
    training; claims whose studies are not finished are undecided then.
    Raises UsageError for an id that is not in the ledger, and for training options where nothing is trained.
    """
    ids = (ids,) if isinstance(ids, str) else ids
    wanted = [CLAIMS[name] for name in dict.fromkeys(CLAIMS if ids is None else ids)]
    _check_training(wanted, train, budget, storage)
    say = progress or (lambda done, total: None)
    measured: list[MeasuredClaim] = []
    with _own_settings():
        studies = dict.fromkeys(name for claim in wanted for name in claim.studies)
        if train:
            options = {} if watcher is None else {"watcher": watcher}
            runs = _studies.train(studies, budget=budget, storage=storage, jobs=jobs, tell=tell, **options)
        else:
            runs = _studies.stored_runs(studies)
        say(0, len(wanted))
        for claim in wanted:
            measured.append(_measured(claim, runs, "trained" if train else "stored"))
            say(len(measured), len(wanted))
    return Ledger(tool=f"evenkeel {version('evenkeel')}", torch=torch.__version__, claims=tuple(measured))


def _check_training(wanted: Sequence[Claim], train: bool, budget: float | str | None, storage: str | None) -> None:
    if not train and (budget is not None or storage is not None):
        raise UsageError("a budget or a storage is of training, and nothing is trained; give --train (train=True) too")
    if train and not any(claim.studies for claim in wanted):
        known = ", ".join(claim.id for claim in CLAIMS.values() if claim.studies)
        raise UsageError(f"{', '.join(claim.id for claim in wanted)}: nothing is trained for it; those are {known}")


def _measured(claim: Claim, runs: Comparisons, kind: RunKind) -> MeasuredClaim:
    """A claim's own experiment, and the numbers of its studies where all of them have a run."""
    numbers = tuple(claim.measure())
    if not claim.studies:
        return MeasuredClaim(claim=claim, measurements=numbers)
    found = tuple(StudyRun.of(name, runs[name]) for name in claim.studies if name in runs)
    if len(found) < len(claim.studies):
        return MeasuredClaim(claim=claim, measurements=numbers, run=Provenance(kind="none", studies=found))
    numbers = (*numbers, *claim.trained(runs))
    return MeasuredClaim(claim=claim, measurements=numbers, run=Provenance(kind=kind, studies=found))


@contextmanager
def _own_settings() -> Iterator[None]:
    """Whatever the caller has set: float32 on the CPU, gradients, no mixed precision, one thread for small tensors."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu"),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng(devices=[]),  # layers draw first weights from it before they are given ours
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
