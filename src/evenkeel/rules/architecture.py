"""ARC7xx: choices of an architecture that are unusual before anything is measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

_SAME = 1e-3  # scales are computed in float32 and stored in configs with a few digits
_SATURATING = frozenset("sigmoid tanh hardsigmoid hardtanh softsign".split())
_SIGMOIDAL_GATES = frozenset(("glu", "gated_tanh", "gated_hardsigmoid"))


def _judge_scale(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        scale, dim = (measurements.value(site, stat) for stat in ("score_scale", "head_dim"))
        usual = 1 / math.sqrt(dim)
        by_dim = math.isclose(scale, 1 / dim, rel_tol=_SAME)
        if any(math.isclose(scale, rule, rel_tol=_SAME) for rule in (usual, 1.0)):
            continue
        spread = statistics.median(measurements.values(site, "score_std") or (math.nan,))
        made_up_for = scale < 1 / dim and spread >= bounds["spread"]
        outside = not (by_dim or 1 / dim < scale < 1 or made_up_for)
        yield Case(
            severity="warning" if outside else "info",
            sites=(site,),
            evidence=(Evidence(stat="score_scale", value=scale, bound=usual, unit="1"),),
            message=f"attention {site.path}: scores are multiplied by {scale:.4g}; at d = {dim:.0f} channels a head, "
            f"1/√d is {usual:.4g}, 1/d is {1 / dim:.4g}, and T5's is 1"
            + ("; 1/d is muP's and Granite's choice" if by_dim else "")
            + (f"; the scores' deviation is {spread:.2g} all the same" if made_up_for else ""),
            excess=abs(math.log(scale / usual)) if scale > 0 else math.inf,
        )


def _in_a_block(measurements: Measurements, site: Site) -> str | None:
    around = [item.path for item in measurements.of_kind("residual") if _within(site.path, item.path)]
    return max(around, key=len, default=None)


def _within(path: str, around: str) -> bool:
    return path == around or path.startswith(around + ".")


def _gates_at(measurements: Measurements, site: Site) -> list[Site]:
    """The gates in the same module as an activation, or around it inside its block."""
    block = _in_a_block(measurements, site)
    gates = measurements.of_kind("gate")
    return [gate for gate in gates if _within(site.path, gate.path) and (block is None or _within(gate.path, block))]


def _judge_saturating(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        channels, fan_in = (measurements.value(site, stat) for stat in ("channels", "fan_in"))
        block = _in_a_block(measurements, site)
        if not fan_in or block is None:
            continue
        if site.path != block and any(site.path == other.path for other in measurements.of_kind("attention")):
            continue  # called by an attention's own module, it bounds scores or values and is no hidden layer
        if any(gate.op in _SIGMOIDAL_GATES for gate in _gates_at(measurements, site)):
            continue
        narrow = channels < bounds["narrow"] * fan_in
        yield Case(
            severity="info" if narrow else "warning",
            sites=(site,),
            evidence=(Evidence(stat="channels", value=channels, bound=fan_in if narrow else 0, unit="channels"),),
            message=f"{site.path}: {site.op} is the hidden activation of {channels:.0f} channels"
            + (
                f", fewer than the {fan_in:.0f} that lead in: a bottleneck, no feed-forward's hidden layer"
                if narrow
                else ""
            ),
            excess=channels,
        )


def _judge_parity(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    routed = {_in_a_block(measurements, site) for site in measurements.of_kind("router")}
    for site in sites:
        channels, fan_in = (measurements.value(site, stat) for stat in ("channels", "fan_in"))
        block = _in_a_block(measurements, site)
        if not fan_in or block is None or block in routed:
            continue
        matrices = 3 if _gates_at(measurements, site) else 2
        parity = 8 / matrices
        ratio = channels / fan_in
        if abs(ratio / parity - 1) <= bounds["parity"]:
            continue
        yield Case(
            severity="info",
            sites=(site,),
            evidence=(Evidence(stat="channels", value=channels, bound=parity * fan_in, unit="channels"),),
            message=f"{site.path}: d_ff/d is {channels:.0f}/{fan_in:.0f} = {ratio:.3g}; {matrices} matrices hold as "
            f"many parameters as two at 4 where it is {parity:.3g}",
            excess=abs(math.log(ratio / parity)),
        )


_SHAPES = (Need(kind="activation", stat="channels"), Need(kind="activation", stat="fan_in"))

ARC701 = Rule(
    code="ARC701",
    name="attention scale of no rule",
    needs=(Need(kind="attention", stat="score_scale"), Need(kind="attention", stat="head_dim")),
    measures="what the products of queries and keys are multiplied by before the softmax, every factor on the way "
    "taken together, beside the channels d of a head",
    severities=("warning", "info"),
    severity="info; warning where the scale is above 1 or below 1/d",
    bounds={"spread": 0.5},
    bound="1/√d or 1, to 0.1%. 1/√d keeps the variance of independent products at 1 (Vaswani et al. 2017), and 1 is "
    "T5's, whose init holds the factor. 1/d suits queries and keys that align (muP, Granite) and makes attention "
    "nearly uniform until they do; Gemma 2's 1/√(d_model / heads) and YaRN's extra factor lie between 1/d and 1. All "
    "these are told as info; beyond both ends no released model is known. A scale below 1/d is info as well where the "
    "scores have a deviation of 0.5 and more, half of what 1/√d gives unit-variance queries and keys: then weights of "
    "unit variance are scaled on the way (unit scaling).",
    explains=("ATT301", "ATT302", "ATT303", "ATT304"),
    why="The scale sets how peaked attention is at initialisation: too large and the softmax is one-hot before "
    "anything is learned, too small and it is uniform.",
    advice=(
        "Check that the head dimension in the scale is the one that queries and keys have.",
        "Scale scores by 1/√d unless the init or the parametrisation says otherwise.",
    ),
    change=Change("attention.scale", "sqrt"),
    claims=("C15", "C16", "C17", "C19"),
    try_command="evenkeel rules ARC701",
    source="Vaswani et al. 2017, section 3.2.1; Yang et al. 2022, Tensor Programs V",
    firing=(
        example(
            "the scale of another head size", at("layers.0.attn:attention.softmax", score_scale=0.25, head_dim=64.0)
        ),
        example("scores multiplied by √d", at("layers.0.attn:attention.softmax", score_scale=8.0, head_dim=64.0)),
        example("1/d", at("layers.0.attn:attention.softmax", score_scale=0.015625, head_dim=64.0)),
        example(
            "unit scaling",
            at("layers.0.attn:attention.softmax", score_scale=0.0039, head_dim=16.0, score_std=(1.1, 0.9)),
        ),
    ),
    silent=(
        example("1/√d", at("layers.0.attn:attention.softmax", score_scale=0.125, head_dim=64.0)),
        example("T5", at("layers.0.attn:attention.softmax", score_scale=1.0, head_dim=64.0)),
    ),
    judge=_judge_scale,
)

ARC702 = Rule(
    code="ARC702",
    name="saturating hidden activation",
    needs=_SHAPES,
    applies=lambda site: site.op in _SATURATING,
    measures="which function a block's hidden layer applies to what its linear map gives, gates left out",
    severities=("warning", "info"),
    severity="warning; info where the channels are less than an eighth of those that lead into them",
    bounds={"narrow": 0.125},
    bound="sigmoid, tanh, hardsigmoid, hardtanh or softsign between two linear maps of a block. As gates, in routers "
    "and in recurrences they are at home; so they are in a module that is an attention and not the whole block, where "
    "they bound what is added to its scores (Swin v2). A feed-forward's hidden layer has 2.3 to 8 times its input's "
    "width in released models, and that of one expert among many a fifth and more (DeepSeek-V2 and V3); what is "
    "narrower than an eighth makes coefficients (the tanh of Gemma 3n's AltUp) or is a low-rank map, bounded on "
    "purpose.",
    explains=("ACT101", "ACT103", "GRD501"),
    why="Their gradient vanishes for large inputs of either sign, and in the field's comparisons they train to a "
    "worse loss than GELU, SiLU or ReLU (final loss 1.867 for sigmoid against 1.838, Narang et al. 2021).",
    advice=(
        "Use gelu, silu or relu2; with a gate, swiglu or geglu.",
        "Where the bounded output is wanted, bound the result and not the hidden layer.",
    ),
    change=Change("feedforward.activation", "gelu"),
    claims=("C02", "C05", "C38"),
    try_command="evenkeel demo",
    source="Glorot and Bengio 2010, section 3; Narang et al. 2021, table 1",
    firing=(
        example(
            "a sigmoid between two linear maps",
            at("layers.0.mlp:activation.sigmoid", channels=512.0, fan_in=128.0),
            at("layers.0:residual.block"),
        ),
        example(
            "coefficients of two streams",
            at("layers.0.mix:activation.tanh", channels=2.0, fan_in=128.0),
            at("layers.0:residual.block"),
        ),
    ),
    silent=(
        example(
            "the sigmoid of a gated linear unit",
            at("layers.0.mlp:activation.sigmoid", channels=512.0, fan_in=128.0),
            at("layers.0.mlp:gate.glu"),
            at("layers.0:residual.block"),
        ),
        example(
            "sixteen times a sigmoid of relative positions, added to the scores",
            at("layers.0.attn:activation.sigmoid", channels=4.0, fan_in=512.0),
            at("layers.0.attn:attention.softmax", entropy=(1.2, 1.3, 1.2, 1.1)),
            at("layers.0:residual.block"),
        ),
        example("a tanh behind the last block", at("pooler:activation.tanh", channels=128.0, fan_in=128.0)),
    ),
    judge=_judge_saturating,
)

ARC703 = Rule(
    code="ARC703",
    name="feed-forward size off parity",
    needs=_SHAPES,
    measures="d_ff/d of a feed-forward, beside the ratio at which it holds as many parameters as two matrices at 4; "
    "blocks with experts are left out",
    severities=("info",),
    severity="info",
    bounds={"parity": 0.05},
    bound="4 for two matrices and 8/3 for three, to 5% for rounding up to a multiple of 256. Released models run from "
    "2.3 to 8, so this is no fault: it says that a comparison with another form is not one of equal parameters.",
    why="Two architectures with feed-forwards of different sizes differ in parameters and compute as well as in form.",
    advice=("Compare at equal parameters: 4·d for two matrices, 8/3·d for three.",),
    claims=("C25", "C44"),
    try_command="evenkeel rules ARC703",
    source="Shazeer 2020, GLU Variants Improve Transformer, section 2",
    firing=(
        example(
            "a gated feed-forward at 4",
            at("layers.0.mlp.act:activation.silu", channels=512.0, fan_in=128.0),
            at("layers.0.mlp:gate.swiglu"),
            at("layers.0:residual.block"),
        ),
    ),
    silent=(
        example(
            "two matrices at 4",
            at("layers.0.mlp.act:activation.gelu", channels=512.0, fan_in=128.0),
            at("layers.0:residual.block"),
        ),
        example(
            "LLaMA-7B's 11008 of 4096",
            at("layers.0.mlp.act_fn:activation.silu", channels=11008.0, fan_in=4096.0),
            at("layers.0.mlp:gate.swiglu"),
            at("layers.0:residual.block"),
        ),
    ),
    judge=_judge_parity,
)
