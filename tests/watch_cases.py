"""Small models to be watched, and what is asked of them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

import evenkeel as ek
from evenkeel.schema import Reading


class Block(nn.Module):
    def __init__(self, width: int = 16, reentrant: bool | None = None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.1)
        self.reentrant = reentrant

    def inner(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        gate, up = self.up(x).chunk(2, -1)
        return x + self.drop(self.down(F.silu(gate) * up))

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)  # type: ignore[return-value]


class Small(nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.layers = nn.ModuleList(Block(reentrant=reentrant) for _ in range(2))

    def block(self, index: int) -> Block:
        return cast(Block, self.layers[index])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def small(seed: int = 0, reentrant: bool | None = None) -> tuple[Small, Tensor]:
    torch.manual_seed(seed)
    return Small(reentrant), torch.randint(0, 50, (4, 8))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def values(
    readings: tuple[Reading, ...], stat: str, site: str = "", phase: str = ""
) -> dict[tuple[str, int], tuple[float, ...]]:
    return {
        (item.site, item.step): item.values
        for item in readings
        if item.stat == stat and site in item.site and phase in item.phase
    }


def hooks_on(model: nn.Module) -> int:
    count = len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks)
    for item in model.modules():
        count += len(item._forward_hooks) + len(item._forward_pre_hooks) + len(item._backward_hooks)
    for parameter in model.parameters():
        count += len(parameter._post_accumulate_grad_hooks or ()) + len(parameter._backward_hooks or ())
    return count


def run_steps(model: nn.Module, ids: Tensor, watch: ek.Watch | None, steps: int = 3) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    seen: list[Tensor] = []
    for _ in range(steps):
        if watch is not None:
            watch.begin_step()
        loss = loss_of(model, ids)
        loss.backward()
        seen += [loss.detach(), *(item.grad.clone() for item in model.parameters() if item.grad is not None)]
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.log(loss=loss)
            watch.end_step()
    return [*seen, torch.get_rng_state()]
