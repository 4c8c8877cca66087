"""GLU2xx: gates that let nothing through, or the same for every token, and routers that always choose the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..schema import Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import feeds, lies_in
from ._training import at_the_start

_ENOUGH_VALUES = 512
_SOME_TOKENS = 128
_BOUNDED = frozenset(("glu", "gated_tanh", "gated_hardsigmoid", "gated_hardtanh", "gated_softsign"))
_RECURRENT = ("lstm_", "gru_")  # their gates are sigmoids
_DECIDED = 0.1  # of a bounded gate: within a tenth of 0 or 1 its slope is a third of the largest or less


def _is_bounded(site: Site) -> bool:
    return site.op in _BOUNDED or site.op.startswith(_RECURRENT)


def _undecided(measurements: Measurements, site: Site) -> bool:
    """A bounded gate half open, as an init at 0 leaves it: constant, and free to move."""
    size = measurements.value(site, "activated_rms")
    return _is_bounded(site) and _DECIDED < size < 1 - _DECIDED


def _passes_gradients(measurements: Measurements, site: Site) -> bool:
    """Whether the activation that gates has a slope where it stands, as silu and gelu at 0, and some weight a gradient.

    Where both factors of the product are 0, neither passes any.
    """
    activations = [item for item in measurements.of_kind("activation") if feeds(item, site)]
    own = [item for item in measurements.of_kind("parameter") if lies_in(item.path, site.path)]
    gradients = [value for item in own for value in measurements.values(item, "gradient_rms", "backward")]
    sloped = any(measurements.value(item, "zero_gradient_share") < 1 for item in activations)
    return sloped and (not gradients or any(value > 0 for value in gradients))


def _judge_gate(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        dead, selectivity, size = (
            measurements.value(site, stat) for stat in ("dead_channel_share", "selectivity", "activated_rms")
        )
        if measurements.value(site, "product_absmax") == 0:
            opens = at_the_start(measurements) and _passes_gradients(measurements, site)
            yield Case(
                severity="info" if opens else "error",
                sites=(site,),
                evidence=(Evidence(stat="product_absmax", value=0.0, bound=0.0, unit="absolute"),),
                message=f"gate {site.path} is closed: its product is exactly 0 for every token"
                + ("; the model has not learned yet, and at 0 the gate passes gradients that open it" if opens else ""),
                excess=2,
            )
        elif dead > bounds["dead_share"]:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="dead_channel_share", value=dead, bound=bounds["dead_share"], unit="share"),),
                message=f"gate {site.path}: {dead:.1%} of its channels are 0 for every token "
                f"(bound {bounds['dead_share']:.0%})",
                excess=dead,
            )
        elif size < bounds["open"]:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="activated_rms", value=size, bound=bounds["open"], unit="rms"),),
                message=f"gate {site.path} is as good as closed: it multiplies by {size:.2g} rms "
                f"(bound {bounds['open']:.2g})",
                excess=1,
            )
        elif selectivity < bounds["selectivity"] and not _undecided(measurements, site):
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="selectivity", value=selectivity, bound=bounds["selectivity"], unit="share"),),
                message=f"gate {site.path} hardly depends on the token: {selectivity:.2g} of its variance does "
                f"(bound {bounds['selectivity']:g})",
                excess=bounds["selectivity"] - selectivity,
            )


GLU201 = Rule(
    code="GLU201",
    name="gate closed or constant",
    needs=(
        Need(kind="gate", stat="product_absmax"),
        Need(kind="gate", stat="dead_channel_share"),
        Need(kind="gate", stat="selectivity"),
        Need(kind="gate", stat="tokens", at_least=_ENOUGH_VALUES),
    ),
    measures="the share of a gate's channels that are 0 for every token, the rms of what it multiplies by, and the "
    "share of its variance that lies between tokens",
    severities=("error", "warning", "info"),
    severity="error where the product is 0 everywhere, else warning; info at the first measured step of a model that "
    "has not learned (its loss is no tenth below that of guessing), if the gate's activation has a slope there: a "
    "branch that begins at zero, as in xLSTM and Gemma 3n, opens with the first steps",
    bounds={"dead_share": 0.5, "open": 2.0**-8, "selectivity": 0.001},
    bound="dead channels 0.5: half of the gated width is lost, which leaves less than the two-matrix feed-forward "
    "that the gate replaced at equal parameters ((8/3)d gated for 4d plain). Closed: 1/256 rms, half of bfloat16's "
    "spacing at 1, so that what it lets through is lost beside anything of the size that it is given; silu falls "
    "below it at a bias of -7.6, and an init only where it is 20 times smaller than 0.02 at width 64. Selectivity "
    "0.001: the gate's standard deviation over tokens is then 3% of its own, so it acts as a fixed factor per "
    "channel; a sigmoid held between 0.1 and 0.9, as an init of 0 leaves it, is not meant. At least 512 values per "
    "channel.",
    why="A gated feed-forward gets its nonlinearity from the gate's dependence on the token. A closed gate passes "
    "neither values nor gradients; a constant one leaves a linear layer at the price of three matrices.",
    advice=(
        "Check the bias and the scale of the gate projection, and its learning rate.",
        "Use silu or gelu in the gate in place of relu, so that closed channels keep a gradient.",
    ),
    claims=("C29", "C11"),
    try_command="evenkeel rules GLU201",
    source="bound derived here; parameter counts: Shazeer 2020, GLU Variants Improve Transformer",
    firing=(
        example(
            "a gate projection set to 0",
            at(
                "layers.2.mlp:gate.swiglu",
                product_absmax=0.0,
                dead_channel_share=1.0,
                selectivity=0.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a branch that begins at zero",
            at("layers.2.mlp.act:activation.silu", zero_gradient_share=0.0),
            at(
                "layers.2.mlp:gate.swiglu",
                product_absmax=0.0,
                dead_channel_share=1.0,
                selectivity=0.0,
                tokens=2048.0,
            ),
            at("lm_head:head.softmax", loss=5.6, classes=256.0),
        ),
        example(
            "three quarters of a ReLU gate dead",
            at(
                "layers.2.mlp:gate.relu",
                product_absmax=8.0,
                dead_channel_share=0.75,
                selectivity=0.5,
                tokens=2048.0,
            ),
        ),
        example(
            "a gate behind a bias of -20",
            at(
                "layers.2.mlp:gate.swiglu",
                product_absmax=2e-6,
                dead_channel_share=0.0,
                selectivity=0.9,
                activated_rms=4.3e-8,
                tokens=2048.0,
            ),
        ),
        example(
            "a gate held open by its bias",
            at(
                "layers.2.mlp:gate.glu",
                product_absmax=8.0,
                dead_channel_share=0.0,
                selectivity=0.0002,
                tokens=2048.0,
            ),
        ),
    ),
    silent=(
        example(
            "a gate that selects by token",
            at(
                "layers.2.mlp:gate.swiglu",
                product_absmax=8.0,
                dead_channel_share=0.0,
                selectivity=0.7,
                tokens=2048.0,
            ),
        ),
    ),
    judge=_judge_gate,
)


def _judge_constant(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        share, size, selectivity = (
            measurements.value(site, stat) for stat in ("token_share", "activated_rms", "selectivity")
        )
        bound = bounds["bounded_share"] if _is_bounded(site) else bounds["share"]
        told = selectivity < GLU201.bounds["selectivity"] or size < GLU201.bounds["open"]
        if share >= bound or told or _undecided(measurements, site) or (not _is_bounded(site) and size < bounds["rms"]):
            continue
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(
                Evidence(stat="token_share", value=share, bound=bound, unit="share of its energy"),
                Evidence(stat="activated_rms", value=size, bound=bounds["rms"], unit="1"),
            ),
            message=f"gate {site.path} multiplies every token by about the same ({size:.3g} rms): {share:.2g} of its "
            f"energy depends on the token (bound {bound:.2g})",
            excess=bound - share,
        )


GLU202 = Rule(
    code="GLU202",
    name="gate always open",
    needs=(
        Need(kind="gate", stat="token_share"),
        Need(kind="gate", stat="activated_rms"),
        Need(kind="gate", stat="selectivity"),
        Need(kind="gate", stat="tokens", at_least=_ENOUGH_VALUES),
    ),
    measures="the variance of a gate's values between tokens, as a share of their energy",
    severities=("warning",),
    severity="warning; not where GLU201 tells it already",
    bounds={"share": 0.02, "rms": 1.0, "bounded_share": 2.0**-14},
    bound="0.02 for silu, gelu, relu and other gates without an upper bound, where they also multiply by more than 1 "
    "rms. Normal inputs of any scale leave 0.68 (relu) to 1; behind a bias b it is (σ/b)² for inputs of deviation σ, "
    "so 0.02 is a bias of 7 deviations. Streams whose tokens are all alike, as early in training, bring it down to "
    "0.07 in three blocks, with values far below 1. For sigmoid and tanh 2^-14, the square of bfloat16's spacing at "
    "1: their gates vary by less than their own rounding; held between 0.1 and 0.9, as an init of 0 leaves them, they "
    "are not meant. At least 512 values per channel.",
    why="Where the gate is the same for every token, the feed-forward is a linear layer at the price of three "
    "matrices, and behind a saturated gate no gradient tells the gate to close.",
    advice=(
        "Check the bias of the gate projection: most models have none.",
        "Check the scale and the learning rate of the gate projection, and the norm in front of it.",
    ),
    claims=("C29",),
    try_command="evenkeel rules GLU202",
    source="moments of the gates' functions from evenkeel.facts; bound derived here",
    firing=(
        example(
            "a SwiGLU gate behind a bias of 20",
            at(
                "layers.2.mlp:gate.swiglu",
                token_share=0.0011,
                activated_rms=20.1,
                selectivity=0.96,
                tokens=2048.0,
            ),
        ),
        example(
            "a sigmoid gate behind a bias of 20",
            at("layers.2.mlp:gate.glu", token_share=1e-17, activated_rms=1.0, selectivity=0.9, tokens=2048.0),
        ),
    ),
    silent=(
        example(
            "a SwiGLU gate at initialisation",
            at("layers.2.mlp:gate.swiglu", token_share=0.98, activated_rms=0.21, selectivity=0.98, tokens=2048.0),
        ),
        example(
            "a sigmoid gate at initialisation",
            at("layers.2.mlp:gate.glu", token_share=1e-5, activated_rms=0.5, selectivity=0.98, tokens=2048.0),
        ),
    ),
    judge=_judge_constant,
)


def _judge_router(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    tied = [measurements.value(site, "tied_share") > bounds["tied"] for site in sites]
    zeros = all(tied) and at_the_start(measurements)
    for site in sites:
        relative, experts, chosen, top = (
            measurements.value(site, stat)
            for stat in ("load_entropy_relative", "experts", "chosen_per_token", "top_share")
        )
        used = experts**relative
        bound = chosen + bounds["spare"] * (experts - chosen)
        if used >= bound or chosen >= experts:
            continue
        yield Case(
            severity="info" if zeros else "warning",
            sites=(site,),
            evidence=(
                Evidence(stat="load_entropy_relative", value=relative, bound=math.log(bound, experts), unit="1"),
                Evidence(stat="top_share", value=top, bound=1 / bound, unit="share of all choices"),
            ),
            message=f"router {site.path}: tokens share {used:.3g} of {experts:.0f} experts (bound {bound:.3g}), and "
            f"each takes {chosen:.0f}"
            + ("; like every router here it scores all experts alike, and the model has not learned" if zeros else ""),
            excess=bound - used,
        )


GLU203 = Rule(
    code="GLU203",
    name="router collapsed",
    needs=(
        Need(kind="router", stat="load_entropy_relative"),
        Need(kind="router", stat="top_share"),
        Need(kind="router", stat="experts"),
        Need(kind="router", stat="chosen_per_token"),
        Need(kind="router", stat="tokens", at_least=_SOME_TOKENS),
    ),
    measures="how many experts the tokens share, exp(entropy of their shares of all choices), beside how many there "
    "are and how many each token takes",
    severities=("warning", "info"),
    severity="warning; info where most tokens score all experts exactly alike in every router of a model that has not "
    "learned yet (its loss is no tenth below that of guessing): nothing but their order chooses, until the first steps",
    bounds={"spare": 0.0625, "tied": 0.5},
    bound="k + (n - k)/16 for k of n experts: k is a router that chooses the same for every token. A router "
    "that lets one token in sixteen choose freely shares about that much more. 2 of 8: 2.375. At least 128 tokens. "
    "Scores equal to the last bit come of weights that are zeros, as AFMoE's routers begin; half of the tokens is a "
    "majority.",
    why="Experts that no token reaches get no gradient and are never chosen again; their parameters are carried for "
    "nothing, and the others do all the work.",
    advice=(
        "Add a load-balancing loss, or a bias per expert that is moved against its load.",
        "Add noise to the router's logits, and compute them in float32.",
        "Check the router's init and learning rate.",
    ),
    try_command="evenkeel rules GLU203",
    source="Shazeer et al. 2017, Outrageously Large Neural Networks, section 4; Fedus et al. 2021, Switch "
    "Transformers; Wang et al. 2024, Auxiliary-Loss-Free Load Balancing",
    firing=(
        example(
            "two of eight experts take everything",
            at(
                "layers.1.mlp.gate:router.softmax",
                load_entropy_relative=0.35,
                top_share=0.5,
                experts=8.0,
                chosen_per_token=2.0,
                tokens=2048.0,
            ),
        ),
        example(
            "a router that begins at zero",
            at(
                "layers.1.mlp.gate:router.sigmoid",
                load_entropy_relative=1 / 3,
                top_share=0.5,
                experts=8.0,
                chosen_per_token=2.0,
                tokens=2048.0,
                tied_share=1.0,
            ),
            at("lm_head:head.softmax", loss=5.6, classes=256.0),
        ),
    ),
    silent=(
        example(
            "a router at initialisation",
            at(
                "layers.1.mlp.gate:router.softmax",
                load_entropy_relative=0.94,
                top_share=0.24,
                experts=8.0,
                chosen_per_token=2.0,
                tokens=2048.0,
            ),
        ),
        example(
            "all experts for every token",
            at(
                "layers.1.mlp.gate:router.softmax",
                load_entropy_relative=1.0,
                top_share=0.25,
                experts=4.0,
                chosen_per_token=4.0,
                tokens=2048.0,
            ),
        ),
    ),
    judge=_judge_router,
)
