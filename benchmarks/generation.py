"""Tokens per second of a Hugging Face model on the CPU, its own sampling beside ours and beside none.

A LLaMA of six layers, width 256 and 128,256 tokens, its head and embedding not tied, random weights; the head is scaled
so that logits are N(0, 3²). All generate from the same prompt with `model.generate`: greedily, which is the floor and
what the others are compared with; by its own do_sample; and with evenkeel's sampler. Everyone takes a turn in every
round, in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _ratios import figure, ratios
from _rounds import Contest, run
from _samplers import SAMPLER, TEMPERATURE, P
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from evenkeel.functional import Sampler
from evenkeel.integrations.transformers import sampling

GREEDY, OWN, OURS = "greedy", "do_sample", "evenkeel's sampler"
LOGITS = 3.0


def built(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """The model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=4,
        max_position_embeddings=arguments.prompt + arguments.tokens,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,  # so that every run has all its tokens
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=LOGITS / arguments.width**0.5)  # the final norm's output has unit entries
    return model


def contest(model: Any, arguments: argparse.Namespace) -> Contest:
    """Ways to choose a token."""
    tokens = torch.randint(arguments.vocabulary, (arguments.batch, arguments.prompt))

    def generating(**options: Any) -> Callable[[], object]:
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return lambda: model.generate(**inputs, max_new_tokens=arguments.tokens, **options)

    own = {"do_sample": True, "temperature": TEMPERATURE, "top_p": P, "top_k": 0}
    seeds = torch.arange(arguments.batch)
    result = Contest(GREEDY, generating(do_sample=False))
    result.add(OWN, generating(**own))
    result.add(OURS, generating(custom_generate=sampling(SAMPLER, seeds=seeds)))
    result.add(f"{OURS}, greedy", generating(custom_generate=sampling(Sampler(temperature=0), seeds=seeds)))
    return result


def table(seconds: dict[str, list[float]], count: int, title: str) -> Table:
    """Tokens per second and ratios of time to the greedy run."""
    result = Table(title=f"{title}; load {os.getloadavg()[0]:.1f}", title_justify="left")
    result.add_column("")
    for column in ("most tokens/s", "median", "time: min ratio", "median ratio"):
        result.add_column(column, justify="right")
    for name, values in seconds.items():
        speeds = count / min(values), count / statistics.median(values)
        result.add_row(name, *map(figure, speeds), *map(figure, ratios(values, seconds[GREEDY])))
    result.add_row(f"{OWN} ÷ {OURS}", "", "", *map(figure, ratios(seconds[OWN], seconds[OURS])))
    return result


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    model = built(arguments)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        seconds = run(contest(model, arguments), arguments.rounds)
        size = f"B = {arguments.batch}, V = {arguments.vocabulary:,}, {threads} thread{'s' * (threads > 1)}"
        count = arguments.batch * arguments.tokens
        Console(width=100).print(table(seconds, count, f"generate: T 0.8, top_p 0.9, {size}"))


if __name__ == "__main__":
    main()
