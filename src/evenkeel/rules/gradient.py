"""GRD5xx: gradients that vanish or explode on their way through the blocks, or do not arrive."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ..schema import Change, Evidence, Site
from ._examples import Place, at, example
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule
from ._stacks import stack_of
from ._training import is_solved


@dataclass(frozen=True)
class _Block:
    """A block's output: place in its stack, its size, the gradient there and the part of that across the output."""

    site: Site
    place: int
    size: float
    gradient: float
    across: float

    @property
    def relative(self) -> float:
        """The gradient relative to the output's own size."""
        return self.gradient * self.size


def _stacks(measurements: Measurements, sites: tuple[Site, ...]) -> list[list[_Block]]:
    """Blocks of one list of layers, in execution order; encoder and decoder are two stacks.

    Without a head the loss is the output's sum of squares. A norm holds that sum nearly constant, so behind the last
    block the gradient is large and points where nothing can change: that block is left out.
    """
    if not measurements.of_kind("head"):
        sites = sites[:-1]
    stacks: dict[str, list[_Block]] = defaultdict(list)
    for site in sites:
        stack = stacks[stack_of(site.path)]
        size = measurements.value(site, "residual_rms")
        gradient, across = (
            measurements.value(site, stat, "backward") for stat in ("gradient_rms", "gradient_across_rms")
        )
        stack.append(_Block(site, len(stack), size, gradient, across))
    return list(stacks.values())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _judge_vanishing(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    yield from _stopped(measurements, sites)
    for stack in _stacks(measurements, sites):
        live = [block for block in stack if 0 < block.gradient < math.inf]
        found = [case for pair in combinations(live, 2) if (case := _vanished(*pair, bounds["left"])) is not None]
        if found:  # the narrowest pair says most exactly where
            yield _of_what_is_left(measurements, min(found, key=lambda item: (item[0], -item[1].excess))[1])


def _stopped(measurements: Measurements, sites: tuple[Site, ...]) -> Iterator[Case]:
    """A gradient that is exactly 0 although it was not behind a later block."""
    gradients = [measurements.value(site, "gradient_rms", "backward") for site in sites]
    last_live = max((place for place, gradient in enumerate(gradients) if gradient > 0), default=-1)
    zero = [place for place in range(last_live) if gradients[place] == 0]
    if zero:
        behind = next(place for place in range(zero[-1], len(sites)) if gradients[place] > 0)
        yield Case(
            severity="error",
            sites=(*(sites[place] for place in zero), sites[behind]),
            evidence=(Evidence(stat="gradient_rms", value=0.0, bound=gradients[behind], unit="loss per unit"),),
            message=f"the gradient stops in {sites[behind].path}: it is {gradients[behind]:.3g} behind that block and "
            f"exactly 0 behind {sites[zero[-1]].path}; {len(zero)} of {len(sites)} blocks get none",
            excess=math.inf,
        )


def _vanished(earlier: _Block, later: _Block, left: float) -> tuple[int, Case] | None:
    blocks = later.place - earlier.place
    ratios = [_ratio(earlier.gradient, later.gradient), _ratio(earlier.across, later.across)]
    ratios += [ratio * _ratio(earlier.size, later.size) for ratio in ratios]
    share = max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan)
    bound = left * 2 ** (-blocks / 2)
    if not share < bound:
        return None
    case = Case(
        severity="warning",
        sites=(earlier.site, later.site),
        evidence=(Evidence(stat="gradient_rms", value=share, bound=bound, unit="ratio to the later block"),),
        message=f"of the gradient behind {later.site.path} a share of {share:.2g} arrives behind {earlier.site.path}, "
        f"{blocks} block{'s' * (blocks > 1)} earlier (bound {bound:.2g})",
        excess=bound / share,
    )
    return blocks, case


def _exploded(earlier: _Block, later: _Block, grown: float) -> tuple[int, Case] | None:
    blocks = later.place - earlier.place
    growth = min(_ratio(earlier.gradient, later.gradient), _ratio(earlier.relative, later.relative))
    bound = grown * 2 ** (blocks / 2)
    if not growth > bound:
        return None
    case = Case(
        severity="warning",
        sites=(earlier.site, later.site),
        evidence=(Evidence(stat="gradient_rms", value=growth, bound=bound, unit="ratio to the later block"),),
        message=f"the gradient grows {growth:.3g}-fold from behind {later.site.path} to behind {earlier.site.path}, "
        f"{blocks} block{'s' * (blocks > 1)} earlier (bound {bound:.3g})",
        excess=growth / bound,
    )
    return blocks, case


def _judge_exploding(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    for stack in _stacks(measurements, sites):
        live = [block for block in stack if 0 < block.gradient < math.inf]
        found = [case for pair in combinations(live, 2) if (case := _exploded(*pair, bounds["grown"])) is not None]
        if found:
            yield _of_what_is_left(measurements, min(found, key=lambda item: (item[0], -item[1].excess))[1])


def _of_what_is_left(measurements: Measurements, case: Case) -> Case:
    """Milder where the loss is next to nothing: the blocks did learn, and its gradient is what rounding leaves."""
    if not is_solved(measurements):
        return case
    note = "; the loss is less than a tenth of that of guessing, so little is left to pass on"
    return replace(case, severity="info", message=case.message + note)


def _judge_cut(measurements: Measurements, sites: tuple[Site, ...], bounds: Bounds) -> Iterator[Case]:
    ran = [site.path for site in measurements.of_kind("module") if measurements.values(site, "nonfinite")]
    order = {path: place for place, path in enumerate(ran)}
    leaves = _leaves(ran)
    blocks = [site.path for site in measurements.of_kind("residual")]
    inside = [path for path in ran if any(path.startswith(block + ".") for block in blocks)]
    start = min((order[path] for path in inside), default=len(ran))
    concerned = {
        site: order[module]
        for site in sites
        if (module := site.path.rpartition(".")[0]) in leaves and (module in inside or order[module] < start)
    }
    reached = [
        site for site in measurements.of_kind("parameter") if measurements.history(site, "gradient_rms", "backward")
    ]
    cut = sorted((site for site in concerned if site not in reached), key=lambda site: -concerned[site])
    if not reached or not any(site.path.rpartition(".")[0] in inside for site in cut):
        return
    yield Case(
        severity="warning",
        sites=tuple(cut),
        evidence=(Evidence(stat="gradient_rms", value=0.0, bound=0.0, unit="matrices with a gradient"),),
        message=f"{len(cut)} of {len(concerned)} trained matrices in and before the blocks ran and got no gradient at "
        f"all, {cut[0].path} the last of them: its output, or what is computed from it, is detached; "
        f"{len(reached)} other parameters have one",
        excess=len(cut),
    )


def _leaves(paths: list[str]) -> set[str]:
    around = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "."}
    return set(paths) - around


_NEEDS = (
    Need(kind="residual", stat="gradient_rms", phase="backward"),
    Need(kind="residual", stat="residual_rms"),
)


def _blocks(*gradients: float, across: Sequence[float] = ()) -> list[Place]:
    """Blocks with these gradients behind them, and a head."""
    blocks = [
        at(
            f"layers.{place}:residual.block",
            residual_rms=1.0,
            backward={"gradient_rms": gradient} | ({"gradient_across_rms": across[place]} if across else {}),
        )
        for place, gradient in enumerate(gradients)
    ]
    return [*blocks, at("lm_head:head.softmax", loss=2.0)]


GRD501 = Rule(
    code="GRD501",
    name="gradient vanishing through depth",
    needs=_NEEDS,
    measures="the rms of the loss's gradient behind every block, earlier blocks against later ones of the same stack",
    severities=(
        "error",
        "warning",
        "info",
    ),
    severity="error where it is exactly 0, else warning; info where the loss is less than a tenth of that of guessing",
    bounds={"left": 0.1},
    bound="over k blocks, 0.1 * 2^(-k/2). A post-norm stack at initialisation halves the gradient's energy per block, "
    "a factor of 2^(-1/2), and is known to train with warm-up; a tenth of that is the bound. A pre-norm stack "
    "keeps a ratio near or above 1. Both the plain ratio and the ratio of gradient times output size must pass the "
    "bound, so that a stream which changes its scale is no finding. So must that of the gradient's part across each "
    "token's output: the part along it only makes a vector longer, which the norm at the end of a post-norm block "
    "takes back, and in a trained classifier it is nearly all of the gradient behind the last block. Blocks that need "
    "no gradient (frozen) have none and are left out; so is the last block of a model without a head, whose loss, the "
    "sum of squares of the output, a norm holds constant.",
    why="Blocks in front of the place where the gradient vanishes do not learn: the model is only as deep as the part "
    "behind it.",
    advice=(
        "Give every block a residual branch: x + f(norm(x)).",
        "Put the norm in front of the branch (pre-norm).",
        "Use an activation whose slope is not far below 1: silu, gelu or relu in place of sigmoid.",
        "Check the block that is named: a norm weight or projection of 0, a detach, a saturated activation.",
    ),
    change=Change("feedforward.residual", True),
    claims=("C02", "C03", "C38"),
    try_command="evenkeel demo",
    source="Xiong et al. 2020, On Layer Normalization in the Transformer Architecture; Glorot and Bengio 2010; bound "
    "derived here",
    firing=(
        example("sigmoid feed-forwards without residual branches", *_blocks(1e-7, 2e-6, 3e-5, 6e-4, 1e-2)),
        example("a zeroed norm in block 2", *_blocks(0.0, 0.0, 0.9, 1.0)),
    ),
    silent=(
        example("a pre-norm residual stack", *_blocks(1.3, 1.2, 1.1, 1.0)),
        example("a post-norm stack", *_blocks(0.13, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)),
        example(
            "frozen lower blocks, which have no gradient",
            at("layers.0:residual.block", residual_rms=1.0),
            *_blocks(1.2, 1.1, 1.0)[1:],
        ),
        example(
            "a stream that shrinks: a small gradient at a large value",
            at("layers.0:residual.block", residual_rms=50.0, backward={"gradient_rms": 0.01}),
            at("layers.1:residual.block", residual_rms=1.0, backward={"gradient_rms": 1.0}),
            at("lm_head:head.softmax", loss=2.0),
        ),
        example(
            "an encoder without a head: behind its last norm the loss is constant",
            *_blocks(0.005, 0.005, 0.006, 1.0)[:-1],
        ),
        example(
            "a trained post-norm classifier: behind its last norm the gradient points along the output",
            *_blocks(0.034, 0.04, 1.0, across=(0.034, 0.04, 0.16)),
        ),
    ),
    judge=_judge_vanishing,
)

GRD502 = Rule(
    code="GRD502",
    name="gradient exploding through depth",
    needs=_NEEDS,
    measures="the rms of the loss's gradient behind every block, earlier blocks against later ones of the same stack",
    severities=("warning", "info"),
    severity="warning; info where the loss is less than a tenth of that of guessing",
    bounds={"grown": 100.0},
    bound="over k blocks, 100 * 2^(k/2): GRD501's bound turned round, and wider, because single tokens (massive "
    "activations, zero embeddings) can hold most of a gradient's energy. In a pre-norm stack the gradient grows "
    "towards the input about as the stream shrinks, sqrt(k), and gradient times output size stays level; both ratios "
    "must pass the bound.",
    why="The first blocks then take steps far larger than the last ones, one learning rate cannot serve both, and "
    "clipping scales everybody's step down to theirs.",
    advice=(
        "Put a norm in front of every branch (pre-norm).",
        "Lower the init scale of the branches' output projections, by 1/sqrt(2 * blocks) as in GPT-2.",
        "Clip gradients while the cause is sought.",
    ),
    change=Change("norm.placement", "pre"),
    claims=("C02", "C36"),
    try_command="evenkeel rules GRD502",
    source="Pascanu, Mikolov and Bengio 2013; Xiong et al. 2020; bound derived here",
    firing=(example("a plain stack with gain 20 per block", *_blocks(1.6e5, 8000.0, 400.0, 20.0, 1.0)),),
    silent=(
        example("a pre-norm residual stack", *_blocks(2.5, 1.8, 1.3, 1.0)),
        example(
            "a stream that starts small: a large gradient at a small value",
            at("layers.0:residual.block", residual_rms=0.01, backward={"gradient_rms": 500.0}),
            at("layers.1:residual.block", residual_rms=2.0, backward={"gradient_rms": 2.0}),
            at("lm_head:head.softmax", loss=2.0),
        ),
    ),
    judge=_judge_exploding,
)


def _trained(path: str, gradient: float | None) -> list[Place]:
    """A linear map that ran, with its weight; its gradient, or None where there is none."""
    backward = {} if gradient is None else {"gradient_rms": gradient}
    return [
        at(f"{path}:module.Linear", nonfinite=0.0),
        at(f"{path}.weight:parameter.parameter", gain=0.6, backward=backward),
    ]


def _two_blocks(first: float | None, second: float | None) -> list[Place]:
    return [
        *_trained("layers.0.up", first),
        at("layers.0:residual.block", residual_rms=1.0),
        *_trained("layers.1.up", second),
        at("layers.1:residual.block", residual_rms=1.0),
    ]


GRD503 = Rule(
    code="GRD503",
    name="no gradient for a part that runs",
    needs=(Need(kind="parameter", stat="gain"),),
    measures="which trainable matrices got no gradient in any measured step although the module that holds them ran, "
    "in the blocks and in front of them, while others got one. A gradient of zeros is a gradient.",
    severities=("warning",),
    severity="warning",
    bound="none. Frozen weights are not trainable; modules that did not run, and those behind the last block whose "
    "output nobody used (BERT's pooler), need none; LoRA's A has a gradient of zeros while B is zero.",
    explains=("GRD501", "RUN805"),
    why="A detach, a no_grad or a conversion to numbers cuts the graph: everything in front of it on that path keeps "
    "its initial weights, while the loss falls with the rest and looks sound.",
    advice=(
        "Look behind the module that is named: .detach(), .data, torch.no_grad(), .item(), NumPy, an argmax.",
        "With reentrant checkpointing, give the block an input that needs a gradient, or use use_reentrant=False.",
        "Freeze what is not to be trained: parameter.requires_grad_(False).",
    ),
    try_command="evenkeel rules GRD503",
    source="torch.autograd's documentation: a parameter without a path to the loss has grad None",
    firing=(example("a block whose branch is detached", *_two_blocks(0.01, None), *_trained("lm_head", 0.1)),),
    silent=(
        example("gradients everywhere", *_two_blocks(0.01, 0.02), *_trained("lm_head", 0.1)),
        example("a gradient of zeros", *_two_blocks(0.0, 0.02), *_trained("lm_head", 0.1)),
        example("a pooler that nobody uses", *_two_blocks(0.01, 0.02), *_trained("pooler.dense", None)),
        example("no backward pass", *_two_blocks(None, None)),
    ),
    judge=_judge_cut,
)
