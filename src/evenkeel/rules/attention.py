"""ATT3xx: attention that has collapsed, stays uniform, or has scores of the wrong size."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Case, Need, Rule

# A row with 99% of its weight on one of n keys has an entropy of at most 0.056 + 0.01·ln n nats: 0.02 of ln n or less
# from n = 270 on, 0.024 at n = 64; and its 1 − Σp² is at most 1 − 0.99² = 0.02.
_ONE_KEY = 0.02
_COLLAPSED_HEADS = 0.5  # single peaked heads (previous token, separator) are at home in every trained model
_SINK = 0.5  # a head that rests on the first key most of the time is idle, not collapsed
_NO_GRADIENT = 2.0**-23  # float32's spacing at 1: a softmax Jacobian with this trace is rounding error

# Scores with a small spread s lower the relative entropy by s²/(2·ln n): 0.002 is s = 0.17 at n = 1024, where strongly
# and weakly weighted keys (two standard deviations either way) differ by less than a factor of 2.
_UNIFORM = 0.998
_LEARNED = 0.9  # the loss has come down by a tenth: the model has learned, and this attention has not

_DIVERGES = 1e4
_CLIPPED = 100.0

# At their condensation point √(2·ln n), Gaussian scores have a relative entropy of 0.52 (n = 16), 0.42 (128), 0.35
# (4096): below 0.35 they are past it for every n up to 4096.
_CONDENSED = 0.35
_WIDE_HEADS = 0.75  # a missing scale spreads the scores of all heads; learning sharpens some of them

_HEADS = Need(kind="attention", stat="entropy_relative")


def _judge_collapsed(measurements: Measurements, sites: tuple[Site, ...]) -> Iterator[Case]:
    for site in sites:
        relative, gain, sink = (
            measurements.values(site, stat) for stat in ("entropy_relative", "softmax_gain", "sink_mass")
        )
        heads = [
            head
            for head in range(len(relative))
            if relative[head] < _ONE_KEY and gain[head] < _ONE_KEY and sink[head] < _SINK
        ]
        if len(heads) < _COLLAPSED_HEADS * len(relative):
            continue
        stopped = max(gain) < _NO_GRADIENT
        lowest = min(relative[head] for head in heads)
        yield Case(
            severity="error" if stopped else "warning",
            sites=(site,),
            evidence=(
                Evidence(stat="entropy_relative", value=lowest, bound=_ONE_KEY, unit="share of log(visible keys)"),
                Evidence(
                    stat="softmax_gain", value=min(gain[head] for head in heads), bound=_ONE_KEY, unit="1 - sum p^2"
                ),
            ),
            message=f"attention {site.path}: {len(heads)} of {len(relative)} heads put about all weight on one key per "
            f"query: relative entropy down to {lowest:.2g} (bound {_ONE_KEY}, half of the heads)"
            + (", and the softmax passes no gradient" if stopped else ""),
            excess=len(heads) / len(relative) - lowest,
        )


ATT301 = Rule(
    code="ATT301",
    name="attention collapsed",
    needs=(
        _HEADS,
        Need(kind="attention", stat="softmax_gain"),
        Need(kind="attention", stat="sink_mass"),
    ),
    measures="per head, the entropy of the attention weights relative to log(visible keys), and the softmax's gain "
    "1 - sum p^2",
    severities=(
        "error",
        "warning",
    ),
    severity="error where no head's softmax passes a gradient in float32, else warning",
    bound="relative entropy and gain both below 0.02 in at least half of the heads of a layer, heads that rest on the "
    "first key left out. 0.02 is a row with 99% of its weight on one key: gain 1 - 0.99^2, entropy at most 0.056 + "
    "0.01 ln n nats. Every trained model has single heads of that kind (previous token, separator), and attention "
    "sinks; half of a layer is neither.",
    why="The softmax's Jacobian diag(p) - p p^T has trace 1 - sum p^2: with all weight on one key no gradient reaches "
    "queries and keys, so the choice can no longer be unlearned. Entropy collapse goes with divergence.",
    advice=(
        "Normalise queries and keys per head (QK-norm).",
        "Scale scores by 1/sqrt(d_k).",
        "Lower the learning rate of the query and key projections, or clip their growth (QK-clip).",
    ),
    change=Change("attention.qk_norm", True),
    claims=("C15", "C17", "C41"),
    try_command="evenkeel demo",
    source="Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse; bound derived "
    "here",
    firing=(
        example(
            "query weights scaled by 100",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.004, 0.011, 0.009, 0.3),
                softmax_gain=(0.003, 0.008, 0.007, 0.4),
                sink_mass=(0.02, 0.05, 0.01, 0.2),
            ),
        ),
    ),
    silent=(
        example(
            "one previous-token head among others",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.01, 0.4, 0.6, 0.8),
                softmax_gain=(0.01, 0.7, 0.9, 0.95),
                sink_mass=(0.01, 0.1, 0.2, 0.05),
            ),
        ),
        example(
            "a layer of attention sinks",
            at(
                "layers.3.attn:attention.softmax",
                entropy_relative=(0.01, 0.015, 0.012, 0.3),
                softmax_gain=(0.01, 0.012, 0.011, 0.4),
                sink_mass=(0.99, 0.99, 0.99, 0.7),
            ),
        ),
    ),
    judge=_judge_collapsed,
)


def _has_learned(measurements: Measurements) -> bool:
    losses = [entry.loss for entry in measurements.log if entry.loss is not None and math.isfinite(entry.loss)]
    return len(losses) > 1 and losses[-1] < _LEARNED * losses[0]


def _judge_uniform(measurements: Measurements, sites: tuple[Site, ...]) -> Iterator[Case]:
    learned = _has_learned(measurements)
    for site in sites:
        relative = measurements.values(site, "entropy_relative")
        if min(relative) <= _UNIFORM:
            continue
        spread = max(measurements.values(site, "score_std"))
        yield Case(
            severity="warning" if learned else "info",
            sites=(site,),
            evidence=(
                Evidence(
                    stat="entropy_relative", value=min(relative), bound=_UNIFORM, unit="share of log(visible keys)"
                ),
            ),
            message=f"attention {site.path}: every head averages over all visible keys (relative entropy at least "
            f"{min(relative):.4f}, bound {_UNIFORM}; score deviation at most {spread:.2g})"
            + (", though the loss has come down" if learned else "; normal at initialisation"),
            excess=min(relative) - _UNIFORM,
        )


ATT302 = Rule(
    code="ATT302",
    name="attention uniform",
    needs=(_HEADS, Need(kind="attention", stat="score_std")),
    measures="per head, the entropy of the attention weights relative to log(visible keys)",
    severities=(
        "warning",
        "info",
    ),
    severity="info; warning in a run whose loss has come down by a tenth or more",
    bound="relative entropy above 0.998 in every head of a layer. Scores of spread s lower it by s^2 / (2 ln n), so "
    "s < 0.17 at n = 1024: strongly and weakly weighted keys (two standard deviations either way) then differ by less "
    "than a factor of 2. At GPT-2's own init the scaled scores have a variance of 6/64: near uniform, and meant so.",
    why="Attention that weighs all keys alike is a running mean: it moves no information from one place to another, "
    "and its queries and keys learn slowly.",
    advice=(
        "Scale scores by 1/sqrt(d_k) rather than 1/d_k, unless the learning rate was tuned for it (muP).",
        "Raise the init scale or the learning rate of the query and key projections.",
    ),
    change=Change("attention.scale", "sqrt"),
    claims=("C16", "C17", "C18"),
    try_command="evenkeel rules ATT302",
    source="expansion of the entropy at small spread, derived here; Vaswani et al. 2017",
    firing=(
        example(
            "scores divided by d_k once too often",
            at("layers.0.attn:attention.softmax", entropy_relative=(0.9991, 0.9995), score_std=(0.11, 0.08)),
        ),
    ),
    silent=(
        example(
            "one broad head beside sharper ones",
            at("layers.0.attn:attention.softmax", entropy_relative=(0.9991, 0.81), score_std=(0.11, 1.4)),
        ),
    ),
    judge=_judge_uniform,
)


def _judge_large(measurements: Measurements, sites: tuple[Site, ...]) -> Iterator[Case]:
    for site in sites:
        logits = measurements.values(site, "max_logit")
        largest = max(logits)
        if largest <= _CLIPPED:
            continue
        bound = _DIVERGES if largest > _DIVERGES else _CLIPPED
        yield Case(
            severity="error" if largest > _DIVERGES else "warning",
            sites=(site,),
            evidence=(Evidence(stat="max_logit", value=largest, bound=bound, unit="nats"),),
            message=f"attention {site.path}: the largest attention logit is {largest:,.4g} in head "
            f"{logits.index(largest)} (bound {bound:,.0f})",
            excess=largest,
        )


ATT303 = Rule(
    code="ATT303",
    name="attention logits too large",
    needs=(Need(kind="attention", stat="max_logit"),),
    measures="per head, the largest attention logit (scale and mask included) over all visible pairs",
    severities=(
        "error",
        "warning",
    ),
    severity="error above 10,000, warning above 100",
    bound="10,000: every run whose largest logit passed it diverged (Wortsman et al. 2023). 100: the level at which "
    "Kimi K2's QK-clip and Megatron's hold them; without it they passed 1,000.",
    why="Logits that grow without limit turn the softmax into a hard choice, cost precision (in bfloat16 neighbours "
    "lie 0.5 apart at 100) and precede divergence.",
    advice=(
        "Normalise queries and keys per head (QK-norm): it cures logit growth at every size tested.",
        "Clip the growth of the query and key projections at 100 (QK-clip).",
        "Scale scores by 1/sqrt(d_k); lower the learning rate; add weight decay.",
    ),
    change=Change("attention.qk_norm", True),
    claims=("C15", "C17"),
    try_command="evenkeel rules ATT303",
    source="Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities; Kimi K2 "
    "technical report 2025",
    firing=(
        example("a run about to diverge", at("layers.5.attn:attention.softmax", max_logit=(14.0, 23000.0))),
        example("growing logits", at("layers.5.attn:attention.softmax", max_logit=(180.0, 60.0))),
    ),
    silent=(example("a trained layer", at("layers.5.attn:attention.softmax", max_logit=(12.0, 31.0))),),
    judge=_judge_large,
)


_SPREAD = ("score_std", "entropy", "entropy_relative", "sink_mass")


def _judge_spread(measurements: Measurements, sites: tuple[Site, ...]) -> Iterator[Case]:
    for site in sites:
        if not _wide_heads(*(measurements.history(site, stat)[0][1] for stat in _SPREAD)):
            continue  # it began well: what a run sharpens later, it has learned
        spread, entropy, relative, sink = (measurements.values(site, stat) for stat in _SPREAD)
        heads = _wide_heads(spread, entropy, relative, sink)
        if not heads:
            continue
        bounds = [_condensation(*pair) for pair in zip(entropy, relative, strict=True)]
        widest = max(heads, key=lambda head: spread[head] / bounds[head])
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(
                Evidence(stat="score_std", value=spread[widest], bound=bounds[widest], unit="nats"),
                Evidence(
                    stat="entropy_relative",
                    value=relative[widest],
                    bound=_CONDENSED,
                    unit="share of log(visible keys)",
                ),
            ),
            message=f"attention {site.path}: scores spread by {spread[widest]:.3g} (bound {bounds[widest]:.3g} for "
            f"this many keys) in {len(heads)} of {len(spread)} heads; with unit-variance queries and keys, scaling by "
            f"1/sqrt(d_k) gives 1, and none gives sqrt(d_k)",
            excess=spread[widest] / bounds[widest],
        )


def _wide_heads(*stats: tuple[float, ...]) -> list[int]:
    """The heads past the condensation point, if they are three quarters of the layer; else none."""
    heads = [
        head
        for head, (spread, entropy, relative, sink) in enumerate(zip(*stats, strict=True))
        if spread > _condensation(entropy, relative) and relative < _CONDENSED and sink < _SINK
    ]
    return heads if len(heads) >= _WIDE_HEADS * len(stats[0]) else []


def _condensation(entropy: float, relative: float) -> float:
    """√(2·ln n), with ln n read back from an entropy and its share of it."""
    return math.sqrt(2 * entropy / relative) if relative > 0 else 0.0


ATT304 = Rule(
    code="ATT304",
    name="score variance off",
    needs=(
        _HEADS,
        Need(kind="attention", stat="score_std"),
        Need(kind="attention", stat="entropy"),
        Need(kind="attention", stat="sink_mass"),
    ),
    measures="per head, the standard deviation of the attention scores over all visible pairs, beside the entropy",
    severities=("warning",),
    severity="warning",
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
