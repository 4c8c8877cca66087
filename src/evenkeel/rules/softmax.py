"""NUM603: a softmax spelled out without its maximum taken out first."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schema import Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule


def _judge_unshifted(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        largest, headroom = (measurements.value(site, stat) for stat in ("exponent_max", "exp_headroom"))
        if largest <= 0:
            continue
        overflowed, near = headroom <= 0, headroom < bounds["headroom"]
        what = "and e to that is infinite" if overflowed else f"{headroom:.3g} nats below the dtype's overflow"
        yield Case(
            severity="error" if overflowed else "warning" if near else "info",
            sites=(site,),
            evidence=(
                Evidence(stat="exp_headroom", value=headroom, bound=bounds["headroom"], unit="nats"),
                Evidence(stat="exponent_max", value=largest, bound=0.0, unit="nats"),
            ),
            message=f"{site.path or 'the model'} computes exp(s) / sum exp(s) of numbers up to {largest:.4g}, {what}; "
            "with the maximum taken out first they end at 0",
            excess=-headroom,
        )


NUM603 = Rule(
    code="NUM603",
    name="softmax without its maximum subtracted",
    needs=(Need(kind="module", stat="exponent_max"), Need(kind="module", stat="exp_headroom")),
    applies=lambda site: site.op == "softmax_by_hand",
    measures="where a model or its loss divides exponentials by their own sum, or takes the sum's logarithm: the "
    "largest number that e is raised to, and how far it lies below the logarithm of the dtype's largest number",
    severities=("error", "warning", "info"),
    severity="error where an exponential is infinite, warning within 8 nats of that, info for any number above 0",
    bounds={"headroom": 8.0},
    bound="0 for the exponent: with the maximum subtracted the largest is exactly 0, so any above it was not shifted. "
    "8 nats of headroom: a sum of 3,000 terms of the largest size is e^8 times it. float16 overflows at e^11.09, "
    "float32 and bfloat16 at e^88.7, so the warning begins at 3.1 and 80.7.",
    why="exp overflows long before a score is unusual; infinity over infinity is NaN, and a sum that alone overflows "
    "gives a row of zeros without a word.",
    advice=(
        "Use torch.softmax, F.cross_entropy or torch.logsumexp, which subtract the maximum.",
        "By hand: s = s - s.amax(dim, keepdim=True) before exp; the result is the same.",
    ),
    claims=("C22",),
    try_command="evenkeel rules NUM603",
    source="Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and softmax functions; bound "
    "derived here",
    firing=(
        example(
            "scores of 300 in float32", at("attn:module.softmax_by_hand", exponent_max=300.0, exp_headroom=88.72 - 300)
        ),
        example(
            "scores of 6 in float16",
            at("attn:module.softmax_by_hand", exponent_max=6.0, exp_headroom=math.log(65504) - 6),
            dtype="float16",
        ),
        example("small scores, unshifted", at("attn:module.softmax_by_hand", exponent_max=2.0, exp_headroom=86.7)),
    ),
    silent=(
        example("with the maximum subtracted", at("attn:module.softmax_by_hand", exponent_max=0.0, exp_headroom=88.72)),
    ),
    judge=_judge_unshifted,
)
