"""NUM6xx: values that are not finite, or will soon not be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schema import Evidence, Severity, Site, StepLog
from ._examples import Place, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import lies_in


def _judge_nonfinite(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    forward = [site for site in sites if measurements.value(site, "nonfinite") > 0]
    broken = [site for site in measurements.of_kind("parameter") if not _finite(measurements, site, "weight_rms")]
    if forward:
        first = forward[0]
        count = measurements.value(first, "nonfinite")
        inside = [site for site in broken if lies_in(site.path, first.path)] or (broken if len(broken) == 1 else [])
        yield _nonfinite(
            (first, *inside[:1]),
            count,
            f"{_named(first)} is the first of {len(forward)} modules whose output is not finite: {count:,.0f} values"
            + (f"; so is its parameter {inside[0].path}" if inside else ""),
        )
    elif broken:
        text = (
            f"the parameter {broken[0].path} is not finite, the first of {len(broken)}; no output shows it on this data"
        )
        yield _nonfinite((broken[0],), len(broken), text)
    elif (first := _first_in_backward(measurements)) is not None:
        lost = sum(measurements.value(site, "nonfinite", "backward") > 0 for site in sites)
        skipped = _skipped(measurements, sites, bounds["halvings"])
        text = (
            f"{_named(first)} is the first whose gradients are not finite: those that reach it are, those that leave "
            f"it are not, and with them those of {lost} modules' outputs"
            + (
                "; the step was not taken, as a gradient scaler leaves steps out while it finds its scale"
                if skipped
                else ""
            )
        )
        yield _nonfinite((first,), max(1, lost), text, "info" if skipped else "error")


def _nonfinite(sites: tuple[Site, ...], count: float, message: str, severity: Severity = "error") -> Case:
    evidence = Evidence(stat="nonfinite", value=count, bound=0.0, unit="values")
    return Case(severity=severity, sites=sites, evidence=(evidence,), message=message, excess=count)


def _skipped(measurements: Measurements, sites: tuple[Site, ...], halvings: float) -> bool:
    """Whether the last measured step of a run, whose gradients are not finite, was left out; and not again and again.

    It was taken if it moved a weight. And the losses behind it are finite: one step with such gradients leaves no
    weight finite, and no loss; where there is none yet, nothing is known.
    """
    parameters = measurements.of_kind("parameter")
    counts = [item for site in sites for item in measurements.history(site, "nonfinite", "backward")]
    sizes = [item for site in parameters for item in measurements.history(site, "gradient_rms", "backward")]
    broken = {step for step, values in counts if max(values) > 0}
    broken |= {step for step, values in sizes if not all(map(math.isfinite, values))}
    measured = {step for step, _ in (*counts, *sizes)}
    last = max(measured)
    stretch = [step for step in measured if step > max(measured - broken, default=-1)]
    if not stretch or last - min(stretch) > halvings:
        return False
    updates = [item for site in parameters for item in measurements.history(site, "update_ratio", "update")]
    moved = [ratio for step, (ratio,) in updates if step == last]
    later = [entry.loss for entry in measurements.log if entry.step > last and entry.loss is not None]
    return not any(moved) and bool(later) and all(map(math.isfinite, later))


def _named(site: Site) -> str:
    return f"{site.path or 'the model'} ({site.op})"


def _first_in_backward(measurements: Measurements) -> Site | None:
    """The module that got finite gradients and sent on others, to its input or to a parameter of its own.

    Of several, which share an input, the last that ran. Where it is no single module, the code between modules did it:
    that of a module with parts which took the first broken tensor, or else of the one that holds that tensor's maker.
    """
    modules = measurements.of_kind("module")
    paths = {site.path for site in modules}
    owners = {
        site.path.rpartition(".")[0]: site
        for site in measurements.of_kind("parameter")
        if any(not math.isfinite(value) for value in measurements.values(site, "gradient_rms", "backward"))
    }

    def sent(site: Site) -> bool:
        return measurements.value(site, "nonfinite_input", "backward") > 0

    def has_parts(site: Site) -> bool:
        return any(path.startswith(f"{site.path}." if site.path else "") and path != site.path for path in paths)

    broken = [site for site in modules if measurements.value(site, "nonfinite", "backward") > 0]
    sound = [site for site in modules if site not in broken]
    guilty = [site for site in sound if site.path in owners or (sent(site) and not has_parts(site))]
    unseen = [site for path, site in owners.items() if path not in paths]  # a weight that a function takes by itself
    if guilty:
        return guilty[-1]
    if not broken:
        return unseen[-1] if unseen else None
    first = broken[-1]
    takers = [site for site in sound if sent(site) and not _holds(site, first)]
    if takers:
        return max(takers, key=lambda site: site.path.count("."))
    if first.op == "inside":
        return first
    around = [site for site in modules if _holds(site, first)]
    return max(around, key=lambda site: len(site.path), default=first)


def _holds(site: Site, other: Site) -> bool:
    return site.path != other.path and (not site.path or other.path.startswith(site.path + "."))


def _finite(measurements: Measurements, site: Site, stat: str) -> bool:
    return all(math.isfinite(value) for value in measurements.values(site, stat))


def _lost_gradients(step: int) -> list[Place]:
    return [
        at("layers.0:module.Block", step=step, nonfinite=0.0, backward={"nonfinite": 128.0}),
        at("layers.1:module.Block", step=step, nonfinite=0.0, backward={"nonfinite": 4.0}),
    ]


def _falling(steps: int) -> tuple[StepLog, ...]:
    return tuple(StepLog(step=step, loss=5.5 - 0.1 * step) for step in range(steps))


NUM601 = Rule(
    code="NUM601",
    name="non-finite values",
    needs=(Need(kind="module", stat="nonfinite"),),
    measures="how many values of every module's output, and of the gradient that comes back to it, are NaN or infinite",
    severities=("error", "info"),
    severity="error; info where gradients alone are not finite, in a step that a run has left out, as gradient scalers "
    "do: it moved no weight, and the losses after it are finite",
    bounds={"halvings": 16.0},
    bound="0. Named is the first module in execution order whose output, or whose own code between its parts "
    "(`inside`), is not finite; else a parameter that is not although no output shows it (a row that is never looked "
    "up); where the forward pass is clean, the module that gets finite gradients in the backward pass and sends on "
    "others. A scaler begins at 2^16 and halves with each step that it leaves out: after 16 the scale is 1, and "
    "gradients that still overflow do so by themselves. Steps left out over a longer stretch, with no sound measured "
    "step between them, are an error.",
    explains=("RUN801", "RUN803"),
    why="One NaN or infinity reaches everything computed from it, and one optimizer step carries it into all weights.",
    advice=(
        "Look at the module that is named: its parameters first, then its inputs (NUM602 shows overflow coming).",
        "Restore the last checkpoint whose weights are finite; a step with NaN gradients cannot be undone.",
        "Compute the operation in float32 or bfloat16 instead of float16; with a gradient scaler, infinite gradients "
        "in single steps are how it finds its scale.",
    ),
    claims=("C22",),
    try_command="evenkeel rules NUM601",
    source="IEEE 754-2019",
    firing=(
        example(
            "a NaN in a projection's weight",
            at("layers.0.mlp:module.MLP", nonfinite=0.0),
            at("layers.1.mlp.up:module.Linear", nonfinite=64.0),
            at("layers.1.mlp:module.MLP", nonfinite=2048.0),
            at("layers.1.mlp.up.weight:parameter.parameter", weight_rms=math.nan),
        ),
        example(
            "gradients that overflow on the way back",
            at("layers.0:module.Block", nonfinite=0.0, backward={"nonfinite": 128.0}),
            at("layers.1:module.Block", nonfinite=0.0, backward={"nonfinite": 4.0}),
        ),
        example("a gradient scaler that is finding its scale", *_lost_gradients(0), log=_falling(4)),
        example("steps that are left out again and again", *_lost_gradients(0), *_lost_gradients(20), log=_falling(24)),
    ),
    silent=(
        example(
            "finite throughout",
            at("layers.0:module.Block", nonfinite=0.0, backward={"nonfinite": 0.0}),
            at("layers.1:module.Block", nonfinite=0.0, backward={"nonfinite": 0.0}),
        ),
    ),
    judge=_judge_nonfinite,
)


def _judge_headroom(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        headroom = measurements.value(site, "headroom_log2")
        if 0 < headroom < bounds["bits"]:  # exactly at the limit stands a mask, beyond it NUM601 speaks
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="headroom_log2", value=headroom, bound=bounds["bits"], unit="bits"),),
                message=f"{site.path or 'the model'} ({site.op}) comes within a factor of {2**headroom:.2g} of the "
                f"largest number its dtype can hold (bound: a factor of {2 ** bounds['bits']:.0f})",
                excess=-headroom,
            )


NUM602 = Rule(
    code="NUM602",
    name="little headroom",
    needs=(Need(kind="module", stat="headroom_log2"),),
    measures="log2 of the dtype's largest number over the largest |value| of every module's output",
    severities=("warning",),
    severity="warning",
    bounds={"bits": 2.0},
    bound="2 bits, a factor of 4: adding two streams of this size takes one, a batch with outliers twice as large the "
    "other. float16 ends at 65,504, bfloat16 and float32 at 3.4e38. A value exactly at the limit is a mask.",
    why="The next larger value overflows to infinity, and the step after it is NaN.",
    advice=(
        "Use bfloat16 in place of float16: the same size, the range of float32.",
        "Keep the residual stream and the norms in float32.",
        "Look for massive activations behind the first blocks; they grow with training.",
    ),
    claims=("C22",),
    try_command="evenkeel rules NUM602",
    source="IEEE 754-2019; Sun et al. 2024, Massive Activations in Large Language Models",
    firing=(example("a float16 stream at 40,000", at("layers.7:module.Block", headroom_log2=0.71), dtype="float16"),),
    silent=(
        example("a float16 stream at 90", at("layers.7:module.Block", headroom_log2=9.5), dtype="float16"),
        example("a module that returns a mask", at("mask:module.Mask", headroom_log2=0.0), dtype="float16"),
    ),
    judge=_judge_headroom,
)
