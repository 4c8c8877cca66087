"""Running cases in parallel, each once: what is done is on disk, and a run that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from .bases import Base
from .cases import Case
from .trial import Outcome, try_case

ROOT = Path(__file__).parents[2]
SOURCES = ("src/evenkeel", "benchmarks/diagnosis")
_SAY_EVERY = 5.0

T = TypeVar("T")
R = TypeVar("R")


class Kept(Protocol):
    """What came of one piece of work, under its id."""

    @property
    def id(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


K = TypeVar("K", bound=Kept)


class Results(Generic[K]):
    """Outcomes by id, one line of JSON each, in a file named by what they are and the sources that they depend on.

    read: makes an outcome of the data in a line.
    """

    def __init__(
        self, directory: Path, read: Callable[[dict[str, Any]], K], *, what: str = "cases", digest: str | None = None
    ) -> None:
        self.path = directory / f"{what}-{digest or source_digest()}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes: dict[str, K] = {}
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # a run was killed while it wrote the last line
            self.path.write_text(whole)
        for line in whole.splitlines():
            outcome = read(json.loads(line))
            self.outcomes[outcome.id] = outcome

    def add(self, outcome: K) -> None:
        """Keep an outcome, on disk first."""
        with self.path.open("a") as file:
            file.write(json.dumps(outcome.to_dict()) + "\n")
        self.outcomes[outcome.id] = outcome


def source_digest() -> str:
    """Of every source that an outcome depends on, and the version of torch."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def run_all(cases: Sequence[Case], results: Results[Outcome], *, jobs: int, with_peers: bool = True) -> None:
    """Run the cases that have no outcome yet, in so many processes; first train the bases that they start from.

    A case that breaks raises here, with its id; what was done before is kept.
    """
    wanted = [case for case in cases if case.id not in results.outcomes]
    print(f"{len(cases) - len(wanted):,} of {len(cases):,} cases are done; {len(wanted):,} to go", file=sys.stderr)
    bases = sorted({case.base for case in wanted if case.base.steps})
    for _ in in_parallel(Base.keep, bases, jobs, "bases"):
        pass
    for outcome in in_parallel(partial(_try, with_peers=with_peers), wanted, jobs, "cases"):
        results.add(outcome)


def run_each(work: Callable[[K], K], items: Sequence[K], results: Results[K], *, jobs: int) -> list[K]:
    """What comes of each item, in their order; those that have an outcome under their id are not run again."""
    wanted = [item for item in items if item.id not in results.outcomes]
    for outcome in in_parallel(work, wanted, jobs, results.path.stem.partition("-")[0]):
        results.add(outcome)
    return [results.outcomes[item.id] for item in items]


def _try(case: Case, *, with_peers: bool) -> Outcome:
    try:
        return try_case(case, with_peers=with_peers)
    except Exception as error:
        error.add_note(f"in case {case.id}: python benchmarks/faults.py --case {case.id}")
        raise


def in_parallel(work: Callable[[T], R], items: Sequence[T], jobs: int, what: str) -> Iterator[R]:
    """Results as they come, with progress on stderr. Whoever stops the iteration stops the processes."""
    if not items:
        return
    say = _Progress(what, len(items))
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from say.of(map(work, items))
        finally:
            torch.set_num_threads(threads)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes when they start
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
        futures: list[Future[R]] = [pool.submit(work, item) for item in items]
        try:
            yield from say.of(future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """One thread in each process; Ctrl-C is for the process that keeps the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


class _Progress:
    """How many are done, and about how long the rest will take, every few seconds on stderr."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self.start = self.said = time.monotonic()

    def of(self, items: Iterable[R]) -> Iterator[R]:
        """The items, as they pass."""
        for count, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if now - self.said > _SAY_EVERY or count == self.total:
                self.said = now
                left = (now - self.start) / count * (self.total - count)
                print(f"{count:,} of {self.total:,} {self.what}, about {left / 60:.0f} min left", file=sys.stderr)
