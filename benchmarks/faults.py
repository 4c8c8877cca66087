"""How often a diagnosis is right: labelled models, sick and healthy, each measured and judged.

    python benchmarks/faults.py                    # every part and case, in parallel; goes on where it was stopped
    python benchmarks/faults.py --part loop        # only whether the named changes cure; also: cases, early, first-nan
    python benchmarks/faults.py --sample 80        # so many, spread evenly over the list
    python benchmarks/faults.py --case ID          # one case, with its whole diagnosis

The splits share neither a family nor a seed: bounds may be tuned on `tune`, `held_out` shows how good they are. The
bases that cases start from are trained first and kept in the user's cache directory. Outcomes are kept in build/faults,
in a file named by the sources that they depend on; after a change of these every case runs again.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diagnosis import early, first_nan, loop
from diagnosis.applying import write_applicable
from diagnosis.cases import SPLITS, Case, cases, few_cases
from diagnosis.runner import ROOT, Results, run_all, run_each
from diagnosis.tables import Share, listed, render
from diagnosis.trial import Outcome, examine

from evenkeel.catalogue import near_miss


def main() -> int:
    """Run what has not been run and print the tables; or one case and print its diagnosis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", metavar="ID", help="run this case alone and print its diagnosis")
    parser.add_argument(
        "--part", choices=PARTS, nargs="+", help="only these parts (default: all; with a choice of cases, these alone)"
    )
    parser.add_argument("--split", choices=SPLITS, help="only the cases of one split")
    parser.add_argument("--fault", metavar="NAME", nargs="+", help="only these faults; `healthy` is one here")
    parser.add_argument("--family", metavar="NAME", nargs="+", help="only these families")
    parser.add_argument(
        "--sample", metavar="N", type=int, help="only so many of the cases, spread evenly over the list"
    )
    parser.add_argument("--few", action="store_true", help="only the 80 cases that CI runs")
    parser.add_argument(
        "--applicable", action="store_true", help="find anew which families have a place for which fault"
    )
    parser.add_argument("--done", action="store_true", help="run nothing; the tables of the cases that are done")
    parser.add_argument("--list", action="store_true", help="print the ids and run nothing")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--no-peers", action="store_true", help="leave other tools out")
    parser.add_argument("--results", metavar="DIR", type=Path, default=ROOT / "build" / "faults")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where the tables go as well")
    arguments = parser.parse_args()
    if arguments.case:
        return show(arguments.case)
    if arguments.applicable:
        write_applicable()
        return 0
    chosen = choose(arguments)
    if not chosen:
        parser.error("these options leave no case; --list shows which there are")
    if arguments.list:
        print("\n".join(case.id for case in chosen))
        return 0
    lines = ["# Measured diagnoses", "", _TEXT.format(machine=_machine()), ""]
    filtered = arguments.few or any((arguments.split, arguments.fault, arguments.family, arguments.sample))
    for part in arguments.part or (["cases"] if filtered else PARTS):
        title, made = PARTS[part]
        lines += [f"# {title}", "", *made(chosen, arguments)]
    print("\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines).rstrip() + "\n")
    return 0


def of_cases(chosen: Sequence[Case], arguments: argparse.Namespace) -> Iterator[str]:
    """Run the cases that have not been run; their tables."""
    results = Results(arguments.results, Outcome.from_dict)
    if not arguments.done:
        run_all(chosen, results, jobs=arguments.jobs, with_peers=not arguments.no_peers)
    done = [(case, results.outcomes[case.id]) for case in chosen if case.id in results.outcomes]
    if len(done) < len(chosen):
        yield from (f"{len(done):,} of {len(chosen):,} cases are done.", "")
    yield render(done)


def of_loop(_: Sequence[Case], arguments: argparse.Namespace) -> Iterator[str]:
    """Try the cures that have not been tried; their tables."""
    results = Results(arguments.results, loop.Attempt.from_dict, what="loop")
    yield from loop.render(run_each(loop.attempt, loop.attempts(), results, jobs=arguments.jobs))


def of_early(_: Sequence[Case], arguments: argparse.Namespace) -> Iterator[str]:
    """Make the runs that have not been made; what came first in each."""
    results = Results(arguments.results, early.Course.from_dict, what="early")
    yield from early.render(run_each(early.course, early.courses(), results, jobs=arguments.jobs))


def of_first_nan(_: Sequence[Case], arguments: argparse.Namespace) -> Iterator[str]:
    """Place NaN and Inf at random, and see which module is named."""
    placed = list(first_nan.cases(_PLACEMENTS))
    right = Share.of(named in expected for _, expected, named in placed)
    yield f"NUM601 names the module where a NaN or Inf begins in {right} of random placements."
    yield ""
    yield from listed(
        "Named elsewhere", [(what, f"names {named}") for what, where, named in placed if named not in where]
    )


def _machine() -> str:
    return f"{os.cpu_count()} cores of a {platform.machine()} CPU, torch {torch.__version__}"


_TEXT = """\
Made by `make faults` on {machine}; nothing here ran on an accelerator. Rules
may be tuned on the split `tune`; `held_out` shares neither a family nor a seed with it. Shares come with Wilson's 95%
intervals. Each case is listed with the command that repeats it where it went wrong."""

PARTS = {
    "cases": ("Sick and healthy models", of_cases),
    "loop": ("The named changes, tried", of_loop),
    "early": ("Runs that go wrong, told before they do", of_early),
    "first-nan": ("The first NaN", of_first_nan),
}
_PLACEMENTS = 100


def choose(arguments: argparse.Namespace) -> Sequence[Case]:
    """The cases that the options leave."""
    chosen = [
        case
        for case in (few_cases() if arguments.few else cases())
        if arguments.split in (None, case.split)
        and (arguments.fault is None or (case.fault or "healthy") in arguments.fault)
        and (arguments.family is None or case.base.family in arguments.family)
    ]
    if arguments.sample is None or arguments.sample >= len(chosen):
        return chosen
    return [chosen[index * len(chosen) // arguments.sample] for index in range(arguments.sample)]


def show(identity: str) -> int:
    """Run one case and print what it is and its diagnosis."""
    known = {case.id: case for case in cases()}
    if identity not in known:
        print(f"no case is called {identity!r}; {near_miss(identity, known, '--list prints all')}", file=sys.stderr)
        return 2
    case = known[identity]
    trial = examine(case)
    print(case)
    if trial.injury.places:
        print(f"the fault sits in {', '.join(trial.injury.places)}")
    print(trial.diagnosis.to_text(width=120))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; run it again to go on")
