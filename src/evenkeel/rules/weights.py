"""NUM6xx of weights: matrices of the wrong size, and updates that rounding swallows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from ..schema import Evidence, Severity, Site, SiteKind
from ._examples import NEW_HEAD, Place, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._training import is_far_off, is_fresh, most_is_frozen, settled

_MOST_STEPS = 64  # over thousands, rare large updates reach most elements although nearly all are lost
_ENOUGH_STEPS = 16  # Adam's first step is larger than those behind it, and reaches more


def _judge_size(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    if most_is_frozen(measurements):
        return  # adapters beside a frozen model start small on purpose
    gains = {site: measurements.value(site, "gain") for site in sites}
    live = sorted((site for site in sites if gains[site] > 0), key=lambda site: gains[site])
    if len(live) < bounds["fewest"]:
        return
    small, large = live[3 * len(live) // 4], live[len(live) // 2]
    limit = bounds["large"] if is_fresh(measurements) else bounds["ever"]
    if gains[small] < bounds["small"]:
        sick = [site for site in live if gains[site] < bounds["small"]]
        yield _wrong_size(sick, gains[small], bounds["small"], "three quarters", "at most", len(live))
    elif gains[large] > limit and _shows(measurements, bounds["large"]):
        sick = [site for site in live if gains[site] > limit]
        yield _wrong_size(sick, gains[large], limit, "half", "at least", len(live))


def _shows(measurements: Measurements, large: float) -> bool:
    """Whether anything is as large as two independent maps of that gain make it; True where nothing was measured.

    Models that keep weights of unit variance scale what they give, are given, or are: the weights alone look large.
    """
    spreads = [statistics.median(values) for values in _latest(measurements, "attention", "score_std")]
    streams = [values[0] for values in _latest(measurements, "residual", "residual_rms")]
    if not spreads and not streams:
        return True
    quiet = all(spread <= large for spread in spreads) and all(stream <= large**2 for stream in streams)
    return not quiet or is_far_off(measurements)


def _latest(measurements: Measurements, kind: SiteKind, stat: str) -> list[tuple[float, ...]]:
    return [values for site in measurements.of_kind(kind) if (values := measurements.values(site, stat))]


def _wrong_size(sick: Sequence[Site], gain: float, bound: float, share: str, word: str, count: int) -> Case:
    effect = "passes on next to nothing" if gain < bound else "blows up whatever it is applied to"
    return Case(
        severity="warning",
        sites=tuple(sick),
        evidence=(Evidence(stat="gain", value=gain, bound=bound, unit="1"),),
        message=f"{share} of the {count} linear maps have a gain of {word} {gain:.2g} (bound {bound:.2g}); "
        f"independent weights of that size make a map that {effect}",
        excess=abs(math.log(gain / bound)) if math.isfinite(gain) else math.inf,
    )


def _maps(*gains: float, unevenness: float = 1.0) -> list[Place]:
    return [
        at(f"layers.{place}.mlp.up.weight:parameter.parameter", gain=gain, elements=4096.0, unevenness=unevenness)
        for place, gain in enumerate(gains)
    ]


_GUESSING = at("lm_head:head.softmax", loss=9.0, classes=256.0)
_LEARNED = at("lm_head:head.softmax", loss=2.9, classes=50257.0)

NUM609 = Rule(
    code="NUM609",
    name="weights of the wrong size",
    needs=(Need(kind="parameter", stat="gain"), Need(kind="parameter", stat="elements")),
    measures="the gain of every trained linear map, weight_rms * (inputs * outputs)^(1/4): by how much independent "
    "weights of that size change the rms of what they are applied to, forward and backward taken together. Maps of "
    "zeros and tables that are looked up are left out, and models whose trained parameters are less than half of all.",
    severities=("warning",),
    severity="warning",
    bounds={"small": 0.02, "large": 4.0, "ever": 16.0, "fewest": 4},
    bound="of at least 4 maps three quarters below 0.02 or half above 4. Xavier's init has gain 1, PyTorch's default "
    "0.6, a deviation of 0.02 has 0.1 at 32 channels and 1.3 at 4096. A branch is two maps: at 0.02 it adds 0.02^2 = "
    "0.0004 of its normed input to the stream, a tenth of what bfloat16 can resolve beside it (2^-8). Queries and keys"
    " of gain 4 have scores with a deviation of 4^2 = 16 under 1/sqrt(d), and a softmax of independent scores is "
    "one-hot from sqrt(2 ln n) on: 3.7 for n = 1024 keys, 5.1 for half a million. Weights that have learned are larger"
    " and no longer independent: where the loss is better than guessing, or is not known, the bound is 16; so it is for"
    " a trained body under a new head, which guesses, but half of whose maps have rows or columns whose mean squares "
    "vary twice as much as those of draws (unevenness). Weights that the model itself scales back (unit scaling, an "
    "equalised learning rate) are no fault: where scores or blocks are measured, some score must have a deviation "
    "above 4, or some block an rms above 4^2, or the loss lie a quarter above guessing.",
    explains=(
        "NUM606",
        "ATT301",
        "ATT302",
        "ATT303",
        "ATT304",
        "OUT401",
        "OUT402",
        "OUT403",
        "GRD501",
        "GRD502",
        "NUM605",
        "NUM607",
        "ACT101",
        "ACT102",
        "GLU201",
        "GLU202",
    ),
    why="The size of the weights decides how much of a signal arrives behind a few layers: too small and a block does "
    "nothing, too large and softmax, activations and head work at their ends from the first step on.",
    advice=(
        "Draw weights with a deviation of 1/sqrt(inputs), or 0.02 at the usual widths.",
        "Check for an init that was applied twice, to the wrong module, or not at all.",
        "Where weights are scaled by hand, scale the output by the inverse or follow muP.",
    ),
    try_command="evenkeel rules NUM609",
    source="Glorot and Bengio 2010; He et al. 2015; Radford et al. 2019; bounds derived here",
    firing=(
        example("an init a hundred times too small", *_maps(0.002, 0.002, 0.002, 0.003), _GUESSING),
        example("N(0, 1) weights at 64 channels", *_maps(8.0, 8.0, 10.5, 8.0), _GUESSING),
    ),
    silent=(
        example("a deviation of 0.02 at 64 channels", *_maps(0.16, 0.06, 0.21, 0.08), _GUESSING),
        example("maps of zeros behind every branch", *_maps(0.6, 0.0, 0.6, 0.0, 0.6, 0.6), _GUESSING),
        example("GPT-2 as it was trained", *_maps(5.2, 4.1, 5.0, 4.4, 7.0), _LEARNED),
        example(
            "N(0, 1) weights that are divided by sqrt(inputs) in the forward pass",
            *_maps(8.0, 8.0, 10.5, 8.0),
            at("layers.0.attn:attention.softmax", score_std=(1.1, 0.9)),
            at("layers.0:residual.block", residual_rms=1.7),
            at("lm_head:head.softmax", loss=5.8, classes=256.0),
        ),
        example("GPT-2's body under a new head", *_maps(5.2, 4.1, 5.0, 4.4, 7.0, unevenness=18.0), NEW_HEAD),
    ),
    judge=_judge_size,
)


def _judge_lost(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    known = [site for site in sites if settled(measurements, site, fewest=int(bounds["fewest"]))]
    judged = [site for site in known if not _registers(measurements, site, bounds["anew"])]
    best = {site: max(_history(measurements, site, "changed_share")) for site in judged}
    grades: tuple[tuple[Severity, str], ...] = (("warning", "lost"), ("info", "half"))
    for severity, name in grades:
        bound = bounds[name]
        sick = sorted((site for site in judged if best[site] < bound), key=lambda site: best[site])
        if sick and 2 * len(sick) >= len(known):
            yield _lost(sick, best[sick[-1]], bound, severity, len(known), measurements.model.dtype)
            return


def _registers(measurements: Measurements, site: Site, anew: float) -> bool:
    """Whether so many elements have moved since the first measured step that each step must reach others anew."""
    changed, moved = (dict(measurements.history(site, stat, "update")) for stat in ("changed_share", "moved_share"))
    kept = [step for step in changed if step not in moved]  # the steps at which a run, or one resumed, kept its values
    for step, (share,) in moved.items():
        steps = step - max((item for item in kept if item < step), default=step)
        if _ENOUGH_STEPS <= steps <= _MOST_STEPS:
            each = statistics.mean(value for other, (value,) in changed.items() if other <= step)
            if share > anew * (1 - (1 - each) ** steps):
                return True
    return False


def _history(measurements: Measurements, site: Site, stat: str) -> list[float]:
    return [values[0] for _, values in measurements.history(site, stat, "update")]


def _lost(sick: list[Site], share: float, bound: float, severity: Severity, count: int, dtype: str) -> Case:
    return Case(
        severity=severity,
        sites=tuple(sick),
        evidence=(Evidence(stat="changed_share", value=share, bound=bound, unit="share"),),
        message=f"in {len(sick)} of {count} {dtype} weights no measured step changed more than a share of "
        f"{share:.2g} of the elements that have a gradient (bound {bound:.2g})",
        excess=bound - share,
    )


def _halves(
    *shares: float, steps: int = 4, rate: float = 1e-5, moved: Callable[[float, int], float] | None = None
) -> list[Place]:
    return [
        at(
            f"layers.{place}.mlp.up.weight:parameter.parameter",
            step=10 * step,
            gain=1.0,
            update={"changed_share": share, "learning_rate": rate, "planned_learning_rate": rate}
            | ({"moved_share": moved(share, step)} if moved is not None and step else {}),
        )
        for place, share in enumerate(shares)
        for step in range(steps)
    ]


NUM610 = Rule(
    code="NUM610",
    name="updates lost to rounding",
    needs=(
        Need(kind="parameter", stat="gain"),
        Need(kind="parameter", stat="changed_share", phase="update"),
        Need(kind="parameter", stat="learning_rate", phase="update"),
    ),
    measures="of a 16-bit matrix's elements that have a gradient, the share that an optimizer step gave another value: "
    "the largest of all measured steps. A matrix that the optimizer keeps in float32 as well loses nothing.",
    severities=("warning", "info"),
    severity="warning where less than a quarter changed, info where less than half did; in at least half of the "
    "matrices",
    bounds={"lost": 0.25, "half": 0.5, "fewest": 3, "anew": 0.4},
    bound="1/4, over at least 3 measured steps, once the learning rate no longer rises. A step that is smaller than "
    "half the distance to the next number leaves a weight as it is: in bfloat16 that is 2^-9 to 2^-8 of the weight, "
    "so a full step of Adam at 1e-5 reaches only weights below 2^-8 = 0.004, 15% of those with a deviation of 0.02, "
    "one at 1e-4 those below 2^-5, 88%; past the first steps Adam's are a third of that, 5% and 30%. Rounding to the "
    "nearest reaches the same small weights every time. Where each step reaches others (stochastic rounding, Kahan "
    "sums), n steps that change a share of s each move 1 - (1 - s)^n in all, or somewhat less as small weights move "
    "more often: on one small model at three rates 0.53 to 0.81 of it were measured over 16 to 32 steps, and at most "
    "0.23 where rounding is to the nearest. From 0.4 on, over 16 to 64 steps, nothing is lost; over thousands rare "
    "large gradients carry most elements once, and prove nothing.",
    explains=("RUN805",),
    why="What rounding swallows is not made up for later: the weights stand still while gradients and loss look sound.",
    advice=(
        "Keep the weights in float32 and compute under autocast, or let the optimizer hold a float32 copy.",
        "Round stochastically when the update is added.",
        "Raise the learning rate, as far as the run allows.",
    ),
    try_command="evenkeel rules NUM610",
    source="Zamirai et al. 2020, Revisiting BFloat16 Training; Micikevicius et al. 2018, section 3.1",
    firing=(example("bfloat16 weights at 1e-5", *_halves(0.1, 0.12, 0.08), dtype="bfloat16"),),
    silent=(
        example("bfloat16 weights at 3e-4", *_halves(0.97, 0.98, 0.96, rate=3e-4), dtype="bfloat16"),
        example(
            "stochastic rounding: each step reaches others",
            *_halves(0.1, 0.12, 0.08, moved=lambda share, step: 0.6 * (1 - (1 - share) ** (10 * step))),
            dtype="bfloat16",
        ),
        example("too few steps to tell", *_halves(0.0, 0.0, 0.0, steps=2), dtype="bfloat16"),
    ),
    judge=_judge_lost,
)
