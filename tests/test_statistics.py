"""Statistics of tensors against their definitions in exact sums; merging; the sums that instruments read."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from evenkeel.errors import UsageError
from evenkeel.functional._statistics import (
    Magnitudes,
    TensorStatistics,
    _statistics_in_torch,
    tensor_statistics,
)
from evenkeel.functional._sums import (
    TEMPERATURES,
    _activation_in_torch,
    _logits_in_torch,
    _sizes_in_torch,
    activation_sums,
    logit_statistics,
    sizes,
)
from evenkeel.reference.statistics import tensor_statistics as by_definition

BOUNDS = (-0.5, 0.1, 2.0, math.inf)  # 0.1 lies between two floats
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channel_of(found: TensorStatistics, channel: int) -> TensorStatistics:
    named = {item.name: getattr(found, item.name) for item in fields(found) if item.name != "bounds"}
    return TensorStatistics(**{name: value[..., channel] for name, value in named.items()}, bounds=found.bounds)


def assert_as_defined(found: TensorStatistics, x: Tensor, rtol: float = 1e-12) -> None:
    """Moments to rtol of their size, and what a mean rounded to float64 costs; everything else exactly."""
    expected = by_definition(x, found.bounds)
    scale = math.sqrt(expected["second"] / max(1, expected["count"]))
    assert found.mean == pytest.approx(expected["mean"], rel=1e-14, abs=rtol * scale)
    rtol += 1e-14 * abs(expected["mean"]) / max(scale, 1e-300)
    for power, name in ((2, "second"), (3, "third"), (4, "fourth")):
        size = expected["count"] * scale**power
        assert float(getattr(found, name)) == pytest.approx(expected[name], rel=rtol, abs=rtol * size), name
    for name in ("count", "minimum", "maximum", "nan", "infinite", "below", "above"):
        assert getattr(found, name).tolist() == expected[name], name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (63,), (100,), (2000,), (511, 3), (130, 513), (3, 7, 40), (5, 0), (70_000,)]
)
def test_of_all_elements(shape: tuple[int, ...], dtype: torch.dtype):
    x = (drawn(*shape) * 2 + 0.3).to(dtype)
    assert_as_defined(tensor_statistics(x, bounds=BOUNDS), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((0, 3), -1), ((1, 1), 0), ((7, 5), 1), ((300, 6), 0), ((131, 530), -1), ((2, 9, 5), 1)]
)
def test_of_each_channel(shape: tuple[int, ...], channel_dim: int, dtype: torch.dtype):
    """Channels of very different mean and size, some with values that are not finite."""
    channels = shape[channel_dim]
    offset = torch.linspace(-50, 50, channels) * (torch.arange(channels) % 3)
    x = drawn(*shape).movedim(channel_dim, -1).contiguous() * torch.logspace(-3, 1, channels) + offset
    if x.numel() > 40:
        x.view(-1)[torch.tensor([3, 8, 13, 35])] = torch.tensor([math.nan, math.inf, -math.inf, math.nan])
    x = x.movedim(-1, channel_dim).to(dtype)
    found = tensor_statistics(x, channel_dim=channel_dim, bounds=BOUNDS)
    for channel in range(channels):
        assert_as_defined(channel_of(found, channel), x.select(channel_dim, channel))


HARD = {
    "a mean far from zero": lambda: 1e4 + drawn(3000),
    "a mean that drifts": lambda: drawn(3000) + torch.linspace(-1e5, 1e5, 3000),
    "a step": lambda: torch.cat([torch.zeros(70_000), 1e4 + drawn(70_000)]),
    "subnormals": lambda: drawn(700) * 1e-40,
    "huge values": lambda: drawn(700).clamp(-3, 3) * 1e38,
    "a first row like no other": lambda: torch.cat([torch.full((600,), 1e8), drawn(200_000)]),
    "nothing finite at first": lambda: torch.cat([torch.full((70_000,), math.nan), 1e4 + drawn(70_000)]),
    "one outlier": lambda: torch.cat([drawn(2000), torch.tensor([1e30])]),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_numbers(name: str):
    x = HARD[name]()
    assert_as_defined(tensor_statistics(x), x, rtol=1e-9)
    table = tensor_statistics(x.reshape(-1, 1).expand(-1, 7), channel_dim=1)
    assert_as_defined(channel_of(table, 6), x, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 7, 100, 4097, 200_000])
def test_equal_values_have_no_variance(count: int):
    found = tensor_statistics(torch.full((count,), 0.1))
    assert found.mean == float(torch.tensor(0.1))
    assert found.second == found.third == found.fourth == found.variance == found.kurtosis == found.skewness == 0


@pytest.mark.parametrize("split", [(0,), (1,), (40,), (1, 2), (17, 900)])
def test_merging_is_associative_and_equals_one_tensor(split: tuple[int, ...]):
    x = torch.cat([drawn(500) * 3 + 7, drawn(500) - 1e3])
    first, *rest = (tensor_statistics(part, bounds=BOUNDS) for part in x.tensor_split(split))
    left = first
    for part in rest:
        left = left.merged(part)
    assert_as_defined(left, x)
    right = rest[-1]
    for part in (*reversed(rest[:-1]), first):
        right = part.merged(right)
    assert_as_defined(right, x)


def test_shares_and_shape():
    found = tensor_statistics(torch.tensor([-2.0, -1.0, 0.0, 5.0, math.nan]), bounds=(-1.0, 4.0))
    assert found.share_below.tolist() == [0.25, 0.75]
    assert found.share_above.tolist() == [0.5, 0.25]
    x = drawn(5000).exp()
    centred = x.double().numpy() - x.double().numpy().mean()
    assert tensor_statistics(x).skewness == pytest.approx((centred**3).mean() / (centred**2).mean() ** 1.5)
    assert tensor_statistics(x).kurtosis == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2)
    assert tensor_statistics(x).absolute_maximum == x.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bound_between_two_floats(dtype: torch.dtype):
    """0.1 as a float32 lies above 0.1, and −0.1 below −0.1; 0.5 is a float32 itself; 1e39 none has."""
    x = torch.tensor([0.1, -0.1, 0.5, math.inf, -math.inf]).to(dtype)
    found = tensor_statistics(x, bounds=(0.1, -0.1, 0.5, 1e39, -math.inf))
    assert found.below.tolist() == [1, 1, 2, 3, 0]
    assert found.above.tolist() == [2, 2, 0, 0, 3]


def test_what_makes_no_sense_is_refused():
    for wrong in (
        lambda: tensor_statistics(torch.arange(3)),
        lambda: tensor_statistics(drawn(3, 2), channel_dim=2),
        lambda: tensor_statistics(drawn(3), bounds=(math.nan,)),
        lambda: tensor_statistics(drawn(3), bounds=(1.0,)).merged(tensor_statistics(drawn(3))),
    ):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_and_torch_agree(threads: int):
    x = drawn(900, 700) + 3
    x[17, 20], x[800, 650] = math.inf, math.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, expected = tensor_statistics(x, channel_dim=-1, bounds=BOUNDS), _statistics_in_torch(x, BOUNDS)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.fourth, expected[4], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.third, expected[3], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.infinite, expected[8], rtol=0, atol=0)


def layouts() -> dict[str, Tensor]:
    x = drawn(37, 23, 11) * 3
    return {
        "contiguous": x,
        "transposed": x.transpose(0, 2),
        "strided": x[::2, :, 1:],
        "broadcast": x[:, :1].expand(37, 23, 11),
        "scalar": x[0, 0, 0],
        "empty": x[:0],
        "bfloat16": x.bfloat16(),
        "float16": x.half().mT,
        "float64": x.double(),
    }


@pytest.mark.parametrize("name", layouts())
def test_sizes(name: str):
    """Of any layout, what NumPy finds in float64; with NaN or inf among them, how many."""
    x = layouts()[name]
    wide = np.abs(x.double().numpy())
    expected = [(wide**2).sum(), wide.max() if wide.size else 0, 0]
    np.testing.assert_allclose(sizes(x).numpy(), expected, rtol=1e-13)
    if wide.size > 100:
        x = x.clone()
        x[0, 0, 0], x[5, 5, 5], x[6, 7, 8] = math.inf, -math.inf, math.nan
        squares, largest, count = sizes(x).tolist()
        assert math.isnan(squares) and math.isnan(largest) and count == 3
    torch.testing.assert_close(sizes(x), _sizes_in_torch(x), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (300, 1), (5, 7000), (130, 67)])
def test_activation_sums(shape: tuple[int, int], dtype: torch.dtype):
    x, y, slope = ((drawn(*shape, seed=seed) * 2).to(dtype) for seed in range(3))
    slope[slope < 0] = 0
    bound = torch.tensor(0.25, dtype=dtype)
    found = activation_sums(x, y, slope, bound)
    expected = _activation_in_torch(x.double(), y.double(), slope.double(), bound)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("scale", [0.01, 4.0, 500.0])
@pytest.mark.parametrize("classes", [1, 40, 5000])
def test_logit_statistics(classes: int, scale: float):
    logits = drawn(70, classes) * scale
    logits[3, classes // 2 :] = -math.inf if classes > 1 else 0
    wide = torch.cat([logits, drawn(70, 3)], 1)[:, :classes]  # rows that do not touch
    for every in (0, 1, 7):
        expected = _logits_in_torch(logits.double(), every)
        for source in (logits, wide):
            for one, other in zip(logit_statistics(source, every), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


def test_temperatures_are_those_of_the_columns():
    logits = drawn(3, 9)
    _, heated = logit_statistics(logits, 1)
    z = logits.double() - logits.double().amax(1, keepdim=True)
    expected = torch.stack([(z / temperature).exp().sum(1) for temperature in TEMPERATURES], 1)
    torch.testing.assert_close(heated, expected, rtol=1e-6, atol=0)
    assert min(TEMPERATURES) == 1 / 4 and max(TEMPERATURES) == 4


@pytest.mark.parametrize("count", [1, 2, 5, 1000, 4001])
@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-40])
def test_median(count: int, scale: float):
    x = drawn(count) * scale
    magnitudes = Magnitudes()
    magnitudes.add(x)
    assert magnitudes.median() == np.median(np.abs(x.double().numpy()))
    x[count // 2] = math.nan
    magnitudes.add(x)
    assert magnitudes.median().isnan()


OPERATORS = {
    "tensor_statistics": lambda x: (torch.ops.evenkeel.tensor_statistics.default, (x, [0.5, 1.0])),
    "sizes": lambda x: (torch.ops.evenkeel.sizes.default, (x,)),
    "activation_sums": lambda x: (torch.ops.evenkeel.activation_sums.default, (x, x + 1, x.abs(), x[0, 0].abs())),
    "logit_statistics": lambda x: (torch.ops.evenkeel.logit_statistics.default, (x, 2)),
    "median_size": lambda x: (torch.ops.evenkeel.median_size.default, (x.abs().reshape(-1),)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_in_order(name: str):
    for x in (drawn(9, 5), drawn(5, 9).mT, drawn(9, 5).double()):
        operator, arguments = OPERATORS[name](x)
        torch.library.opcheck(operator, arguments)


def test_fake_tensors_have_statistics_of_the_right_shape():
    with FakeTensorMode():
        found = tensor_statistics(torch.empty(4, 6), channel_dim=1, bounds=BOUNDS)
        assert found.variance.shape == (6,) and found.below.shape == (len(BOUNDS), 6)
