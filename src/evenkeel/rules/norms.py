"""NUM604 to NUM606: norms that pass nothing, too much, or that their epsilon has taken over."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from ..schema import Evidence, Site
from ._examples import Place, Values, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import peers

_STARVED = 0.5  # of what it divides by is epsilon: a small output is no fault of its gain
_FEW_TOKENS = 16  # rows: with fewer, what differs between tokens is hardly seen


def _passes_nothing(measurements: Measurements, site: Site, bounds: Bounds) -> bool:
    if measurements.value(site, "constant_input_share") >= bounds["constant"]:
        return False  # what comes in says nothing about tokens already
    constant = measurements.value(site, "constant_channel_share") >= bounds["constant"]
    starved = measurements.value(site, "epsilon_share") > _STARVED
    return constant or (measurements.value(site, "output_rms") < bounds["gain"] and not starved)


def _judge_silent(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for place in peers(sites).values():
        silent = [site for site in place if _passes_nothing(measurements, site, bounds)]
        behind = all(measurements.value(site, "reads_stream") == 0 for site in place)
        by_design = behind and len(silent) == len(place) > 1
        for site in silent:
            constant, size = (measurements.value(site, stat) for stat in ("constant_channel_share", "output_rms"))
            yield Case(
                severity="info" if by_design else "warning",
                sites=(site,),
                evidence=(
                    Evidence(stat="constant_channel_share", value=constant, bound=bounds["constant"], unit="share"),
                    Evidence(stat="output_rms", value=size, bound=bounds["gain"], unit="1"),
                ),
                message=f"{site.path} gives the same for every token in {constant:.0%} of its channels, rms "
                f"{size:.2g}, though its input differs: what reads it learns nothing about tokens"
                + ("; all norms of this place do, which some use as an init" if by_design else ""),
                excess=constant - size,
            )


def _norm(address: str, **stats: Values) -> Place:
    usual = {
        "input_rms": 1.0,
        "output_rms": 1.0,
        "constant_channel_share": 0.0,
        "constant_input_share": 0.0,
        "epsilon_share": 1e-5,
        "reads_stream": 1.0,
        "tokens": 512.0,
    }
    return at(f"{address}:norm.layer_norm", **{**usual, **stats})


_TOKENS = Need(kind="norm", stat="tokens", at_least=_FEW_TOKENS)

NUM604 = Rule(
    code="NUM604",
    name="norm passes nothing",
    needs=(
        Need(kind="norm", stat="constant_channel_share"),
        Need(kind="norm", stat="constant_input_share"),
        Need(kind="norm", stat="output_rms"),
        Need(kind="norm", stat="epsilon_share"),
        Need(kind="norm", stat="reads_stream"),
        _TOKENS,
    ),
    measures="the share of a norm's output channels that are the same for every token, beside that of its input, and "
    "the output's rms",
    severities=("warning", "info"),
    severity="warning; info where every block's norm of that place, behind a branch, is silent, as an init that starts "
    "branches at zero makes them",
    bounds={"constant": 0.9, "gain": 2.0**-12},
    bound="nine tenths of the channels constant to one spacing of the dtype, or an output rms below 2^-12. A norm's "
    "output has rms 1 times its gain; a gated branch multiplies two maps of it, and below 2^-12 their product lies "
    "below float32's spacing at 1, 2^-24, so that the sum with the stream is the stream. At least 16 tokens, and an "
    "input that does differ between them.",
    why="A gain of zero cuts its branch off: the maps behind it read zeros and get no gradient that depends on the "
    "token. In a post-norm block it cuts the whole stream.",
    advice=(
        "Look at the norm's weight: set it to 1 (to 0 where it is kept less 1) and restore a checkpoint if training "
        "made it so.",
        "Leave norm weights out of weight decay, or keep them less 1 so that decay draws them to 1.",
    ),
    explains=(
        "ACT101",
        "ACT102",
        "ACT103",
        "ATT302",
        "ATT305",
        "GLU201",
        "GLU202",
        "NUM606",
        "NUM608",
        "OUT403",
        "GRD501",
        "GRD502",
        "GRD503",
        "RUN801",
    ),
    try_command="evenkeel rules NUM604",
    source="Ba et al. 2016; Zhang and Sennrich 2019; bound derived here",
    firing=(
        example(
            "a gain of zero in one block",
            _norm("layers.0.norm"),
            _norm("layers.1.norm", constant_channel_share=1.0, output_rms=0.0),
        ),
        example("a gain of 1e-5 in the norm before the head", _norm("norm", output_rms=1e-5)),
    ),
    silent=(
        example("usual gains", _norm("layers.0.norm"), _norm("layers.1.norm", output_rms=0.01)),
        example(
            "an input that is the same for every token already",
            _norm("layers.1.norm", constant_channel_share=1.0, constant_input_share=1.0),
        ),
    ),
    judge=_judge_silent,
)


def _judge_huge(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for place in peers(sites).values():
        sizes = {site: measurements.value(site, "output_rms") for site in place}
        usual = median(sizes.values())
        for site, size in sizes.items():
            if not size > bounds["rms"]:
                continue
            alone = len(place) > 2 and size > bounds["peers"] * usual
            reads = measurements.value(site, "reads_stream") > 0
            yield Case(
                severity="warning" if reads or alone else "info",
                sites=(site,),
                evidence=(Evidence(stat="output_rms", value=size, bound=bounds["rms"], unit="1"),),
                message=f"{site.path} gives numbers of rms {size:.3g} (bound {bounds['rms']:.3g}; without a gain it "
                f"would be 1, and the median norm of its place has {usual:.3g})",
                excess=size,
            )


NUM605 = Rule(
    code="NUM605",
    name="norm gain huge",
    needs=(Need(kind="norm", stat="output_rms"), Need(kind="norm", stat="reads_stream")),
    measures="the rms of every norm's output",
    severities=("warning", "info"),
    severity="warning; info for a norm behind a branch or of queries and keys that is like those of other blocks",
    bounds={"rms": 64.0, "peers": 16.0},
    bound="64, where the gain alone is responsible: a norm's output has rms 1 times its gain. Maps that keep the size "
    "make queries and keys of it, and a head of 16 channels in which they align then scores 16 * 64^2 = 65,536, past "
    "float16's largest number. Trained gains lie between 0.01 and about 10. Norms behind branches may be large on "
    "purpose (Gemma 3): there the warning needs 16 times the median of the other blocks' norms.",
    why="Everything that reads the norm is multiplied by its gain: scores and logits saturate their softmax, "
    "activations leave their range, low precision overflows.",
    advice=(
        "Look at the norm's weight: single huge entries come from a learning rate too high for gains or a bad step.",
        "Lower the learning rate of norm weights, or let weight decay draw them to 1 (a weight kept less 1).",
    ),
    explains=(
        "ACT101",
        "ACT102",
        "ACT103",
        "GLU201",
        "GLU202",
        "ATT301",
        "ATT303",
        "ATT304",
        "ATT305",
        "NUM601",
        "NUM602",
        "NUM607",
        "NUM608",
        "OUT401",
        "OUT402",
        "OUT403",
        "GRD501",
        "GRD502",
        "RUN801",
    ),
    try_command="evenkeel rules NUM605",
    source="Ba et al. 2016; bound derived here",
    firing=(
        example("a gain of 300", _norm("layers.0.norm"), _norm("layers.1.norm", output_rms=300.0)),
        example(
            "a gain of 300 behind one of three branches",
            *(_norm(f"layers.{n}.norm", output_rms=size, reads_stream=0.0) for n, size in enumerate((4.0, 3.0, 300.0))),
        ),
    ),
    silent=(
        example("a trained gain of 8", _norm("norm", output_rms=8.0)),
        example("usual gains", _norm("layers.0.norm"), _norm("layers.1.norm", output_rms=0.4)),
    ),
    judge=_judge_huge,
)


def _epsilon(measurements: Measurements, site: Site) -> float:
    """What a norm adds to the variance, read back from its share of the sum; 0 where it is no large part of it."""
    share, size = (measurements.value(site, stat) for stat in ("epsilon_share", "input_rms"))
    return 0.0 if share <= _STARVED else size**2 * share / max(1 - share, 2.0**-52)


def _judge_starved(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    reading = [site for site in sites if measurements.value(site, "reads_stream") > 0]
    starved = [site for site in reading if measurements.value(site, "epsilon_share") > bounds["share"]]
    most = len(starved) > 1 and len(starved) >= bounds["norms"] * len(reading)
    for site in sites:
        epsilon = _epsilon(measurements, site)
        if epsilon > bounds["epsilon"]:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="epsilon_share", value=epsilon, bound=bounds["epsilon"], unit="epsilon"),),
                message=f"{site.path} adds an epsilon of about {epsilon:.2g} to the variance of its input (bound "
                f"{bounds['epsilon']:g}): it divides by that and does not normalise",
                excess=epsilon,
            )
    for site in starved:
        share, size = (measurements.value(site, stat) for stat in ("epsilon_share", "input_rms"))
        yield Case(
            severity="warning" if most else "info",
            sites=(site,),
            evidence=(Evidence(stat="epsilon_share", value=share, bound=bounds["share"], unit="share"),),
            message=f"{site.path} divides by its epsilon: {share:.1%} of what it divides by is epsilon, because its "
            f"input has an rms of {size:.2g}; so do {len(starved)} of the {len(reading)} norms of the stream",
            excess=share,
        )


NUM606 = Rule(
    code="NUM606",
    name="norm starved by its epsilon",
    needs=(
        Need(kind="norm", stat="epsilon_share"),
        Need(kind="norm", stat="input_rms"),
        Need(kind="norm", stat="reads_stream"),
    ),
    measures="epsilon / (variance + epsilon) in every norm that reads the residual stream, mean over tokens",
    severities=("warning", "info"),
    severity="warning where at least half of the stream's norms are starved, and for an epsilon that no model uses, "
    "wherever the norm stands; else info",
    bounds={"share": _STARVED, "norms": 0.5, "epsilon": 0.01},
    bound="more than half: epsilon then outweighs the variance, and the norm multiplies by a constant near "
    "1/sqrt(epsilon) instead of normalising. Epsilon 1e-5 takes over below an rms of 0.003, 1e-6 below 0.001. One norm "
    "alone, behind a small embedding (RWKV, Mistral), is meant so; branches bring the stream up behind it. Norms "
    "behind branches are left out: at initialisation their inputs are small in good models too. Epsilons in use run "
    "from 1e-12 to 1e-3; one above 0.01 is a mistake by itself.",
    why="The stream is far smaller than the model was made for: its weights were initialised too small, and every "
    "norm's output, and with it every branch, is too small as well.",
    advice=(
        "Raise the init scale: 1/sqrt(inputs) for linear maps, 0.02 for embeddings of usual size.",
        "Lower epsilon where the stream is meant to be small.",
    ),
    explains=("ATT302", "GLU201", "GLU202", "GRD501", "GRD502", "OUT403", "RUN801"),
    try_command="evenkeel rules NUM606",
    source="Ba et al. 2016; bound derived here",
    firing=(
        example(
            "an init a thousand times too small",
            _norm("layers.0.norm", epsilon_share=0.999, input_rms=2e-5),
            _norm("layers.1.norm", epsilon_share=0.998, input_rms=3e-5),
            _norm("norm", epsilon_share=0.998, input_rms=3e-5),
        ),
        example(
            "an epsilon of 1e6 behind a branch",
            _norm("layers.0.norm"),
            _norm("layers.0.post", epsilon_share=0.99999999, input_rms=0.17, output_rms=1.7e-4, reads_stream=0.0),
        ),
        example(
            "a small embedding alone",
            _norm("layers.0.norm", epsilon_share=0.999, input_rms=1e-4),
            _norm("layers.1.norm", epsilon_share=0.01),
            _norm("norm", epsilon_share=0.01),
        ),
    ),
    silent=(
        example("GPT-2's embedding", _norm("layers.0.norm", epsilon_share=0.024, input_rms=0.02), _norm("norm")),
        example(
            "a branch of small outputs at initialisation, in front of its norm",
            _norm("layers.0.norm"),
            _norm("layers.0.post", epsilon_share=0.99, input_rms=1e-4, reads_stream=0.0),
        ),
    ),
    judge=_judge_starved,
)
