"""What measuring attention costs beside computing it, and what its options cost beside torch's ways to them.

Statistics are compared with one fused forward pass, with two of them (which give the entropy by an identity that
cancels where scores are large), and with the definition in eager torch. Options are compared with eager torch,
torch.compile and FlexAttention, where those run. Everyone takes a turn in every round, in one process.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _rounds import Contest, draw, run
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from evenkeel.functional import attention, attention_statistics
from evenkeel.reference.attention import attention_scores, row_statistics

BATCH, HEADS, DIM = 1, 8, 64
SCALE = DIM**-0.5
SOFTCAP, WINDOW = 30.0, 256

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def made(length: int, count: int, *, requires_grad: bool = False) -> list[Tensor]:
    """Queries, keys and values as a layer makes them at its start: scores N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator).requires_grad_(requires_grad) for _ in range(count)]


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's fused attention, causal."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def entropy_by_identity(query: Tensor, key: Tensor) -> Tensor:
    """H = logsumexp − E[s] with two fused calls: E[s] from attention to the keys, logsumexp from the call itself."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mean_key, logsumexp = kernel(query, key, key, 0.0, True)
    kernel(query, key, key, 0.0, True, scale=2 * SCALE)  # for Σp², by the logsumexp of doubled scores
    return logsumexp - SCALE * torch.linalg.vecdot(query, mean_key)


def entropy_by_definition(query: Tensor, key: Tensor, future: Tensor) -> Tensor:
    """−Σ p log p from the whole matrix."""
    scores = (SCALE * (query @ key.mT)).masked_fill(future, -torch.inf)
    log_weights = scores.log_softmax(-1)
    return -(log_weights.exp() * log_weights.masked_fill(future, 0)).sum(-1)


def statistics_contest(length: int) -> Contest:
    """Every statistic, causal, against one fused forward pass."""
    query, key, value = made(length, 3)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    exact = row_statistics(attention_scores(query, key, scale=SCALE), ~future)["entropy"]

    def error(entropy: Tensor) -> str:
        return f"{float((entropy - exact).abs().max()):.1e} nats"

    contest = Contest("one fused forward pass", lambda: fused(query, key, value))
    contest.add("all statistics", lambda: attention_statistics(query, key, scale=SCALE, causal=True))
    contest.error(error(attention_statistics(query, key, scale=SCALE, causal=True).entropy))
    contest.add("entropy and Σp² by two fused passes", lambda: entropy_by_identity(query, key))
    contest.error(error(entropy_by_identity(query, key)))
    contest.add("entropy, eager", lambda: entropy_by_definition(query, key, future))
    contest.error(error(entropy_by_definition(query, key, future)))
    return contest


def eager(length: int, sinks: Tensor, option: str) -> Attend:
    """An option by definition, in torch functions."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (WINDOW if option == "window" else length))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = SCALE * (query @ key.mT)
        if option == "softcap":
            scores = SOFTCAP * (scores / SOFTCAP).tanh()
        scores = scores.masked_fill(hidden, -torch.inf)
        if option == "sigmoid":
            return (scores - math.log(key.shape[2])).sigmoid() @ value
        if option == "sinks":
            column = sinks[:, None, None].expand(*scores.shape[:3], 1)
            return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ value
        return scores.softmax(-1) @ value

    return attend


def flexible(length: int, option: str) -> Attend | None:
    """The same in FlexAttention, where that has it."""
    if option not in ("softcap", "window"):
        return None

    def visible(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < (WINDOW if option == "window" else length))

    def capped(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return SOFTCAP * torch.tanh(score / SOFTCAP)

    mask = create_block_mask(visible, None, None, length, length, device="cpu")
    changed = capped if option == "softcap" else None
    compiled: Any = torch.compile(flex_attention)
    return lambda query, key, value: compiled(query, key, value, changed, mask)


OPTIONS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": SOFTCAP},
    "sinks": {},
    "window": {"window": WINDOW},
    "sigmoid": {"normalizer": "sigmoid"},
}


def option_contest(length: int, option: str, backward: bool) -> Contest:
    """One option, causal: evenkeel, eager, Inductor, FlexAttention; against plain fused attention."""
    torch.compiler.reset()  # too many compilations of one function, and its later ones would run eagerly
    tensors = made(length, 3, requires_grad=backward)
    gradient = made(length, 4)[3]
    sinks = torch.linspace(-1, 1, HEADS)
    by_definition = eager(length, sinks, option)
    options: dict[str, Any] = OPTIONS[option] | ({"sinks": sinks} if option == "sinks" else {})
    exact = eager(length, sinks.double(), option)(*(item.detach().double() for item in tensors))

    def step(attend: Attend) -> Tensor:
        if not backward:
            with torch.no_grad():
                return attend(*tensors)
        result = attend(*tensors)
        torch.autograd.grad(result, tensors, gradient)
        return result

    contest = Contest("plain, fused", lambda: step(fused))
    ways: dict[str, Attend | None] = {
        "evenkeel": lambda query, key, value: attention(query, key, value, causal=True, **options),
        "eager": by_definition,
        "Inductor": torch.compile(by_definition),
        "FlexAttention": flexible(length, option),
    }
    for name, attend in ways.items():
        if attend is None:
            continue
        try:
            result = step(attend)
        except Exception as failure:  # a peer that does not run here is left out, and said
            print(f"{option}: {name} does not run: {str(failure).splitlines()[0][:120]}")
            continue
        contest.add(f"{option}: {name}", lambda attend=attend: step(attend))
        contest.error(f"{float((result.detach() - exact).abs().max() / exact.abs().max()):.1e}")
    return contest


def main() -> None:
    """Print one table per contest, direction and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--length", type=int, default=2048, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", choices=["statistics", *OPTIONS], nargs="+", default=["statistics", *OPTIONS])
    arguments = parser.parse_args()
    shape = f"batch {BATCH}, {HEADS} heads, {arguments.length} tokens, dim {DIM}, causal, float32"
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for part in arguments.only:
            for contest, title in contests(part, arguments.length):
                draw(contest, run(contest, arguments.rounds), f"{title}: {shape}, threads: {threads}")


def contests(part: str, length: int) -> Iterator[tuple[Contest, str]]:
    """Those of one part, made when their turn comes."""
    if part == "statistics":
        yield statistics_contest(length), part
        return
    yield option_contest(length, part, backward=False), f"{part}, forward"
    yield option_contest(length, part, backward=True), f"{part}, forward and backward"


if __name__ == "__main__":
    main()
