"""`evenkeel compare AXIS=VALUE,... | study.toml`: fair ablations, with intervals and a verdict for each contrast."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .output import file_argument, show, tell, write
from .working import INTERRUPTED, bar, check_device, estimate, processes, quieten_optuna, warn

if TYPE_CHECKING:
    from ..studies import Comparison, Run

SUMMARY = "compare choices fairly: equal parameters, tuned alike, paired seeds, intervals and a verdict"

_CHANGES = ("data", "seeds", "margin", "target", "contrast")  # what may change while a study runs
_STUDY_OPTIONS = (  # what a study is begun with
    "like",
    "data",
    "match",
    "baseline",
    "contrast",
    "budget",
    "steps",
    "seeds",
    "tuning_trials",
    "learning_rates",
    "margin",
    "target",
)
_EXPORTS = ("csv", "json", "latex", "svg")  # those of studies.EXPORTS, here because `--help` has no use for it


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `evenkeel compare`."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="AXIS=VALUE,... | FILE",
        help="what is compared: feedforward=relu,gelu,swiglu, or attention.scale=sqrt,none depth=2,4, or study.toml",
    )
    _add_study_options(parser.add_argument_group("the study"))
    _add_work_options(parser.add_argument_group("the work"))
    output = parser.add_argument_group("output")
    output.add_argument("--export", choices=_EXPORTS, help="print this in place of the report; with --out, beside it")
    output.add_argument("--out", metavar="FILE", type=file_argument, help="write the export there (default: json)")
    output.add_argument("--methods", action="store_true", help="end the report with a paragraph for a methods section")


def _add_study_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--like", metavar="DIR", help="a small model with the choices of the one in this directory")
    group.add_argument("--data", metavar="FILE|DIR", help="text to train on (default: Python's standard library)")
    group.add_argument("--match", metavar="WHAT", help="what arms have equal: parameters (default), flops or nothing")
    group.add_argument("--baseline", metavar="ARM", help="what the others are set against (default: the first arm)")
    group.add_argument(
        "--contrast",
        metavar=("ARM", "AGAINST"),
        nargs=2,
        action="append",
        help="a question of the study; again for each (default: every arm against the baseline)",
    )
    group.add_argument("--budget", metavar="TIME", help="about how long it takes, as in 90s, 10m or 2h (default: 10m)")
    group.add_argument(
        "--steps", metavar="N", type=int, help="training steps of a trial (default: what the budget gives)"
    )
    group.add_argument("--seeds", metavar="N", type=int, help="pairs (default: 5)")
    group.add_argument("--tuning-trials", metavar="N", type=int, help="learning rates tried for each arm (default: 5)")
    group.add_argument(
        "--learning-rates", metavar=("LOW", "HIGH"), nargs=2, type=float, help="their range (default: 1e-3 1.6e-2)"
    )
    group.add_argument("--margin", metavar="NATS", type=float, help="what counts as equal (default: 0.01)")
    group.add_argument(
        "--target", metavar="NATS", type=float, help="count steps to this held-out loss (default: the baseline's own)"
    )


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--storage",
        metavar="FILE|URL",
        help="where trials are kept; many machines can work on one in postgresql://... (default: in EVENKEEL_STORAGE, "
        "else in the cache)",
    )
    group.add_argument("--name", metavar="NAME", help="of the study in --storage (default: compare)")
    group.add_argument("--resume", action="store_true", help="go on with the study in --storage, which has to be there")
    group.add_argument(
        "--from",
        metavar="FILE",
        dest="export_before",
        help="go on with the study of this export (json), and its trials",
    )
    group.add_argument("--device", metavar="D", default="cpu", help="where models are trained (default: cpu)")
    group.add_argument("--jobs", metavar="N", type=int, help="processes (default: one for each core; 1 on a device)")
    group.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # the process that this one works for


def run(arguments: argparse.Namespace) -> int:
    """Run the study, or what is left of it, and print what it shows; 0, or 130 where Ctrl-C left it partial."""
    from ..studies.running.joining import STORAGE_VARIABLE

    quieten_optuna()
    storage = arguments.storage or os.environ.get(STORAGE_VARIABLE) or None
    _check(arguments, storage)
    check_device(arguments.device)
    here = _begun(arguments, storage)
    if arguments.parent is not None:  # whose report it is
        return 0 if here.work() else INTERRUPTED
    left = here.remaining
    if left:
        tell(estimate(here, left))
    with bar(here, left) as report:
        finished = here.work(report, warn)
    _finish(here.comparison(), arguments)
    if not finished:
        warn(f"stopped; the same command goes on{_kept(here)}")
    return 0 if finished else INTERRUPTED


def _check(arguments: argparse.Namespace, storage: str | None) -> None:
    """Raises UsageError for options that contradict each other, and for those that would be ignored."""
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError(f"--jobs is {arguments.jobs} and must be at least 1")
    if arguments.resume and arguments.export_before is not None:
        raise UsageError(
            "--resume goes on with a study in --storage, and --from with that of an export; leave one of them out"
        )
    if arguments.resume and storage is None:
        raise UsageError("--resume goes on with a study in a --storage, and none is given; name its file or URL")
    if arguments.name is not None and storage is None:
        raise UsageError(f"--name {arguments.name} is of a study in --storage, and none is given; name its file or URL")
    if arguments.methods and arguments.export is not None and arguments.out is None:
        raise UsageError(
            f"--methods ends the report, and --export {arguments.export} stands in its place; add --out FILE"
        )
    given = [name for name in _STUDY_OPTIONS if name not in _CHANGES and getattr(arguments, name) is not None]
    if arguments.export_before is not None:
        _refuse(arguments.words, given, "--from goes on with the study of an export")
    elif arguments.resume and not arguments.words:
        _refuse((), given, "--resume goes on with the study in --storage")


def _refuse(words: Iterable[str], options: Iterable[str], why: str) -> None:
    """Raises UsageError where words or study options are given with what takes the study from elsewhere."""
    ignored = [*words, *(f"--{name.replace('_', '-')}" for name in options)]
    if ignored:
        raise UsageError(
            f"{why} as it was begun, and {' '.join(ignored)} would be ignored; leave that out (--seeds N gives more "
            "pairs; --margin, --target and --contrast judge otherwise)"
        )


def _begun(arguments: argparse.Namespace, storage: str | None) -> Run:
    from ..studies import NAME, begin, read_study, resume, take_over
    from ..studies.reading.specifications import fields_of

    jobs = arguments.jobs if arguments.jobs is not None else processes(arguments.device)
    work: dict[str, Any] = {"device": arguments.device, "jobs": jobs}
    name = arguments.name or NAME
    options = {option: getattr(arguments, option) for option in _STUDY_OPTIONS}
    options["contrasts"] = options.pop("contrast")
    given = {option: value for option, value in options.items() if value is not None}
    if arguments.export_before is not None:
        store, changed = take_over(arguments.export_before, storage, name)
        return resume(store.where, name=store.name, **{**changed, **fields_of(given)}, **work)
    if storage is not None and arguments.resume and not arguments.words:
        return resume(storage, name=name, parent=arguments.parent, **fields_of(given), **work)
    study = read_study(arguments.words, **given)
    return begin(study, storage=storage, name=arguments.name, must_exist=arguments.resume, **work)


def _kept(here: Run) -> str:
    return "" if here.default_storage else f", and {here.command(here.study.seeds)}"


def _finish(comparison: Comparison, arguments: argparse.Namespace) -> None:
    from ..studies import EXPORTS, draw_comparison, draw_methods

    if arguments.out is not None:
        write(arguments.out, EXPORTS[arguments.export or "json"](comparison))
    elif arguments.export is not None:
        show(lambda width, color: EXPORTS[arguments.export](comparison))
        return
    show(lambda width, color: draw_comparison(comparison, width=width, color=color))
    if arguments.methods:
        show(lambda width, color: f"\n{draw_methods(comparison)}")
