"""ACT1xx: activations that pass no gradient, or whose output is mostly a constant."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import FACTS
from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import feeds
from ._training import has_learned

_FEW_VALUES = 64  # values per channel: a share of 1/2 then has a standard error of 6%
_ALWAYS_SLOPED = Change("feedforward.activation", "leaky_relu")  # a hundredth of its slope at the least, everywhere
_ENOUGH_VALUES = 512  # values per channel: a unit that fires for 1% of tokens looks dead with probability 0.6%


def _saturates(site: Site) -> bool:
    return site.op in FACTS and FACTS[site.op].saturates != "neither"


def _off_bound(op: str, one_sided: float) -> float:
    """The share of values with a small slope from which an activation counts as saturated."""
    facts = FACTS[op]
    return (1 + facts.small_slope_share) / 2 if facts.bounded else one_sided


def _feeds_gate(measurements: Measurements, site: Site) -> bool:
    """Whether a gate multiplies this activation."""
    return any(feeds(site, gate) for gate in measurements.of_kind("gate"))


def _judge_saturated(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        share, bound = measurements.value(site, "small_gradient_share"), _off_bound(site.op, bounds["one_sided_share"])
        if share <= bound or (FACTS[site.op].bounded and _feeds_gate(measurements, site)):
            continue
        stopped = measurements.value(site, "zero_gradient_share") == 1
        yield Case(
            severity="error" if stopped else "warning",
            sites=(site,),
            evidence=(Evidence(stat="small_gradient_share", value=share, bound=bound, unit="share"),),
            message=f"{site.op} at {site.path}: {share:.1%} of its values have less than 1% of its largest slope "
            f"(bound {bound:.1%})" + (", and every gradient is exactly 0" if stopped else ""),
            excess=share - bound,
        )


ACT101 = Rule(
    code="ACT101",
    name="saturated activation",
    needs=(
        Need(kind="activation", stat="small_gradient_share"),
        Need(kind="activation", stat="zero_gradient_share"),
        Need(kind="activation", stat="input_absmax"),  # NaN where an input was; the shares would not show it
        Need(kind="activation", stat="tokens", at_least=_FEW_VALUES),
    ),
    applies=_saturates,
    measures="the share of an activation's values at which its slope is below 1% of the function's largest slope",
    severities=(
        "error",
        "warning",
    ),
    severity="error where every gradient is exactly 0, else warning",
    bounds={"one_sided_share": 0.999},
    bound="bounded functions (sigmoid, tanh, ...): (1 + s) / 2, where s is that share under N(0, 1) input (sigmoid "
    "2e-9, tanh 0.0028, relu6 0.5): half of the values that normally respond do not. A sigmoid reaches it at an input "
    "standard deviation of 8.9, tanh at 4.4. Functions with an unbounded side: 0.999. Trained ReLU layers "
    "are sparse (T5-Base keeps 3% of its units on); 0.999 is a thirtieth of that. At least 64 values per channel. A "
    "bounded function that gates is left out: a gate may well be fully open or closed.",
    why="Where the slope is near 0 no gradient passes, so the layers below learn only from the few values that are "
    "left; in low precision the slope rounds to exactly 0 soon after.",
    advice=(
        "Use an activation with a side that does not saturate: silu, gelu or relu.",
        "Put a norm in front of the feed-forward, so that its inputs have unit scale (pre-norm).",
        "Lower the init scale or the learning rate of the layer in front, and check its bias.",
    ),
    change=Change("feedforward.activation", "silu"),
    explains=("ACT102", "GLU201", "GRD501"),
    claims=("C01", "C03", "C09"),
    try_command="evenkeel demo",
    source="bound derived here; LeCun et al. 1998, Efficient BackProp; sparsity: Li et al. 2023, The Lazy Neuron "
    "Phenomenon",
    firing=(
        example(
            "a sigmoid whose inputs have left (-6, 6)",
            at(
                "layers.0.ffn.act:activation.sigmoid",
                small_gradient_share=0.83,
                zero_gradient_share=0.2,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a GELU behind a bias of -8",
            at(
                "layers.0.ffn.act:activation.gelu",
                small_gradient_share=1.0,
                zero_gradient_share=1.0,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
    ),
    silent=(
        example(
            "tanh on inputs of unit scale",
            at(
                "layers.0.ffn.act:activation.tanh",
                small_gradient_share=0.003,
                zero_gradient_share=0.0,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a sparse ReLU layer, 97% off",
            at(
                "layers.0.ffn.act:activation.relu",
                small_gradient_share=0.97,
                zero_gradient_share=0.97,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a sigmoid gate that has decided",
            at(
                "layers.0.ffn.gate:activation.sigmoid",
                small_gradient_share=0.9,
                zero_gradient_share=0.1,
                input_absmax=9.0,
                tokens=2048.0,
            ),
            at("layers.0.ffn:gate.glu", selectivity=0.5),
        ),
    ),
    judge=_judge_saturated,
)


def _silent_share(zero_share: float, tokens: float) -> float:
    """The share of living units that stay silent in so many tokens, if firing rates are exponentially distributed.

    With mean rate r = 1 - zero_share: E[(1 - rate)^N] ~ E[exp(-N rate)] = 1 / (1 + N r).
    """
    return 1 / (1 + tokens * (1 - zero_share))


def _judge_dead(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    usual = bounds["learned_share"] if has_learned(measurements) else bounds["dead_share"]
    for site in sites:
        dead, tokens = measurements.value(site, "dead_channel_share"), measurements.value(site, "tokens")
        silent = _silent_share(measurements.value(site, "zero_gradient_share"), tokens)
        bound = silent + bounds["dead_share"] * (1 - silent)
        if dead != 1 and dead <= bound:
            continue
        many = dead > silent + usual * (1 - silent)
        yield Case(
            severity="error" if dead == 1 else "warning" if many else "info",
            sites=(site,),
            evidence=(Evidence(stat="dead_channel_share", value=dead, bound=min(bound, 1.0), unit="share"),),
            message=f"{site.op} at {site.path}: {dead:.1%} of its channels have slope 0 for all {tokens:,.0f} values "
            f"seen (bound {bound:.1%})" + ("" if many else "; the model has learned all the same"),
            excess=dead - bound + (dead == 1),
            change=_ALWAYS_SLOPED if site.op == "silu" else None,
        )


ACT102 = Rule(
    code="ACT102",
    name="dead channels",
    needs=(
        Need(kind="activation", stat="dead_channel_share"),
        Need(kind="activation", stat="zero_gradient_share"),
        Need(kind="activation", stat="input_absmax"),  # NaN where an input was; the shares would not show it
        Need(kind="activation", stat="tokens", at_least=_ENOUGH_VALUES),
    ),
    applies=_saturates,
    measures="the share of an activation's channels whose slope is exactly 0 for every token seen",
    severities=("error", "warning", "info"),
    severity="error where every channel is dead; info up to a share of 0.7 in a model that has learned (its loss is a "
    "tenth below that of guessing); else warning",
    bounds={"dead_share": 0.5, "learned_share": 0.7},
    bound="(1 + e) / 2 with e = 1 / (1 + N·r): N values per channel, r the share of values with a slope. e is the "
    "share of living channels that stay silent in N tokens when their firing rates are exponentially distributed with "
    "mean r, as in sparse trained layers; half of the remaining channels is the bound. Models that work have layers "
    "beyond it: more than 70% in some of OPT-66B (Voita et al. 2023), so that up to there a model that has learned "
    "gets an info. At least 512 values per channel: a unit that fires for 1% of tokens is then mistaken with "
    "probability 0.6%.",
    why="A channel with slope 0 for every token gets no gradient, so it never comes back by itself, and its "
    "parameters and arithmetic are spent for nothing.",
    advice=(
        "Use an activation with a gradient for negative inputs: silu, gelu or leaky_relu.",
        "Check the bias in front of the activation and lower the learning rate: a large step can push a unit out of "
        "reach of all data.",
        "Re-initialise the dead channels.",
    ),
    change=Change("feedforward.activation", "silu"),
    explains=("GLU201",),
    claims=("C03",),
    try_command="evenkeel rules ACT102",
    source="bound derived here; Voita, Ferrando and Nalmpantis 2023, Neurons in Large Language Models: Dead, N-gram, "
    "Positional",
    firing=(
        example(
            "a ReLU layer of which 80% never fires",
            at(
                "layers.1.ffn.act:activation.relu",
                dead_channel_share=0.8,
                zero_gradient_share=0.9,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a trained ReLU layer of which 60% never fires",
            at(
                "layers.1.ffn.act:activation.relu",
                dead_channel_share=0.6,
                zero_gradient_share=0.7,
                input_absmax=9.0,
                tokens=2048.0,
            ),
            at("lm_head:head.softmax", loss=2.8, classes=256.0),
        ),
        example(
            "a GELU layer behind a bias of -10",
            at(
                "layers.1.ffn.act:activation.gelu",
                dead_channel_share=1.0,
                zero_gradient_share=1.0,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
    ),
    silent=(
        example(
            "ReLU at initialisation: half of all values are 0, no unit is dead",
            at(
                "layers.1.ffn.act:activation.relu",
                dead_channel_share=0.0,
                zero_gradient_share=0.5,
                input_absmax=9.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a very sparse ReLU² layer seen for few tokens",
            at(
                "layers.1.ffn.act:activation.relu2",
                dead_channel_share=0.55,
                zero_gradient_share=0.998,
                input_absmax=9.0,
                tokens=600.0,
            ),
        ),
        example(
            "too few tokens to tell",
            at(
                "layers.1.ffn.act:activation.relu",
                dead_channel_share=0.7,
                zero_gradient_share=0.9,
                input_absmax=9.0,
                tokens=16.0,
            ),
        ),
    ),
    judge=_judge_dead,
)


def _judge_centred(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        share = measurements.value(site, "mean_energy")
        if share <= bounds["mean_energy"] or _feeds_gate(measurements, site):
            continue
        normal = f"; {site.op} has {FACTS[site.op].mean_energy:.1%} under N(0, 1) input" if site.op in FACTS else ""
        yield Case(
            severity="info",
            sites=(site,),
            evidence=(Evidence(stat="mean_energy", value=share, bound=bounds["mean_energy"], unit="share"),),
            message=f"{site.op} at {site.path}: {share:.1%} of its output's energy is its constant mean (bound "
            f"{bounds['mean_energy']:.1%}{normal})",
            excess=share - bounds["mean_energy"],
        )


ACT103 = Rule(
    code="ACT103",
    name="non-centred activation",
    needs=(
        Need(kind="activation", stat="mean_energy"),
        Need(kind="activation", stat="tokens", at_least=_FEW_VALUES),
    ),
    measures="the share of an activation's output energy that is its mean per channel: sum of E[y_c]^2 over sum of "
    "E[y_c^2]",
    severities=("info",),
    severity="info",
    bounds={"mean_energy": 0.5},
    bound="0.5: beyond it the constant part carries more energy than everything that depends on the token, and the "
    "curvature of the next layer's loss along that one direction exceeds all others together. Under N(0, 1) input "
    "sigmoid has 0.85, softplus 0.71, ReLU 0.32, GELU 0.19, SiLU 0.12, tanh 0. Activations that gate are left out.",
    why="A large constant mean makes the next layer badly conditioned: one direction of its weights needs a small "
    "step, all others a large one. Norms and Adam soften this; plain stacks suffer.",
    advice=(
        "Use a function closer to zero mean: silu, gelu or tanh in place of sigmoid or softplus.",
        "Put a norm behind it, or subtract the mean (sigmoid - 1/2).",
    ),
    change=Change("feedforward.activation", "silu"),
    claims=("C04", "C09", "C36"),
    try_command="evenkeel demo",
    source="LeCun et al. 1998, Efficient BackProp, sections 4.3 and 4.4; moments from evenkeel.facts",
    firing=(
        example("a sigmoid feed-forward", at("layers.0.ffn.act:activation.sigmoid", mean_energy=0.86, tokens=2048.0)),
    ),
    silent=(
        example("a GELU feed-forward", at("layers.0.ffn.act:activation.gelu", mean_energy=0.21, tokens=2048.0)),
        example(
            "a sigmoid that gates",
            at("layers.0.ffn:activation.sigmoid", mean_energy=0.86, tokens=2048.0),
            at("layers.0.ffn:gate.glu", selectivity=0.5),
        ),
    ),
    judge=_judge_centred,
)
