"""The residual stream: whether blocks carry their input on, how it grows, and its massive channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import families
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis
from evenkeel.nn import AttentionConfig, FeedForwardConfig, NormConfig, Transformer, TransformerConfig

CODES = ("NUM607", "NUM608", "ARC704")


def found(diagnosis: Diagnosis, *codes: str) -> dict[str, tuple[str, list[str]]]:
    """Severity and paths of these findings."""
    return {
        item.code: (item.severity, [site.rpartition(":")[0] for site in item.sites])
        for item in diagnosis.findings
        if item.code in (codes or CODES)
    }


def readings(diagnosis: Diagnosis, stat: str) -> dict[str, float]:
    return {item.site.rpartition(":")[0]: item.values[0] for item in diagnosis.readings if item.stat == stat}


def decoder(depth: int = 4, *, seed: int = 0, **parts: Any) -> Transformer:
    parts = {"attention": AttentionConfig(heads=4), **parts}
    return Transformer(TransformerConfig(depth=depth, d_model=32, **parts), seed=seed)


def tokens(length: int = 32) -> Tensor:
    return torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(1))


# --- blocks that carry their input -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families.CONFIGS)
def test_every_family_carries_its_input(family: str) -> None:
    """Pre-norm, post-norm, parallel, recurrent, mixtures of experts, encoder and decoder, images."""
    model, batch = families.make(family)
    diagnosis = ek.inspect(model, [batch])
    carried = readings(diagnosis, "carries_input")
    assert len(carried) >= 2 and set(carried.values()) == {1.0}
    assert {code: item for code, item in found(diagnosis).items() if item[0] != "info"} == {}


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("depth", [2, 12, 24])
def test_deep_models_of_our_own_are_silent(depth: int, placement: Any) -> None:
    model = decoder(depth, norm=NormConfig(kind="layer", placement=placement))
    assert found(ek.inspect(model, [tokens()], backward=False)) == {}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_stock_layers_carry_their_input(norm_first: bool, training: bool) -> None:
    """In eval mode without gradients torch runs a layer as one call, whose inside nobody sees."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    diagnosis = ek.inspect(model, [torch.randn(2, 9, 16)], backward=training)
    assert found(diagnosis, "ARC704") == {}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


Wiring = Callable[[Tensor, nn.Module, nn.Module, nn.Module], Tensor]


class Block(nn.Module):
    """A block of any wiring of its parts."""

    def __init__(self, wiring: Wiring) -> None:
        super().__init__()
        self.attention, self.feedforward, self.norm, self.wiring = Attention(), FeedForward(), nn.LayerNorm(16), wiring

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(x, self.attention, self.feedforward, self.norm)


class Doubled(torch.autograd.Function):
    """As a fused kernel: x + y, which no function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        with torch._C.DisableTorchFunction():
            return x + y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient


def in_place(x: Tensor, a: nn.Module, f: nn.Module, n: nn.Module) -> Tensor:
    x = x.clone()
    x += a(n(x.clone()))
    return x.add_(f(n(x.clone())))


def indexed(x: Tensor, a: nn.Module, f: nn.Module, n: nn.Module) -> Tensor:
    """Tokens in another order and back, with padding, as windows and mixtures move them."""
    order = torch.randperm(x.shape[1])
    y = F.pad(x[:, order], (0, 0, 0, 3))
    y = y + a(n(y)) + f(n(y))
    return torch.zeros_like(x).index_add(1, order, y[:, :-3])


CARRYING: dict[str, Wiring] = {
    "pre-norm": lambda x, a, f, n: (y := x + a(n(x))) + f(n(y)),
    "post-norm": lambda x, a, f, n: n((y := n(x + a(x))) + f(y)),
    "parallel": lambda x, a, f, n: x + a(n(x)) + f(n(x)),
    "behind the norm": lambda x, a, f, n: (y := n(x)) + a(y) + f(y),
    "scaled": lambda x, a, f, n: 0.9 * (y := 0.7 * x + 0.3 * a(n(x))) + 0.1 * f(n(y)),
    "highway": lambda x, a, f, n: torch.lerp(x, f(a(n(x))), torch.sigmoid(x)),
    "concatenated and split": lambda x, a, f, n: torch.cat([x, a(n(x)) + f(x)], -1).unflatten(-1, (2, -1)).sum(-2),
    "in place": in_place,
    "indexed": indexed,
    "in a kernel": lambda x, a, f, n: Doubled.apply(Doubled.apply(x, a(n(x))), f(n(x))),
    "checkpointed": lambda x, a, f, n: checkpoint(lambda z: z + f(a(n(z))), x, use_reentrant=False),
    "cast": lambda x, a, f, n: (x.double() + a(n(x)).double() + f(n(x))).to(x.dtype),
}

CUT: dict[str, Wiring] = {
    "no residual at all": lambda x, a, f, n: f(n(a(n(x)))),
    "none around attention": lambda x, a, f, n: (y := a(n(x))) + f(n(y)),
    "none around the feed-forward": lambda x, a, f, n: f(n(x + a(n(x)))),
    "none around the feed-forward, post-norm": lambda x, a, f, n: n(f(n(x + a(x)))),
    "a sum of branches": lambda x, a, f, n: a(n(x)) + f(n(x)),
}


def stacked(wiring: Wiring, blocks: int = 3) -> Diagnosis:
    torch.manual_seed(0)
    return ek.inspect(nn.Sequential(*(Block(wiring) for _ in range(blocks))), [torch.randn(4, 24, 16)])


@pytest.mark.parametrize("name", CARRYING)
def test_a_sum_is_seen_however_it_is_written(name: str) -> None:
    diagnosis = stacked(CARRYING[name])
    assert set(readings(diagnosis, "carries_input").values()) == {1.0}
    assert found(diagnosis) == {}


@pytest.mark.parametrize("name", CUT)
def test_a_block_without_a_residual_branch_is_named(name: str) -> None:
    diagnosis = stacked(CUT[name])
    assert found(diagnosis, "ARC704") == {"ARC704": ("warning", ["0", "1", "2"])}


def test_one_block_among_sound_ones_is_named_alone() -> None:
    torch.manual_seed(0)
    wirings = [CARRYING["pre-norm"], CARRYING["pre-norm"], CUT["none around the feed-forward"], CARRYING["pre-norm"]]
    diagnosis = ek.inspect(nn.Sequential(*map(Block, wirings)), [torch.randn(4, 24, 16)])
    assert found(diagnosis, "ARC704") == {"ARC704": ("warning", ["2"])}


class InLists(nn.Module):
    """Branches in lists of their own, the sums between them (XLM, and much code by hand)."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([Attention(), FeedForward()]) for _ in range(3)])
        self.norm, self.drop, self.keep = nn.LayerNorm(16), nn.Dropout(0.1), keep

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            for branch in cast(nn.ModuleList, pair):
                x = self.norm(self.drop(branch(x)) + (x if self.keep else 0))
        return self.norm(x)


def test_sums_between_the_layers_count() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 24, 16)
    kept, cut = (ek.inspect(InLists(keep), [x]) for keep in (True, False))
    assert set(readings(kept, "carries_input").values()) == {1.0}
    assert set(readings(cut, "carries_input").values()) == {0.0}
    assert found(kept, "ARC704") == found(cut, "ARC704") == {}  # it takes a whole block to be sure


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("part", ["attention", "feedforward"])
def test_a_branch_that_swap_has_taken_is_missed(part: str, family: str) -> None:
    model, batch = families.make(family)
    with ek.swap(model, ek.Change(f"{part}.residual", False)):
        assert found(ek.inspect(model, [batch]), "ARC704")["ARC704"][0] == "warning"
    assert found(ek.inspect(model, [batch]), "ARC704") == {}


def test_the_change_clears_it() -> None:
    model = decoder(feedforward=FeedForwardConfig(residual=False))
    assert found(ek.inspect(model, [tokens()]), "ARC704")["ARC704"][0] == "warning"
    with ek.swap(model, ek.Change("feedforward.residual", True)):
        assert found(ek.inspect(model, [tokens()]), "ARC704") == {}


def test_the_cosine_is_that_of_input_and_output_without_what_all_tokens_share() -> None:
    model = decoder(2)
    seen: list[Any] = []
    handles = [
        block.register_forward_hook(lambda _, given, output: seen.extend((given[0], output))) for block in model.blocks
    ]
    diagnosis = ek.inspect(model, [tokens()])
    for handle in handles:
        handle.remove()
    for index, value in enumerate(readings(diagnosis, "input_cosine").values()):
        pair = (item.detach().double().flatten(0, -2) for item in seen[2 * index : 2 * index + 2])
        x, y = ((item - item.mean(0)).flatten() for item in pair)
        assert value == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-5)


# --- how the stream grows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_a_stream_that_nothing_bounds_is_named(depth: int) -> None:
    """Without norms, and with maps of gain 3: a block adds three times what it reads."""
    torch.manual_seed(0)

    def wiring(x: Tensor, a: nn.Module, f: nn.Module, n: nn.Module) -> Tensor:
        return x + 3 * f.get_submodule("down")(F.gelu(f.get_submodule("up")(x))) * 4

    model = nn.Sequential(*(Block(wiring) for _ in range(depth)))
    severity, paths = found(ek.inspect(model, [torch.randn(4, 24, 16)]))["NUM607"]
    assert severity == "warning" and paths == [str(index) for index in range(depth)]


def test_no_norm_is_told_before_its_consequences() -> None:
    diagnosis = ek.inspect(decoder(6, norm=NormConfig(placement="none")), [tokens()])
    main = {item.code for item in diagnosis.findings if not item.cause}
    assert "NUM607" in main and {item.code for item in diagnosis.findings} > main


# --- massive channels --------------------------------------------------------------------------------------------


def with_channel(factor: float, rows: slice = slice(None)) -> Diagnosis:
    """One channel of the embedding is this times a usual value, for some of the tokens."""
    model = decoder()
    with torch.no_grad():
        weight = model.get_parameter("embedding.weight")
        weight[rows, 5] = factor * weight.square().mean().sqrt()
    return ek.inspect(model, [tokens()])


@pytest.mark.parametrize(
    ("factor", "rows", "expected"),
    [
        (3.0, slice(None), None),
        (2e3, slice(0, 20), "info"),  # as trained models have them: few tokens
        (50.0, slice(None), "info"),  # every token
        (3e5, slice(None), "info"),
        (1e8, slice(None), "warning"),
    ],
)
def test_massive_channels(factor: float, rows: slice, expected: str | None) -> None:
    told = found(with_channel(factor, rows), "NUM608")
    assert told.get("NUM608", (None,))[0] == expected
