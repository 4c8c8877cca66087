"""GLU2xx: gates that let nothing through, or the same for every token."""

from __future__ import annotations

from collections.abc import Iterator

from ..schema import Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

_ENOUGH_VALUES = 512


def _judge_gate(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        dead, selectivity = (measurements.value(site, stat) for stat in ("dead_channel_share", "selectivity"))
        if measurements.value(site, "product_absmax") == 0:
            yield Case(
                severity="error",
                sites=(site,),
                evidence=(Evidence(stat="product_absmax", value=0.0, bound=0.0, unit="absolute"),),
                message=f"gate {site.path} is closed: its product is exactly 0 for every token",
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
        elif selectivity < bounds["selectivity"]:
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
    measures="the share of a gate's channels that are 0 for every token, and the share of its variance that lies "
    "between tokens",
    severities=(
        "error",
        "warning",
    ),
    severity="error where the product is 0 everywhere, else warning",
    bounds={"dead_share": 0.5, "selectivity": 0.001},
    bound="dead channels 0.5: half of the gated width is lost, which leaves less than the two-matrix feed-forward "
    "that the gate replaced at equal parameters ((8/3)d gated for 4d plain). Selectivity 0.001: the gate's standard "
    "deviation over tokens is then 3% of its own, so it acts as a fixed factor per channel. At least 512 values per "
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
