"""OUT403 to OUT406: what a head's logits are to its loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from .head import drawn_at_random

_ECHOES = 0.5  # of the rows: no text repeats each token half of the time
_SOME_ROWS = 64  # a mean loss of rows that deviate by 2 nats then has a standard error of 0.25


def _judge_guessing(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    if measurements.data.kind == "random":
        return  # nothing can be known of random tokens, and a trained model is sure of the wrong ones
    for site in sites:
        loss, classes = (measurements.value(site, stat) for stat in ("loss", "classes"))
        bound = math.log(classes) + bounds["margin"]
        if loss <= bound:
            continue
        uniform, echoes = drawn_at_random(measurements, site), measurements.value(site, "echo_share") > _ECHOES
        yield Case(
            severity="info" if uniform or echoes else "warning",
            sites=(site,),
            evidence=(Evidence(stat="loss", value=loss, bound=bound, unit="nats"),),
            message=f"the loss of {site.path or 'the model'} is {loss:,.4g} nats; knowing nothing of {classes:,.0f} "
            f"classes costs {math.log(classes):.4g} (bound {bound:.4g})"
            + ("; the targets look drawn at random" if uniform else "")
            + ("; it repeats the token that it reads, as tied embeddings do at initialisation" if echoes else ""),
            excess=loss - bound,
        )


OUT403 = Rule(
    code="OUT403",
    name="worse than guessing",
    needs=(
        Need(kind="head", stat="loss"),
        Need(kind="head", stat="classes"),
        Need(kind="head", stat="target_entropy"),
        Need(kind="head", stat="tokens", at_least=_SOME_ROWS),
    ),
    measures="the mean loss beside log(classes), what equal probabilities for all classes cost; not judged on random "
    "tokens",
    severities=("warning", "info"),
    severity="warning; info where all classes are about equally frequent among the targets, as random tokens are, and "
    "where most rows choose the token that was just read, as wide models with tied embeddings do at initialisation",
    bounds={"margin": 1.0},
    bound="log(classes) + 1 nat. Logits that know nothing and deviate by s cost log(classes) + s²/2: an init that "
    "gives them unit variance costs half a nat more than guessing, and 1 nat is s = 1.41. Inits measured here lie at "
    "0.7 and below (T5 0.3, GPT-2 and LLaMA 0.1). At least 64 rows.",
    why="A head that is sure of what it cannot know spends the first part of training on unlearning it; later it means "
    "that the targets are not those that the model was trained for, or that the run has diverged.",
    advice=(
        "At the start: make the last layer's init smaller, so that all logits are near 0.",
        "Check that the targets are the tokens that the logits are about: shifted once, by this much, in this "
        "direction; padding ignored.",
        "Check that the tokenizer is the model's own, and that the weights were loaded.",
    ),
    claims=("C41",),
    try_command="evenkeel rules OUT403",
    source="E log Σ e^z = log n + s²/2 for normal logits of deviation s, derived here",
    firing=(
        example(
            "an unembedding of unit variance and width 64",
            at("lm_head:head.softmax", loss=37.1, classes=256.0, target_entropy=3.1, tokens=2048.0),
        ),
        example(
            "a trained model on targets drawn at random",
            at("lm_head:head.softmax", loss=11.0, classes=256.0, target_entropy=5.5, tokens=2048.0),
        ),
        example(
            "tied embeddings of deviation 0.02 and width 768 at initialisation",
            at("lm_head:head.softmax", loss=11.5, classes=256.0, target_entropy=3.1, echo_share=0.98, tokens=2048.0),
        ),
    ),
    silent=(
        example(
            "logits of unit variance at initialisation",
            at("lm_head:head.softmax", loss=6.05, classes=256.0, target_entropy=3.1, tokens=2048.0),
        ),
    ),
    judge=_judge_guessing,
)


def _judge_probabilities(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        share, classes = (measurements.value(site, stat) for stat in ("probability_share", "classes"))
        if share < bounds["share"]:
            continue
        least = math.log(1 + (classes - 1) / math.e)
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(Evidence(stat="probability_share", value=share, bound=bounds["share"], unit="share of rows"),),
            message=f"what {site.path or 'the model'} hands to its loss are probabilities already: {share:.0%} of the "
            f"rows lie in [0, 1] and sum to 1, so the loss of {classes:,.0f} classes cannot fall below {least:.3g} "
            "nats",
            excess=share,
        )


OUT404 = Rule(
    code="OUT404",
    name="probabilities as logits",
    needs=(
        Need(kind="head", stat="probability_share"),
        Need(kind="head", stat="classes"),
        Need(kind="head", stat="tokens", at_least=16),
    ),
    measures="the share of rows of logits whose entries lie in [0, 1] and sum to 1",
    severities=("warning",),
    severity="warning",
    bounds={"share": 0.99},
    bound="0.99 of an even sample of rows; the sum to 0.001, in narrow dtypes to four spacings at 1. That every row of "
    "free logits sums to 1 does not happen by chance. A softmax of probabilities is nearly uniform: its loss cannot "
    "fall below log(1 + (n - 1)/e), 4.55 nats of 5.55 for 256 classes.",
    why="The loss applies its own softmax. Applied twice, it squeezes all confidence into a factor of e, and gradients "
    "shrink with it: the model trains slowly, and stops far above what it could reach.",
    advice=(
        "Hand the logits to the loss, and apply softmax only to read probabilities.",
        "Where there are only probabilities, take their logarithm and use a negative log-likelihood loss.",
    ),
    explains=("OUT403",),
    claims=("C20",),
    try_command="evenkeel rules OUT404",
    source="bound derived here; torch.nn.CrossEntropyLoss, which takes unnormalised logits",
    firing=(
        example(
            "a softmax in front of the loss",
            at("lm_head:head.softmax", probability_share=1.0, classes=256.0, tokens=2048.0),
        ),
    ),
    silent=(
        example("logits", at("lm_head:head.softmax", probability_share=0.0, classes=256.0, tokens=2048.0)),
        example("too few rows", at("lm_head:head.softmax", probability_share=1.0, classes=2.0, tokens=4.0)),
    ),
    judge=_judge_probabilities,
)


def _judge_exclusive(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        classes, single = (measurements.value(site, stat) for stat in ("sigmoid_classes", "one_positive_share"))
        if classes < bounds["classes"] or single < bounds["single"]:
            continue
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(
                Evidence(stat="sigmoid_classes", value=classes, bound=bounds["classes"], unit="1"),
                Evidence(stat="one_positive_share", value=single, bound=bounds["single"], unit="share of rows"),
            ),
            message=f"the head of {site.path or 'the model'} judges {classes:,.0f} classes by a sigmoid each (bound "
            f"{bounds['classes']:.0f}), and {single:.1%} of the rows want exactly one of them",
            excess=classes,
        )


OUT405 = Rule(
    code="OUT405",
    name="sigmoids over exclusive classes",
    needs=(
        Need(kind="head", stat="sigmoid_classes"),
        Need(kind="head", stat="one_positive_share"),
        Need(kind="head", stat="sigmoid_rows", at_least=_SOME_ROWS),
    ),
    applies=lambda site: site.op == "sigmoid",
    measures="how many classes a head of independent sigmoids has, and the share of rows that want exactly one of them",
    severities=("warning",),
    severity="warning",
    bounds={"classes": 100.0, "single": 0.99},
    bound="100 classes, with exactly one wanted in 99% of the rows. Where all sigmoids begin at 1/2, each of the n - "
    "1 unwanted classes pulls as hard as the wanted one, which gets 1/n of the gradient: 1% at 100. Softmax gives it "
    "half. Rows with several wanted classes (multi-label, mixed images) are what sigmoids are for.",
    why="Classes that exclude each other share one unit of probability. Independent sigmoids do not know that: most of "
    "the early gradient says only that everything is rare, and the probabilities need not sum to 1.",
    advice=(
        "Use softmax cross-entropy over exclusive classes.",
        "Where sigmoids are wanted, begin with a bias of -log(n - 1), so that they sum to 1.",
    ),
    change=Change("head.kind", "softmax"),
    claims=("C34", "C35"),
    try_command="evenkeel rules OUT405",
    source="gradient σ(z) - y, counted here; the bias: Lin et al. 2017, Focal Loss, section 4.1",
    firing=(
        example(
            "a vocabulary of sigmoids",
            at("lm_head:head.sigmoid", sigmoid_classes=32000.0, one_positive_share=1.0, sigmoid_rows=2048.0),
        ),
    ),
    silent=(
        example(
            "images with several labels",
            at("head:head.sigmoid", sigmoid_classes=1000.0, one_positive_share=0.2, sigmoid_rows=2048.0),
        ),
        example(
            "ten classes",
            at("head:head.sigmoid", sigmoid_classes=10.0, one_positive_share=1.0, sigmoid_rows=2048.0),
        ),
    ),
    judge=_judge_exclusive,
)


def _judge_future(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        leak, bound = _leak(measurements, site, bounds)
        if leak <= bound:
            continue
        leaking = [block for block in measurements.of_kind("residual") if _leaks(measurements, block, bounds)]
        yield Case(
            severity="error",
            sites=(*leaking[:1], site),
            evidence=(Evidence(stat="future_leak", value=leak, bound=bound, unit="ratio"),),
            message="earlier logits move when later tokens are changed: by up to "
            f"{leak:.3g} of what the logits of those tokens do (bound {bound:.2g})"
            + (f"; the first block that leaks is {leaking[0].path}" if leaking else ""),
            excess=leak,
        )


def _leaks(measurements: Measurements, site: Site, bounds: Bounds) -> bool:
    leak, bound = _leak(measurements, site, bounds)
    return leak > bound


def _leak(measurements: Measurements, site: Site, bounds: Bounds) -> tuple[float, float]:
    leak, noise = (measurements.value(site, stat) for stat in ("future_leak", "probe_noise"))
    return leak, max(bounds["leak"], bounds["noise"] * noise)


OUT406 = Rule(
    code="OUT406",
    name="sees the future",
    needs=(Need(kind="head", stat="future_leak"), Need(kind="head", stat="probe_noise")),
    measures="how far logits move at judged positions when only later tokens are changed, as a ratio to how far the "
    "logits of the changed tokens move. Only inspect asks, and only where the targets are the next tokens of the "
    "model's own input",
    severities=("error",),
    severity="error",
    bounds={"leak": 1e-3, "noise": 4.0},
    bound="0.001, and 4 times what moves in a sequence of the same batch in which nothing was changed. A causal mask "
    "gives weights of exactly 0, so in most models nothing moves at all; convolutions by FFT in float32 leave about "
    "1e-6. Experts and dynamic quantisation compute the untouched sequence in other ways too: the largest of so many "
    "equal rounding errors differs between two sequences by less than 4. A mask that is missing in one block moves "
    "logits by 0.005 and more.",
    why="The target of each position is in its own input, so the loss falls to almost nothing and the model learns to "
    "copy; when it generates there is no future to copy, and it fails.",
    advice=(
        "Look at the mask in the block that is named: is_causal, the mask's direction, its offset by one, and the "
        "axis it is laid along.",
        "Look for what mixes positions without a mask: convolutions padded on both sides, norms over time, reshapes "
        "that swap batch and positions.",
        "If the model may see all of its input (a prefix, an encoder), do not count losses where it does.",
    ),
    try_command="evenkeel rules OUT406",
    source="definition of a causal language model; bound derived here",
    firing=(
        example(
            "one block without its mask",
            at("layers.0:residual.block", future_leak=0.0, probe_noise=0.0),
            at("layers.1:residual.block", future_leak=0.21, probe_noise=0.0),
            at("layers.2:residual.block", future_leak=0.24, probe_noise=0.0),
            at("lm_head:head.softmax", future_leak=0.23, probe_noise=0.0),
        ),
    ),
    silent=(
        example("a causal model", at("lm_head:head.softmax", future_leak=0.0, probe_noise=0.0)),
        example("experts in bfloat16", at("lm_head:head.softmax", future_leak=0.004, probe_noise=0.003)),
    ),
    judge=_judge_future,
)
