"""NUM607, NUM608, ARC704: the residual stream from block to block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from ..schema import Change, Evidence, Site, SiteKind
from ._examples import Place, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import by_stack, lies_in


def _judge_growing(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for stack in by_stack(sites).values():
        sizes = [measurements.value(site, "residual_rms") for site in stack]
        if len(sizes) < bounds["blocks"] or not all(0 < size < math.inf for size in sizes):
            continue
        ratios = sorted(later / earlier for earlier, later in pairwise(sizes))
        typical, least, total = median(ratios), ratios[len(ratios) // 4], sizes[-1] / sizes[0]
        aligned = 1 + 2 / len(sizes)
        if least > bounds["ratio"]:
            severity, value, bound = "warning", least, bounds["ratio"]
        elif typical > aligned and total > bounds["growth"] * len(sizes):
            severity, value, bound = "info", typical, aligned
        else:
            continue
        yield Case(
            severity=severity,
            sites=tuple(stack),
            evidence=(Evidence(stat="residual_rms", value=value, bound=bound, unit="ratio to the block before"),),
            message=f"from {stack[0].path} to {stack[-1].path} the residual stream grows {total:.3g}-fold, by a factor "
            f"of {value:.3g} in the {'median' if severity == 'info' else 'lower quartile'} block (bound {bound:.3g})",
            excess=typical,
        )


def _stream(*sizes: float) -> list[Place]:
    return [at(f"layers.{place}:residual.block", residual_rms=size) for place, size in enumerate(sizes)]


NUM607 = Rule(
    code="NUM607",
    name="residual stream grows with every block",
    needs=(Need(kind="residual", stat="residual_rms"),),
    measures="the rms of every block's output beside the block before, in stacks of at least four blocks",
    severities=("warning", "info"),
    severity="warning where three quarters of the blocks make it larger by more than 1.75; info above 1 + 2/n in the "
    "median and 4n in all, which trained models reach",
    bounds={"blocks": 4, "ratio": 1.75, "growth": 4.0},
    bound="branches of one size make a stream of n blocks grow n-fold at most, where all point one way: 1, 2, 3, ..., "
    "by 1 + 2/n in the median block and n/(n - 1) in the last, 1.33 of four. Independent ones, as at initialisation, "
    "make sqrt(n). A stream that starts small, or norms behind the branches, make the first blocks' ratios large and "
    "not the last ones'. Where three quarters of the blocks add three quarters, branches grow with the stream that "
    "they read: without norms a gain of g makes 1 + g or more. Trained pre-norm models grow by 1.05 (GPT-2 XL) to "
    "about 1.2 a block; 1.54 in the slowest of four blocks is the most that was measured on a healthy small one (its "
    "lower half frozen).",
    why="Where a branch is as large as what it reads, the stream grows exponentially: it overflows in a deep model, "
    "later blocks drown earlier ones, and one learning rate cannot serve both.",
    advice=(
        "Put a norm in front of every branch (pre-norm).",
        "Lower the init scale of the branches' output projections, by 1/sqrt(2 * blocks) as in GPT-2.",
    ),
    change=Change("norm.placement", "pre"),
    explains=(
        "ACT101",
        "ATT301",
        "ATT303",
        "ATT304",
        "OUT401",
        "OUT402",
        "OUT403",
        "GRD501",
        "GRD502",
        "NUM601",
        "NUM602",
        "NUM608",
        "RUN801",
    ),
    claims=("C02", "C36"),
    try_command="evenkeel rules NUM607",
    source="Xiong et al. 2020; Radford et al. 2019, section 2.3; Heimersheim and Turner 2023, Residual stream norms "
    "grow exponentially over the forward pass; bound derived here",
    firing=(
        example("no norm, and branches three times their input", *_stream(1.0, 3.2, 10.0, 33.0, 104.0)),
        example("a trained stack that grows by more than its share", *_stream(1.0, 1.5, 3.5, 8.0, 19.0, 28.0)),
    ),
    silent=(
        example("a pre-norm stack", *_stream(1.0, 1.41, 1.73, 2.0, 2.24)),
        example("branches that all point one way", *_stream(1.0, 2.0, 3.0, 4.0)),
        example("one jump, from a small embedding", *_stream(0.02, 1.1, 1.5, 1.8, 2.1, 2.4)),
        example("a post-norm stack", *_stream(1.0, 1.0, 1.0, 1.0)),
    ),
    judge=_judge_growing,
)


def _judge_massive(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        ratio, share = (measurements.value(site, stat) for stat in ("residual_absmax_ratio", "top_channel_share"))
        known = math.isfinite(ratio)
        if not (known and ratio >= bounds["massive"]) and share < bounds["share"]:
            continue
        beyond = known and ratio > bounds["beyond"]
        yield Case(
            severity="warning" if beyond else "info",
            sites=(site,),
            evidence=(
                Evidence(
                    stat="residual_absmax_ratio",
                    value=ratio,
                    bound=bounds["beyond"] if beyond else bounds["massive"],
                    unit="times the median",
                ),
                Evidence(
                    stat="top_channel_share", value=share, bound=bounds["share"], unit="share of a token's energy"
                ),
            ),
            message=f"behind {site.path} the largest value is {ratio:,.0f} times the median one, and one channel holds "
            f"{share:.1%} of a token's energy" + ("" if beyond else "; trained models have such channels"),
            excess=ratio,
        )


NUM608 = Rule(
    code="NUM608",
    name="massive activation",
    needs=(
        Need(kind="residual", stat="residual_absmax_ratio"),
        Need(kind="residual", stat="top_channel_share"),
    ),
    measures="behind every block, the largest |x| over the median |x|, and the largest mean share of one channel in a "
    "token's energy",
    severities=("warning", "info"),
    severity="info from 1,000 times the median or half of the energy on, warning above a million times",
    bounds={"massive": 1000.0, "share": 0.5, "beyond": 1e6},
    bound="1,000 times the median is what Sun et al. call massive; the trained models they read reach 100,000 in a few "
    "channels of a few tokens and work. A million is ten times that: squared it is 2^40 times a usual value, so that "
    "in a norm's float32 sum of squares nothing else counts. Half of the energy: single channels that hold it are "
    "known of GPT-2, RoBERTa and XLNet. At random weights the largest of a million values is 7 times the median. "
    "Where the median is 0, as behind a ReLU, the ratio says nothing.",
    why="A norm divides every other channel by the one that is massive, and low precision rounds them away: formats of "
    "8 bits cannot hold both, float16 overflows.",
    advice=(
        "Look at what writes the channel: an output projection or a norm's gain with one entry far larger than others.",
        "Keep the residual stream and the norms in float32; quantise such channels apart.",
        "When training anew: attention sinks of their own (learned sinks, gated heads) leave no need for them.",
    ),
    explains=("NUM602",),
    claims=("C22",),
    try_command="evenkeel rules NUM608",
    source="Sun et al. 2024, Massive Activations in Large Language Models; Timkey and van Schijndel 2021, All Bark and "
    "No Bite",
    firing=(
        example(
            "a channel of LLaMA-2's size",
            at("layers.2:residual.block", residual_absmax_ratio=9000.0, top_channel_share=0.02),
        ),
        example(
            "an output projection with a row of 1e7",
            at("layers.2:residual.block", residual_absmax_ratio=4e7, top_channel_share=1.0),
        ),
        example(
            "a channel that is large for every token",
            at("layers.2:residual.block", residual_absmax_ratio=80.0, top_channel_share=0.97),
        ),
    ),
    silent=(
        example(
            "a stream at initialisation",
            at("layers.2:residual.block", residual_absmax_ratio=6.5, top_channel_share=0.03),
        ),
        example(
            "a block that ends in a ReLU: more than half of it is 0",
            at("stages.1:residual.block", residual_absmax_ratio=math.inf, top_channel_share=0.2),
        ),
    ),
    judge=_judge_massive,
)


_PARTS: tuple[tuple[SiteKind, ...], ...] = (("attention", "recurrence"), ("activation", "gate", "router"))


def _holds(block: Site, paths: list[str]) -> bool:
    return any(lies_in(path, block.path) for path in paths)


def _lost_before_feeding(measurements: Measurements, block: Site) -> bool:
    """Whether the block's input is gone already between its attention and its feed-forward: no norm reads it there.

    A norm that reads no stream in a block that does carry its input stands on a branch, and says nothing.
    """
    sound = [site.path for site in measurements.of_kind("residual") if measurements.value(site, "carries_input")]
    on_a_branch = {
        block.path + norm.path.removeprefix(known)
        for known in sound
        for norm in measurements.of_kind("norm")
        if lies_in(norm.path, known) and measurements.value(norm, "reads_stream") == 0
    }
    inside = [site for site in measurements.sites if lies_in(site.path, block.path) and site.path not in on_a_branch]
    mixers = [place for place, site in enumerate(inside) if site.kind in _PARTS[0]]
    behind = inside[mixers[-1] + 1 :] if mixers else []
    until = next((place for place, site in enumerate(behind) if site.kind in _PARTS[1]), len(behind))
    reads = [measurements.value(site, "reads_stream") for site in behind[:until] if site.kind == "norm"]
    return len(reads) > 0 and max(reads) == 0


def _judge_cut(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    mixing, feeding = ([site.path for kind in kinds for site in measurements.of_kind(kind)] for kinds in _PARTS)
    for site in sites:
        carries, cosine = (measurements.value(site, stat) for stat in ("carries_input", "input_cosine"))
        if carries or abs(cosine) >= bounds["cosine"]:
            continue
        whole = _holds(site, mixing) and _holds(site, feeding)
        branch = "attention" if _lost_before_feeding(measurements, site) else "feed-forward"
        if mixing and not whole:
            continue  # a branch that stands in a list of its own: its sum may be anywhere around it
        yield Case(
            severity="warning" if whole else "info",
            sites=(site,),
            evidence=(
                Evidence(stat="carries_input", value=carries, bound=1.0, unit="1"),
                Evidence(stat="input_cosine", value=cosine, bound=bounds["cosine"], unit="1"),
            ),
            message=f"no sum leads from the input of {site.path} to its output, and they have a cosine of {cosine:.2g} "
            f"(bound {bounds['cosine']:.2g}): "
            + (f"its {branch} has no residual connection" if whole else "it has no residual connection"),
            excess=-abs(cosine),
            change=Change("attention.residual", True) if branch == "attention" else None,
        )


ARC704 = Rule(
    code="ARC704",
    name="block without a residual branch",
    needs=(Need(kind="residual", stat="carries_input"), Need(kind="residual", stat="input_cosine")),
    measures="whether a way of elementwise functions (sums, norms, dropout, scales) leads from a block's input to its "
    "output, and the cosine between the two",
    severities=("warning", "info"),
    severity="warning for a block that mixes tokens and feeds forward, info in a model of which no part mixes tokens",
    bounds={"cosine": 0.5},
    bound="no such way, and a cosine below 0.5: what the output holds of the input's direction is then less than a "
    "quarter of its energy. A residual sum is such a way whatever its norms and wherever they stand, also in parallel "
    "and recurrent blocks; linear maps, products with weights and attention are none. A call whose inside is not seen "
    "counts as a way. Left out are blocks that change the shape of their input, and layers that are only one branch of "
    "a block: their sum may stand outside.",
    why="Attention without a skip connection loses rank with depth doubly exponentially: all tokens become one. And a "
    "gradient must pass every block's maps instead of passing by.",
    advice=(
        "Give every branch a residual connection: x + f(norm(x)).",
        "Where the connection is left out on purpose, keep the signal with weights near the identity (deep kernel "
        "shaping).",
    ),
    change=Change("feedforward.residual", True),
    explains=("ATT302", "GRD501", "GRD502", "NUM606", "OUT403", "RUN801"),
    claims=("C02", "C36"),
    try_command="evenkeel demo",
    source="Dong, Cordonnier and Loukas 2021, Attention Is Not All You Need; He et al. 2016; bound derived here",
    firing=(
        example(
            "x = f(norm(x)) behind attention",
            at("layers.0.attn:attention.softmax"),
            at("layers.0.mlp:activation.gelu"),
            at("layers.0:residual.block", carries_input=0.0, input_cosine=0.03),
        ),
        example(
            "an attention whose sum was left out",
            at("layers.0.attn:attention.softmax"),
            at("layers.0.norm2:norm.rms_norm", reads_stream=0.0),
            at("layers.0.mlp:activation.gelu"),
            at("layers.0:residual.block", carries_input=0.0, input_cosine=0.03),
        ),
        example("a stack of plain layers", at("layers.0:residual.block", carries_input=0.0, input_cosine=-0.1)),
    ),
    silent=(
        example(
            "a first block behind a tiny embedding",
            at("layers.0.attn:attention.softmax"),
            at("layers.0:residual.block", carries_input=1.0, input_cosine=0.02),
        ),
        example(
            "a sum that no call shows",
            at("layers.0.attn:attention.softmax"),
            at("layers.0.mlp:activation.gelu"),
            at("layers.0:residual.block", carries_input=0.0, input_cosine=0.92),
        ),
        example(
            "branches in lists of their own",
            at("attentions.0:attention.softmax"),
            at("attentions.0:residual.block", carries_input=0.0, input_cosine=0.03),
            at("feeds.0:activation.gelu"),
            at("feeds.0:residual.block", carries_input=0.0, input_cosine=0.03),
        ),
    ),
    judge=_judge_cut,
)
