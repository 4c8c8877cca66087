"""ATT303, ATT304: attention scores of the wrong size."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..precision import FORMATS
from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._training import has_learned

_SINK = 0.5  # a head that rests on the first key most of the time is idle


def _judge_large(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    learned = has_learned(measurements, before=True)
    for site in sites:
        (first, logits), (last, latest) = (measurements.history(site, "max_logit")[place] for place in (0, -1))
        heights = _heights(measurements, site, last, latest)
        height, stat = max(heights)
        if height <= bounds["clipped"]:
            yield from _rounded(measurements, site, bounds)
            continue
        at_first, _ = max(_heights(measurements, site, first, logits))
        kept = bounds["clipped"] < at_first and height <= min(bounds["grown"] * at_first, bounds["unclipped"])
        had_them = bool(learned) and kept
        bound = bounds["diverges"] if height > bounds["diverges"] else bounds["clipped"]
        head = heights.index((height, stat))
        above = f", {height:,.4g} above the mean of its row" if stat == "max_logit_rise" else ""
        yield Case(
            severity="error" if height > bounds["diverges"] else "info" if had_them else "warning",
            sites=(site,),
            evidence=(Evidence(stat=stat, value=height, bound=bound, unit="nats"),),
            message=f"attention {site.path}: the largest attention logit is {latest[head]:,.4g} in head {head}{above} "
            f"(bound {bound:,.0f})"
            + (f": the scores overflow {measurements.model.dtype}" if math.isinf(height) else "")
            + ("; the model had learned when it was first measured, with logits of this size" if had_them else ""),
            excess=height,
        )


def _heights(measurements: Measurements, site: Site, step: int, logits: tuple[float, ...]) -> list[tuple[float, str]]:
    """Per head, how far the scores of a step rise, and which stat says so.

    Above the row's mean, or above 0 less what positions add: the smaller of the two.
    """
    rises, added = (dict(measurements.history(site, stat)).get(step, ()) for stat in ("max_logit_rise", "added_max"))
    offset = max((0.0, *added))
    without = [(logit - offset, "max_logit") for logit in logits]
    above = [(rise, "max_logit_rise") for rise in rises]
    return [min(pair) for pair in zip(without, above, strict=True)] if above else without


def _rounded(measurements: Measurements, site: Site, bounds: Bounds) -> Iterator[Case]:
    """Scores that are large only by what a row shares: the softmax ignores it, a narrow format does not."""
    dtype, logits = measurements.model.dtype, measurements.values(site, "max_logit")
    largest = max(logits)
    bound = 2 * bounds["rounding"] / FORMATS[dtype].epsilon if dtype in FORMATS else math.inf
    if max(bound, bounds["clipped"]) <= largest and measurements.values(site, "max_logit_rise"):
        yield Case(
            severity="info",
            sites=(site,),
            evidence=(Evidence(stat="max_logit", value=largest, bound=bound, unit="nats"),),
            message=f"attention {site.path}: the logits of head {logits.index(largest)} reach {largest:,.4g} by what "
            f"all keys of a row share, which the softmax ignores; scores held in {dtype} are rounded by "
            f"{bounds['rounding']} nats or more from {bound:,.0f} on",
            excess=0,
        )


ATT303 = Rule(
    code="ATT303",
    name="attention logits too large",
    needs=(Need(kind="attention", stat="max_logit"),),
    measures="per head, the largest attention logit (scale and mask included) over all visible pairs, and how far the "
    "logits of a row rise above their mean",
    severities=("error", "warning", "info"),
    severity="error above 10,000, where scores that overflow count as infinite; warning above 100; info where the "
    "model had learned before it was first measured, with logits from 100 to 1,000 that have not doubled since, and "
    "where logits are large only by what all keys of a row share and the model's dtype rounds them by half a nat",
    bounds={"diverges": 10000.0, "clipped": 100.0, "unclipped": 1000.0, "grown": 2.0, "rounding": 0.5},
    bound="10,000: every run whose largest logit passed it diverged (Wortsman et al. 2023). 100: the level at which "
    "Kimi K2's QK-clip and Megatron's hold them; without it they passed 1,000. A shift that all keys of a query share, "
    "as q·b of a bias b on keys (Qwen2, Phi-2; Kimi K2 has none), changes nothing: softmax(s + c) = softmax(s). Judged "
    "is therefore what a logit has above the mean of its row, or, where that is less, what it has without the largest "
    "value that positions add (ALiBi). A shift still costs precision where scores are held in 16 bits: half the "
    "spacing is 0.5 nats at 128 in bfloat16, at 1,024 in float16; fused kernels hold them in float32. What a trained "
    "model has when it is first seen did not keep it from learning; a run tells whether it grows.",
    why="Logits that grow without limit turn the softmax into a hard choice, cost precision (in bfloat16 neighbours "
    "lie 0.5 apart at 100) and precede divergence.",
    advice=(
        "Normalise queries and keys per head (QK-norm): it cures logit growth at every size tested.",
        "Clip the growth of the query and key projections at 100 (QK-clip).",
        "Scale scores by 1/sqrt(d_k); lower the learning rate; add weight decay.",
    ),
    change=Change("attention.qk_norm", True),
    explains=("ATT301", "NUM601", "OUT403"),
    claims=("C15", "C17"),
    try_command="evenkeel rules ATT303",
    source="Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities; Kimi K2 "
    "technical report 2025",
    firing=(
        example("a run about to diverge", at("layers.5.attn:attention.softmax", max_logit=(14.0, 23000.0))),
        example("scores that overflow", at("layers.5.attn:attention.softmax", max_logit=math.inf), dtype="float16"),
        example("growing logits", at("layers.5.attn:attention.softmax", max_logit=(180.0, 60.0))),
        example(
            "a trained model, seen for the first time",
            at("layers.5.attn:attention.softmax", max_logit=(180.0, 60.0), max_logit_rise=(170.0, 40.0)),
            at("lm_head:head.softmax", loss=2.4, classes=256.0),
        ),
        example(
            "a key bias in bfloat16",
            at("layers.5.attn:attention.softmax", max_logit=(420.0, 60.0), max_logit_rise=(22.0, 40.0)),
            dtype="bfloat16",
        ),
    ),
    silent=(
        example("a trained layer", at("layers.5.attn:attention.softmax", max_logit=(12.0, 31.0))),
        example(
            "ALiBi's bias over 1,024 keys",
            at("layers.5.attn:attention.softmax", max_logit=(257.0, 66.0), added_max=255.75),
        ),
        example(
            "a key bias that shifts all scores of a row",
            at("layers.5.attn:attention.softmax", max_logit=(420.0, 60.0), max_logit_rise=(22.0, 40.0)),
        ),
    ),
    judge=_judge_large,
)


_SPREAD = ("score_std", "entropy", "entropy_relative", "sink_mass")


def _judge_spread(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    learned = has_learned(measurements, before=True)
    for site in sites:
        if not _wide_heads(bounds, *(measurements.history(site, stat)[0][1] for stat in _SPREAD)):
            continue  # it began well: what a run sharpens later, it has learned
        spread, entropy, relative, sink = (measurements.values(site, stat) for stat in _SPREAD)
        heads = _wide_heads(bounds, spread, entropy, relative, sink)
        if not heads:
            continue
        points = [_condensation(*pair) for pair in zip(entropy, relative, strict=True)]
        widest = max(heads, key=lambda head: spread[head] / points[head])
        yield Case(
            severity="info" if learned else "warning",
            sites=(site,),
            evidence=(
                Evidence(stat="score_std", value=spread[widest], bound=points[widest], unit="nats"),
                Evidence(
                    stat="entropy_relative",
                    value=relative[widest],
                    bound=bounds["relative_entropy"],
                    unit="share of log(visible keys)",
                ),
            ),
            message=f"attention {site.path}: scores spread by {spread[widest]:.3g} (bound {points[widest]:.3g} for "
            f"this many keys) in {len(heads)} of {len(spread)} heads; with unit-variance queries and keys, scaling by "
            f"1/sqrt(d_k) gives 1, and none gives sqrt(d_k)"
            + ("; the model had learned when it was first measured, so it may have sharpened them" if learned else ""),
            excess=spread[widest] / points[widest],
        )


def _wide_heads(bounds: Bounds, *stats: tuple[float, ...]) -> list[int]:
    """The heads past the condensation point, if they are three quarters of the layer; else none."""
    heads = [
        head
        for head, (spread, entropy, relative, sink) in enumerate(zip(*stats, strict=True))
        if spread > _condensation(entropy, relative) and relative < bounds["relative_entropy"] and sink < _SINK
    ]
    return heads if len(heads) >= bounds["heads"] * len(stats[0]) else []


def _condensation(entropy: float, relative: float) -> float:
    """√(2·ln n), with ln n read back from an entropy and its share of it."""
    return math.sqrt(2 * entropy / relative) if relative > 0 else 0.0


ATT304 = Rule(
    code="ATT304",
    name="score variance off",
    needs=(
        Need(kind="attention", stat="entropy_relative"),
        Need(kind="attention", stat="score_std"),
        Need(kind="attention", stat="entropy"),
        Need(kind="attention", stat="sink_mass"),
    ),
    measures="per head, the standard deviation of the attention scores over all visible pairs, beside the entropy",
    severities=("warning", "info"),
    severity="warning; info where the model had learned before it was first measured (its loss was a tenth below that "
    "of guessing), for what training sharpened is not to be told from a wrong scale",
    bounds={"relative_entropy": 0.35, "heads": 0.75},
    bound="sqrt(2 ln n) for n visible keys, together with a relative entropy below 0.35, in three quarters of the "
    "heads of a layer. Independent Gaussian scores wider than sqrt(2 ln n) condense: the softmax falls onto a handful "
    "of keys however many there are (the freezing transition of Derrida's random energy model). n = 128: 3.1; n = "
    "1024: 3.7. Without scaling, unit-variance queries and keys give sqrt(d_k): 5.7 at d_k = 32, 8 at 64. Learning "
    "sharpens some heads, a wrong scale all of them, and from the start: in a run the first measured step must show it "
    "as well as the latest.",
    why="Scores this wide make the weights nearly one-hot before anything is learned, and the gradient to queries and "
    "keys vanishes with 1 - sum p^2.",
    advice=(
        "Scale scores by 1/sqrt(d_k); T5 folds that factor into the init of the query projection instead.",
        "Normalise queries and keys per head (QK-norm).",
        "Lower the init scale of the query and key projections.",
    ),
    change=Change("attention.scale", "sqrt"),
    explains=("ATT301", "ATT303", "OUT403"),
    claims=("C14", "C15", "C17", "C19"),
    try_command="evenkeel demo",
    source="Vaswani et al. 2017, section 3.2.1; Derrida 1981, Random-energy model",
    firing=(
        example(
            "unscaled scores at d_k = 32 over 128 keys",
            at(
                "layers.0.attn:attention.softmax",
                score_std=(5.7, 5.6, 5.9, 5.5),
                entropy=(0.94, 0.97, 0.9, 1.0),
                entropy_relative=(0.23, 0.24, 0.22, 0.25),
                sink_mass=(0.04, 0.03, 0.04, 0.05),
            ),
        ),
        example(
            "a trained model, seen for the first time, all of whose heads are sharp",
            at(
                "layers.0.attn:attention.softmax",
                score_std=(5.7, 5.6, 5.9, 5.5),
                entropy=(0.94, 0.97, 0.9, 1.0),
                entropy_relative=(0.23, 0.24, 0.22, 0.25),
                sink_mass=(0.04, 0.03, 0.04, 0.05),
            ),
            at("lm_head:head.softmax", loss=2.4, classes=256.0),
        ),
    ),
    silent=(
        example(
            "scaled scores",
            at(
                "layers.0.attn:attention.softmax",
                score_std=(1.0, 0.9, 1.1, 1.0),
                entropy=(3.7, 3.8, 3.6, 3.7),
                entropy_relative=(0.9, 0.92, 0.88, 0.9),
                sink_mass=(0.04, 0.03, 0.04, 0.05),
            ),
        ),
        example(
            "heads that a run has sharpened from a good start",
            at(
                "layers.0.attn:attention.softmax",
                score_std=(1.0, 0.9),
                entropy=(3.7, 3.8),
                entropy_relative=(0.9, 0.92),
                sink_mass=(0.04, 0.03),
            ),
            at(
                "layers.0.attn:attention.softmax",
                step=180,
                score_std=(6.7, 5.6),
                entropy=(0.94, 0.97),
                entropy_relative=(0.23, 0.24),
                sink_mass=(0.04, 0.03),
            ),
        ),
        example(
            "two sharp heads in a trained layer",
            at(
                "layers.0.attn:attention.softmax",
                score_std=(5.0, 4.4, 1.9, 2.2),
                entropy=(0.8, 1.0, 2.5, 2.2),
                entropy_relative=(0.2, 0.25, 0.6, 0.5),
                sink_mass=(0.04, 0.03, 0.04, 0.3),
            ),
        ),
    ),
    judge=_judge_spread,
)
