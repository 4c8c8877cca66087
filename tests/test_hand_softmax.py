"""Softmax spelled out: it is attention like any other, and NUM603 says when its maximum was not taken out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.diagnosis import Diagnosis

Softmax = Callable[[Tensor], Tensor]

_HIDDEN = torch.ones(12, 12).triu(1).bool()


def unshifted(s: Tensor) -> Tensor:
    e = torch.exp(s)
    return e / e.sum(-1, keepdim=True)


def by_methods(s: Tensor) -> Tensor:
    e = s.exp()
    return e.div(e.sum(dim=-1).unsqueeze(-1))


def with_epsilon(s: Tensor) -> Tensor:
    e = torch.exp(s)
    return e / (torch.sum(e, -1)[..., None] + 1e-9)


def masked_by_product(s: Tensor) -> Tensor:
    e = torch.exp(s.nan_to_num(neginf=0.0)) * (~_HIDDEN)
    return e / e.sum(-1, keepdim=True)


def shifted(s: Tensor) -> Tensor:
    return unshifted(s - s.amax(-1, keepdim=True))


def shifted_by_max(s: Tensor) -> Tensor:
    return unshifted(s - s.max(dim=-1, keepdim=True).values.detach())


def own(s: Tensor) -> Tensor:
    return s.softmax(-1)


class Block(nn.Module):
    """A block of causal attention in one head, with a softmax of somebody's and scores of this scale."""

    def __init__(self, softmax: Softmax, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(16, 16) for _ in range(4))
        self.softmax, self.scale = softmax, scale

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scale * (self.a(x) @ self.b(x).mT)
        x = x + self.softmax(scores.masked_fill(_HIDDEN, -math.inf)) @ self.c(x)
        return x + self.d(F.gelu(x))


def inspected(softmax: Softmax, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Diagnosis:
    torch.manual_seed(0)
    model = nn.Sequential(Block(softmax, scale), Block(softmax, scale)).to(dtype)
    return ek.inspect(model, [torch.randn(3, 12, 16).to(dtype)])


def readings(diagnosis: Diagnosis) -> dict[tuple[str, str], tuple[float, ...]]:
    return {(item.site, item.stat): item.values for item in diagnosis.readings if item.phase == "forward"}


WRITTEN = [unshifted, by_methods, with_epsilon, masked_by_product, shifted, shifted_by_max]


@pytest.mark.parametrize("softmax", WRITTEN, ids=lambda function: function.__name__)
def test_it_is_attention_with_the_same_readings(softmax: Softmax) -> None:
    expected, found = readings(inspected(own)), readings(inspected(softmax))
    sites = [site for site, stat in found if stat == "entropy"]
    assert sites == ["0:attention.softmax", "1:attention.softmax"]
    for site in sites:
        for stat in ("entropy", "entropy_relative", "softmax_gain", "participation", "sink_mass", "masked_rows"):
            np.testing.assert_allclose(found[site, stat], expected[site, stat], atol=1e-5, err_msg=stat)
    assert not [site for site in inspected(softmax).sites if site.kind == "activation" and site.op != "gelu"]


def severity(diagnosis: Diagnosis, code: str = "NUM603") -> str | None:
    return next((item.severity for item in diagnosis.findings if item.code == code), None)


@pytest.mark.parametrize(
    ("softmax", "scale", "dtype", "expected"),
    [
        (own, 1.0, torch.float32, None),
        (own, 300.0, torch.float32, None),
        (shifted, 300.0, torch.float32, None),
        (shifted_by_max, 300.0, torch.float16, None),
        (unshifted, 1.0, torch.float32, "info"),
        (unshifted, 1.0, torch.bfloat16, "info"),
        (unshifted, 16.0, torch.float32, "warning"),
        (unshifted, 2.0, torch.float16, "warning"),
        (by_methods, 300.0, torch.float32, "error"),
        (unshifted, 300.0, torch.bfloat16, "error"),
    ],
)
def test_num603_judges_by_the_room_that_the_dtype_leaves(
    softmax: Softmax, scale: float, dtype: torch.dtype, expected: str | None
) -> None:
    diagnosis = inspected(softmax, scale, dtype)
    assert severity(diagnosis) == expected
    status = {item.code: item.status for item in diagnosis.rules}["NUM603"]
    assert status == ("not_applicable" if softmax is own else "fail" if expected else "pass")


def test_the_headroom_is_that_of_the_exponents() -> None:
    torch.manual_seed(0)
    block = Block(unshifted, 3.0)
    x = torch.randn(3, 12, 16)
    found = readings(ek.inspect(nn.Sequential(block, nn.ReLU()), [x]))
    with torch.no_grad():
        scores = (3.0 * (block.a(x) @ block.b(x).mT)).masked_fill(_HIDDEN, -math.inf)
    (site,) = (site for site, stat in found if stat == "exponent_max")
    assert site == "0:module.softmax_by_hand"
    assert found[site, "exponent_max"] == (pytest.approx(float(scores.max())),)
    assert found[site, "exp_headroom"] == (
        pytest.approx(math.log(torch.finfo(torch.float32).max) - float(scores.max())),
    )


class Classifier(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.head, self.scale = nn.Sequential(Block(own, 1.0), Block(own, 1.0)), nn.Linear(16, 9), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.scale


def logsumexp_loss(logits: Tensor, _: object) -> Tensor:
    return (torch.log(torch.exp(logits).sum(-1)) - logits[..., 0]).mean()


def softmax_loss(logits: Tensor, _: object) -> Tensor:
    return -torch.log(unshifted(logits)[..., 0]).mean()


def shifted_loss(logits: Tensor, _: object) -> Tensor:
    top = logits.amax(-1, keepdim=True)
    return (torch.log(torch.exp(logits - top).sum(-1)) + top[..., 0] - logits[..., 0]).mean()


@pytest.mark.parametrize(
    ("loss", "expected"), [(logsumexp_loss, "error"), (softmax_loss, "error"), (shifted_loss, None)]
)
def test_a_loss_that_is_spelled_out_belongs_to_the_head(loss: Callable, expected: str | None) -> None:
    torch.manual_seed(0)
    diagnosis = ek.inspect(Classifier(400.0), [torch.randn(3, 12, 16)], loss=loss)
    assert severity(diagnosis) == expected
    sites = [site for item in diagnosis.findings if item.code == "NUM603" for site in item.sites]
    assert all(site == "head:module.softmax_by_hand" for site in sites)


class Exponential(nn.Module):
    """exp without a softmax: a decay, a scale, a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        e = torch.exp(self.l(x))
        return x + e / e.sum() + torch.exp(-e.sum(-1, keepdim=True)) + (e / e.amax(-1, keepdim=True))


def test_other_exponentials_are_none() -> None:
    diagnosis = ek.inspect(nn.Sequential(Exponential(), nn.ReLU()), [torch.randn(3, 12, 16)])
    assert {item.code: item.status for item in diagnosis.rules}["NUM603"] == "not_applicable"
