"""Models that only look sick: what is done on purpose, or is not finished yet, is no finding."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis
from evenkeel.measuring import _widths
from evenkeel.tracing.structure import Structure

IDS = torch.randint(0, 64, (4, 24), generator=torch.Generator().manual_seed(0))
Answer = dict[str, Tensor]


def alarms(diagnosis: Diagnosis) -> set[str]:
    return {item.code for item in diagnosis.findings if item.severity != "info"}


def answer(logits: Tensor, targets: Tensor) -> Answer:
    return {"loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()), "logits": logits}


# --- weights of unit variance, scaled in the forward pass ----------------------------------------------------------


class Map(nn.Module):
    """N(0, 1) weights; scaled by 1/sqrt(inputs) is the input, the weight, the output, or nothing."""

    def __init__(self, inputs: int, outputs: int, scaled: str) -> None:
        super().__init__()
        self.weight, self.scaled = nn.Parameter(torch.randn(outputs, inputs)), scaled

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight.shape[1] ** -0.5
        x, weight = (x * factor if self.scaled == "input" else x, self.weight)
        y = F.linear(x, weight * factor if self.scaled == "weight" else weight)
        return y * factor if self.scaled == "output" else y


class Block(nn.Module):
    def __init__(self, width: int, scaled: str) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = Map(width, 3 * width, scaled), Map(width, width, scaled)
        self.up, self.down = Map(width, 4 * width, scaled), Map(4 * width, width, scaled)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.into(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.inner(x))))


class UnitModel(nn.Module):
    def __init__(self, scaled: str, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(64, width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, scaled) for _ in range(2)])
        self.head = Map(width, 64, scaled)

    def forward(self, input_ids: Tensor) -> Answer:
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x)
        return answer(self.head(self.norm(x))[:, :-1], input_ids[:, 1:])


@pytest.mark.parametrize("scaled", ["input", "weight", "output", "nothing"])
def test_weights_of_unit_variance_are_of_the_wrong_size_where_nothing_scales_them(scaled: str) -> None:
    found = alarms(ek.inspect(UnitModel(scaled), [{"input_ids": IDS}]))
    assert ("NUM609" in found) is (scaled == "nothing") and (scaled == "nothing" or not found)


def test_widths_of_grouped_convolutions() -> None:
    depthwise, grouped, turned = (
        nn.Conv2d(64, 64, 7, groups=64),
        nn.Conv1d(16, 32, 3, groups=4),
        nn.ConvTranspose1d(16, 32, 3, groups=4),
    )
    assert _widths(depthwise) == {id(depthwise.weight): 49.0}
    expected = math.sqrt(4 * 8) * 3
    assert _widths(grouped) == {id(grouped.weight): pytest.approx(expected)}
    assert _widths(turned) == {id(turned.weight): pytest.approx(expected)}


# --- encoders that see the same tokens -----------------------------------------------------------------------------


class Copier(nn.Module):
    """torch's encoder and decoder; masked: whether the decoder sees no later tokens."""

    def __init__(self, *, masked: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked, self.embedding, self.head = masked, nn.Embedding(64, 32), nn.Linear(32, 64)
        self.body = nn.Transformer(32, 2, 2, 2, 64, dropout=0.0, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Answer:
        given, wanted = target[:, :-1], target[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1]) if self.masked else None
        return answer(self.head(self.body(self.embedding(source), self.embedding(given), tgt_mask=mask)), wanted)


class AutoEncoder(Copier):
    def forward(self, input_ids: Tensor) -> Answer:  # type: ignore[override]
        return super().forward(input_ids, input_ids)


def test_an_encoder_may_read_what_its_decoder_is_to_write() -> None:
    assert "OUT406" not in alarms(ek.inspect(Copier(), [{"source": IDS, "target": IDS.clone()}]))
    assert "OUT406" not in alarms(ek.inspect(AutoEncoder(), [{"input_ids": IDS}]))


@pytest.mark.parametrize("source", [IDS, IDS.flip(0)])
def test_a_decoder_without_its_mask_is_found_whatever_its_encoder_reads(source: Tensor) -> None:
    assert "OUT406" in alarms(ek.inspect(Copier(masked=False), [{"source": source, "target": IDS}]))


# --- updates that register although few elements change in a step --------------------------------------------------


class Stochastic(torch.optim.SGD):
    """Steps of sign(gradient), rounded up or down in proportion, or to the nearest."""

    def __init__(self, parameters, *, lr: float, nearest: bool) -> None:
        super().__init__(parameters, lr=lr)
        self.nearest = nearest

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for item in group["params"]:
                wide = item.float() - group["lr"] * item.grad.float().sign()
                if not self.nearest:
                    bits = wide.view(torch.int32)
                    wide = ((bits + torch.randint_like(bits, 2**16)) & -(2**16)).view(torch.float32)
                item.copy_(wide)


@pytest.mark.parametrize("nearest", [True, False])
def test_stochastic_rounding_loses_nothing(nearest: bool) -> None:
    torch.manual_seed(0)
    net = ek.Transformer(ek.TransformerConfig(vocabulary=64, context=24, depth=2, d_model=32), seed=0).bfloat16()
    optimizer = Stochastic(net.parameters(), lr=2e-5, nearest=nearest)
    with ek.watch(net, optimizer=optimizer, every=8) as watch:
        for _ in range(33):
            with watch.step():
                net(IDS, labels=IDS).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        assert ("NUM610" in alarms(watch.diagnose())) is nearest


# --- the rest ------------------------------------------------------------------------------------------------------


def test_an_activation_that_works_in_place_does_not_spoil_the_names_of_others() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.0), nn.GELU(), nn.Linear(2, 2)).eval()
    assert [Structure(net).pointwise_op(net[place]) for place in range(3)] == ["relu", "affine", "gelu"]
    structure = Structure(net)
    assert [structure.pointwise_op(net[place]) for place in range(3)] == ["relu", "affine", "gelu"]


def test_maps_are_even_as_drawn_and_uneven_where_rows_differ() -> None:
    def unevenness(net: nn.Module) -> float:
        readings = ek.inspect(net, [{"input_ids": IDS, "labels": IDS}]).readings
        return statistics.median(item.values[0] for item in readings if item.stat == "unevenness")

    net = ek.Transformer(ek.TransformerConfig(vocabulary=64, context=24, depth=2, d_model=32), seed=0)
    assert 0.5 < unevenness(net) < 1.6
    with torch.no_grad():
        for item in net.parameters():
            if item.dim() == 2:
                item *= torch.linspace(0.5, 1.5, len(item))[:, None]
    assert unevenness(net) > 3


def test_batch_norms_without_statistics_use_those_of_the_batch_and_keep_none() -> None:
    net = nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)).eval()
    seen: list[Tensor] = []
    net[4].register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    ek.inspect(net, [torch.randn(16, 8, 9)])
    assert all(not item.training for item in net.modules())
    assert float(seen[0].square().mean().sqrt()) == pytest.approx(1, abs=0.01)
    for norm in (item for item in net if isinstance(item, nn.BatchNorm1d)):
        kept = {name: float(item.float().mean()) for name, item in norm.named_buffers()}
        assert kept == {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def test_batch_norms_keep_statistics_that_a_count_does_not_tell_of() -> None:
    """Converted checkpoints count no batches; a norm may be called by keyword."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(input=x))

    net, x, seen = Named().eval(), torch.randn(16, 8, 9), list[Tensor]()
    net.norm.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    ek.inspect(net, [x])
    assert float(seen[-1].std()) == pytest.approx(1, abs=0.01)
    assert net.norm.running_mean is not None and net.norm.running_var is not None
    net.norm.running_mean.fill_(3)
    net.norm.running_var.fill_(9)
    ek.inspect(net, [x])
    torch.testing.assert_close(seen[-1], (x - 3) / (9 + net.norm.eps) ** 0.5)


def test_an_empty_matrix_of_16_bits_takes_its_steps() -> None:
    net = nn.Linear(4, 0).bfloat16()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ek.watch(net, optimizer=optimizer, every=1) as watch:
        for _ in range(2):
            with watch.step():
                net(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
                optimizer.step()


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_logits_that_were_in_16_bits_stay_coarse(join) -> None:
    """A head in chunks, whose logits are put together and cast up for the loss."""

    class Chunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 8).bfloat16(), nn.Linear(8, 64).bfloat16()

        def forward(self, input_ids: Tensor) -> Answer:
            logits = join([self.head(self.embedding(part)) for part in input_ids.chunk(2)])
            return answer(logits.float().reshape(*input_ids.shape, 64), input_ids)

    readings = ek.inspect(Chunks(), [{"input_ids": IDS}]).readings
    assert [item.values for item in readings if item.stat == "logit_epsilon"] == [(2.0**-7,)]


class Normed(nn.Module):
    """Blocks that end in a norm, with the sum written over their input or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"map": nn.Linear(16, 16), "norm": nn.LayerNorm(16)}) for _ in range(3)]
        )
        for number, block in enumerate(self.blocks):
            block.forward = lambda x, block=block, last=number == 2: self.block(block, x, last)

    def block(self, parts: nn.Module, x: Tensor, last: bool) -> Tensor:
        assert isinstance(parts, nn.ModuleDict)
        added = torch.tanh(parts["map"](x.clone()))  # what a map keeps for its gradient is not written over
        if self.in_place:
            return x.add_(added)
        return parts["norm"](x + added) if last else x + added

    def forward(self, input_ids: Tensor) -> Answer:
        x = self.embedding(input_ids).clone()
        for block in self.blocks:
            x = block(x)
        self.last = x
        return answer(self.head(x), input_ids)


def test_the_gradient_across_an_output_is_that_of_a_real_backward_pass() -> None:
    net = Normed(in_place=False)
    readings = ek.inspect(net, [{"input_ids": IDS}]).readings
    (found,) = [item.values[0] for item in readings if item.stat == "gradient_across_rms" and "blocks.2" in item.site]
    loss = net(IDS)["loss"]
    (gradient,) = torch.autograd.grad(loss, net.last)
    g, x = gradient.double(), net.last.double()
    across = g - (g * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True) * x
    assert found == pytest.approx(float(across.square().mean().sqrt()), rel=1e-5)


def test_an_output_that_was_written_over_has_no_gradient_across_it() -> None:
    diagnosis = ek.inspect(Normed(in_place=True), [{"input_ids": IDS}])
    across = {item.site for item in diagnosis.readings if item.stat == "gradient_across_rms"}
    assert across == {"blocks.2:residual.block"}  # the last, behind which nobody writes
