"""Linear maps, RMS norms and rotary positions: kernels equal float64 for all that they take, and take nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from between_cases import DTYPES, NAMES, UNIT, calls, close, counted, exactly
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from nn_cases import normal
from sampling_cases import either_way
from torch import Tensor

from evenkeel.functional import linear, rms_norm, rotate
from evenkeel.kernels import cpu
from evenkeel.kernels.cpu import between

pytestmark = pytest.mark.usefixtures("poisoned")


@trials(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5),
    inputs=st.one_of(st.integers(1, 70), st.sampled_from((255, 256, 513))),
    outputs=st.integers(1, 90),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(("flat", "one more", "one row")),
)
def test_products_are_right_to_rounding(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, shape: str
) -> None:
    x, weight = normal(rows, inputs).to(dtype), normal(outputs, inputs, seed=1).to(dtype)
    added = normal(outputs, seed=2).to(dtype) if bias else None
    if shape == "one more":
        x = x[:, None]
    if shape == "one row" and rows == 1:
        x = x[0]
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    if added is not None:
        exact, size = exact + added.double(), size + added.double().abs()
    for _ in either_way():
        with torch.no_grad():
            close(linear(x, weight, added), exact, size, dtype)


def test_few_rows_go_to_the_kernel_and_no_more() -> None:
    weight = normal(20, 30, dtype=torch.float32)
    with torch.no_grad():
        for dtype, most in ((torch.float32, 4), (torch.bfloat16, 1), (torch.float16, 0), (torch.float64, 0)):
            for rows in range(1, 6):
                with counted() as called:
                    linear(normal(rows, 30).to(dtype), weight.to(dtype))
                    linear(normal(1, rows, 30).to(dtype), weight.to(dtype), normal(20).to(dtype))
                assert called == ["products"] * (2 if rows <= most else 0)


@trials(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    size=st.integers(1, 200),
    epsilon=st.sampled_from((1e-6, 1e-5, 1e-2, 1.0)),
    offset=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from((1e-4, 1.0, 1e3)),
)
def test_rms_norms_are_right_to_rounding(
    shape: list[int], size: int, epsilon: float, offset: bool, dtype: torch.dtype, scale: float
) -> None:
    x, weight = (scale * normal(*shape, size)).to(dtype), (0.01 * normal(size, seed=1)).to(dtype)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * (weight.double() + int(offset))
    for _ in either_way():
        for grad in (True, False):
            with torch.no_grad():
                found = rms_norm(x, weight, epsilon=epsilon, offset=offset)
            if grad:
                found = rms_norm(x.clone().requires_grad_(), weight, epsilon=epsilon, offset=offset).detach()
            close(found, exact, exact.abs(), dtype)


@trials(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 5),
    heads=st.integers(1, 4),
    half=st.integers(1, 9),
    rest=st.integers(0, 5),
    own=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_rotations_are_products_of_complex_numbers(
    batch: int, length: int, heads: int, half: int, rest: int, own: bool, dtype: torch.dtype
) -> None:
    x = normal(batch, length, heads, 2 * half + rest).to(dtype)
    angles = 10 * normal(batch if own else 1, length, half, seed=1)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    wide = x.double()
    turned = torch.complex(wide[..., :half], wide[..., half : 2 * half])
    turned = turned * torch.complex(cosine.double(), sine.double())[:, :, None]
    exact = torch.cat([turned.real, turned.imag, wide[..., 2 * half :]], dim=-1)
    size = 6 * UNIT[dtype] * wide.abs().amax(-1, keepdim=True).expand_as(exact) if x.numel() else exact
    for _ in either_way():
        with torch.no_grad():
            found = rotate(x, cosine, sine)
        assert found.dtype == dtype and found.shape == x.shape
        assert bool(((found.double() - exact).abs() <= size).all())
        assert torch.equal(found[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_kernels_serve_plain_tensors(name: str, dtype: torch.dtype) -> None:
    function, given = calls(dtype)[name]
    before = [item.clone() for item in given]
    with torch.no_grad(), counted() as called:
        found = function(*given)
    assert len(called) == 1
    close(found, exactly(name, given), 10.0, dtype)
    assert all(torch.equal(item, own) for item, own in zip(given, before, strict=True))
    assert found.is_contiguous() and found.untyped_storage().nbytes() == found.numel() * found.element_size()
    with torch.inference_mode(), counted() as called:
        assert torch.equal(function(*given), found)
    assert len(called) == 1
    given[1] = torch.nn.Parameter(given[1])
    with torch.no_grad(), counted() as called:
        assert torch.equal(function(*given), found)
    assert len(called) == 1


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_strides_are_heeded(name: str, place: int) -> None:
    """What is not contiguous is torch's; what begins inside a larger tensor is not mistaken for its beginning."""
    function, given = calls()[name]
    exact = exactly(name, given)
    item = given[place]
    apart = torch.stack([item, torch.full_like(item, 9.0)], dim=-1)[..., 0]
    behind = torch.cat([torch.full((5,), 9.0), item.flatten()])[5:].view(item.shape)
    assert not apart.is_contiguous() and behind.is_contiguous()
    for changed in (apart, behind):
        with torch.no_grad():
            close(function(*given[:place], changed, *given[place + 1 :]), exact, 10.0, torch.float32)


def test_angles_that_do_not_fit_are_torchs_matter() -> None:
    """The kernel takes addresses: nothing of another shape may reach it."""
    x, angles = normal(2, 3, 1, 8, dtype=torch.float32), normal(2, 3, 4, dtype=torch.float32)
    wrong = [
        (x, angles[:, :2].contiguous(), angles[:, :2].contiguous()),
        (x, torch.cat([angles, angles], dim=2), torch.cat([angles, angles], dim=2)),
        (x, angles, angles[:1]),
        (x, torch.cat([angles, angles]), torch.cat([angles, angles])),
        (x[0], angles, angles),
    ]
    called: list[Any] = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(between, "rotations", lambda *arguments: called.append(arguments))
        for arguments in wrong:
            with contextlib.suppress(RuntimeError, IndexError):
                rotate(*arguments)
        assert not called
        rotate(x, angles, angles)
    assert len(called) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(torch.zeros(1, 5), torch.zeros(3, 4)),
        lambda: linear(torch.zeros(1, 4), torch.zeros(3, 4), torch.zeros(2)),
        lambda: linear(torch.zeros(1, 4), torch.zeros(3, 4).bfloat16()),
        lambda: rms_norm(torch.zeros(2, 4), torch.zeros(3)),
    ],
)
def test_what_does_not_fit_raises_what_torch_raises(call: Callable[[], Tensor]) -> None:
    for _ in either_way():
        with torch.no_grad(), pytest.raises(RuntimeError):
            call()


def test_angles_may_be_wider_than_what_they_turn() -> None:
    x, cosine, sine = calls()["rotate"][1]
    with torch.no_grad(), counted() as called:
        found = rotate(x.bfloat16(), cosine, sine)
    assert not called
    close(found, exactly("rotate", [x.bfloat16(), cosine, sine]), 10.0, torch.bfloat16)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("offset", [True, False])
def test_norms_may_have_wider_weights_than_what_they_norm(offset: bool) -> None:
    x, weight = normal(3, 12).bfloat16(), normal(12, seed=1, dtype=torch.float32)
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (weight.double() + int(offset))
    with torch.no_grad():
        close(rms_norm(x, weight, offset=offset), exact, exact.abs(), torch.bfloat16)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_matrices_in_other_layouts_are_torchs() -> None:
    weight = normal(6, 8, dtype=torch.float32)
    with torch.no_grad(), counted() as called:
        found = linear(torch.ones(1, 8), weight.to_sparse_csr())
    assert not called
    close(found, weight.double().sum(1)[None], 10.0, torch.float32)


def test_kernels_are_not_there_where_they_are_off() -> None:
    for turn, _ in enumerate(either_way()):
        with torch.no_grad(), counted() as called:
            for function, given in calls().values():
                function(*given)
        assert len(called) == (3 if turn == 0 and cpu.unavailable_because() is None else 0)


def test_large_products_are_shared_among_threads_to_the_same_numbers() -> None:
    x, weight = normal(3, 512, dtype=torch.float32), normal(700, 512, seed=1, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with torch.no_grad():
                found.append(linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    close(found[0], x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T, torch.float32)
