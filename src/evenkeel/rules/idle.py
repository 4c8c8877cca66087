"""ATT305, ATT306: attention that reads nothing, and queries that may not."""

from __future__ import annotations

from collections.abc import Iterator

from ..schema import Change, Evidence, Site
from ._examples import at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule


def _judge_idle(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        sink, gain = (measurements.values(site, stat) for stat in ("sink_mass", "softmax_gain"))
        if min(sink) <= bounds["sink"] or max(gain) >= bounds["gain"]:
            continue
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(
                Evidence(stat="sink_mass", value=min(sink), bound=bounds["sink"], unit="share"),
                Evidence(stat="softmax_gain", value=max(gain), bound=bounds["gain"], unit="1 - sum p^2"),
            ),
            message=f"attention {site.path}: all {len(sink)} heads rest on the first key, with {min(sink):.2%} of "
            f"their weight or more (bound {bounds['sink']:.0%})",
            excess=min(sink),
        )


ATT305 = Rule(
    code="ATT305",
    name="attention idle",
    needs=(
        Need(kind="attention", stat="sink_mass"),
        Need(kind="attention", stat="softmax_gain"),
        Need(kind="attention", stat="entropy_relative"),  # only where some query can see two keys
    ),
    measures="per head, the mean weight of the first key, and the softmax's gain 1 - sum p^2",
    severities=("warning",),
    severity="warning",
    bounds={"sink": 0.99, "gain": 0.02},
    bound="more than 0.99 of the weight on the first key in every head of a layer, and a gain below 0.02, which is "
    "that of 99% on one key. Trained models rest many heads there (attention sinks: Xiao et al. 2023; Gu et al. 2024 "
    "count them from a mean weight of 0.3), and keep others at work in the same layer; heads that look up once in a "
    "while stay below 0.99 on average.",
    why="Attention that reads the first token only, whatever the query, moves nothing from place to place: the layer "
    "adds a constant, and the softmax's gradient 1 - sum p^2 is too small to change that.",
    advice=(
        "Check the key of the first token: a huge norm, or a bias on that place, draws all queries there.",
        "Normalise queries and keys per head (QK-norm).",
        "Give heads another way to be idle: an extra learned logit in the softmax, or a gate behind attention.",
    ),
    change=Change("attention.qk_norm", True),
    explains=("OUT403",),
    claims=("C41",),
    try_command="evenkeel rules ATT305",
    source="Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks; Gu et al. 2024, When Attention "
    "Sink Emerges in Language Models; bound as in ATT301",
    firing=(
        example(
            "every head on the first token",
            at(
                "layers.3.attn:attention.softmax",
                sink_mass=(0.998, 0.995, 0.999, 0.997),
                softmax_gain=(0.004, 0.009, 0.002, 0.006),
                entropy_relative=(0.004, 0.01, 0.003, 0.006),
            ),
        ),
    ),
    silent=(
        example(
            "a trained layer of sinks with one head at work",
            at(
                "layers.3.attn:attention.softmax",
                sink_mass=(0.998, 0.995, 0.999, 0.7),
                softmax_gain=(0.004, 0.009, 0.002, 0.4),
                entropy_relative=(0.004, 0.01, 0.003, 0.3),
            ),
        ),
    ),
    judge=_judge_idle,
)


def _judge_blind(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for site in sites:
        rows = measurements.values(site, "blind_rows")
        if max(rows) <= bounds["rows"]:
            continue
        yield Case(
            severity="warning",
            sites=(site,),
            evidence=(Evidence(stat="blind_rows", value=max(rows), bound=bounds["rows"], unit="rows"),),
            message=f"attention {site.path}: {max(rows):,.0f} queries that are no padding may see no key at all "
            f"(bound {bounds['rows']:.0f})",
            excess=max(rows),
        )


ATT306 = Rule(
    code="ATT306",
    name="queries that see nothing",
    needs=(Need(kind="attention", stat="blind_rows"),),
    measures="how many queries the mask hides every key from, without those that are padding: told so, or where "
    "queries and keys are the same tokens hidden from everybody themselves",
    severities=("warning",),
    severity="warning",
    bounds={"rows": 0.0},
    bound="0. A softmax over nothing is 0/0: NaN where hidden scores are -inf, a mean over all keys, hidden ones too, "
    "where they are the dtype's minimum, and 0 in some fused kernels.",
    why="What such a query returns depends on the kernel, and is wrong in each: NaN spreads to everything behind it, "
    "and a mean over hidden keys shows what the mask was there to hide.",
    advice=(
        "Let every query see at least itself.",
        "Check how masks are combined: padding and causal masks of opposite senses hide everything together.",
    ),
    explains=("NUM601", "OUT406"),
    claims=("C43",),
    try_command="evenkeel rules ATT306",
    source="definition of the softmax; evenkeel.functional.attention, which returns 0 for such rows",
    firing=(
        example(
            "one row of a mask that is empty",
            at("layers.0.attn:attention.softmax", blind_rows=(8.0, 8.0), masked_rows=(8.0, 8.0)),
        ),
    ),
    silent=(
        example(
            "padding on the left",
            at("layers.0.attn:attention.softmax", blind_rows=(0.0, 0.0), masked_rows=(31.0, 31.0)),
        ),
    ),
    judge=_judge_blind,
)
