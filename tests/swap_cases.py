"""Models to swap parts of, what they compute, and what they look like."""

from __future__ import annotations

import math
from typing import Any

import families
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import evenkeel as ek

Result = tuple[Tensor, list[Tensor]]


def hugging_face(family: str, attention: str, **choices: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**families.CONFIGS[family], **choices})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    torch.manual_seed(1)
    for parameter in model.parameters():  # wide enough that scores, caps and activations matter
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(length: int = 9) -> dict[str, Any]:
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def result(model: nn.Module, given: Any = None) -> Result:
    """Loss and logits where there are any, and all gradients."""
    given = given or batch()
    model.zero_grad()
    output = model(**given)
    output.loss.backward()
    parts = [output.loss.reshape(1), *([] if output.logits is None else [output.logits.flatten()])]
    return torch.cat(parts).detach(), [item.grad.clone() for item in model.parameters() if item.grad is not None]


def assert_close(found: Result, expected: Result) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=2e-5, atol=2e-5)
    assert len(found[1]) == len(expected[1])
    largest = max(float(item.abs().max()) for item in expected[1])
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5 * largest)


def differs(first: Result, second: Result) -> bool:
    return not torch.allclose(first[0], second[0], rtol=1e-3, atol=1e-3)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that a swap could leave behind: the modules themselves and what they hold."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return [
        (
            name,
            id(module),
            module.training,
            sorted(module.__dict__),
            [id(child) for child in module._modules.values()],
            [len(getattr(module, item)) for item in hooks],
        )
        for name, module in model.named_modules()
    ]


def own(**choices: Any) -> Any:
    config = ek.TransformerConfig(vocabulary=90, context=16, depth=2, d_model=32, **choices)
    return ek.Transformer(config, seed=3)


class ByHand(nn.Module):
    """A function between two maps, called as a model's own code would."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class OneCall(nn.Module):
    """Attention through torch's fused call: grouped heads, and a mask or causality."""

    def __init__(self, dropout: float = 0.0, masked: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.dropout, self.masked = dropout, masked

    def heads(self, x: Tensor) -> list[Tensor]:
        return [layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)]

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[None] > 0 if self.masked else None
        dropout = self.dropout if self.training else 0.0
        options: dict[str, Any] = {
            "attn_mask": mask,
            "is_causal": mask is None,
            "enable_gqa": True,
            "dropout_p": dropout,
        }
        query, key, value = self.heads(x)
        return F.scaled_dot_product_attention(query, key, value, **options)

    def by_definition(self, x: Tensor, scale: float, softcap: float | None, normed: bool) -> Tensor:
        query, key, value = (item.double() for item in self.heads(x))
        if normed:
            query, key = (item / (item.square().mean(-1, keepdim=True) + 1e-6).sqrt() for item in (query, key))
        key, value = (item.repeat_interleave(2, 1) for item in (key, value))
        scores = scale * query @ key.mT
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        size = x.shape[1]
        hidden = (torch.arange(size) == 0).expand(size, size) if self.masked else torch.ones(size, size).triu(1).bool()
        return torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ value


class ByHandGate(nn.Module):
    """A gate whose activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
