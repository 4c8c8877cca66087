"""Healthy models of many families, small and made on the spot, and the bytes that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evenkeel.architectures.offline import offline_and_quiet
from evenkeel.data import standard_library_text
from evenkeel.nn import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    NormConfig,
    PositionConfig,
    Transformer,
    TransformerConfig,
)
from evenkeel.training import byte_batches

Batch = dict[str, Tensor]

VOCABULARY = 256
CONTEXT = 1024
_TEXT = 2_000_000
_MASK, _MASKED_SHARE = 0, 0.15
_IGNORED = -100


class Size(NamedTuple):
    """How deep and how wide a model is."""

    depth: int
    width: int

    @property
    def heads(self) -> int:
        """Heads of 16 channels, of 32 where the width is 128 and more."""
        return self.width // (16 if self.width < 128 else 32)


@dataclass(frozen=True)
class Family:
    """An architecture of which a model of any size can be made.

    build: an untrained model of a size and a seed. task: what it is given and asked, made from rows of bytes. dressed:
    what is done to a model once it has its weights. sizes: those it is tried at, where others are not to the point.
    rows, length, count: of the batches that it is inspected on. trains: whether it is also tried with trained weights.
    """

    name: str
    build: Callable[[Size, int], nn.Module]
    task: Callable[[Tensor, torch.Generator], Batch]
    dressed: Callable[[nn.Module], nn.Module] = lambda model: model
    sizes: tuple[Size, ...] = ()
    rows: int = 4
    length: int = 128
    count: int = 2
    trains: bool = True

    def batches(self, *, rows: int, length: int, seed: int) -> Iterator[Batch]:
        """Endless batches of text; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for block in byte_batches(_text(), context=length, size=rows, seed=seed):
            yield self.task(block, generator)


@cache
def _text() -> str:
    return standard_library_text(_TEXT)


def next_bytes(rows: Tensor, generator: torch.Generator) -> Batch:
    """Every next byte is asked for."""
    return {"input_ids": rows, "labels": rows.clone()}


def masked_bytes(rows: Tensor, generator: torch.Generator) -> Batch:
    """A share of the bytes is hidden, and those are asked for."""
    hidden = torch.rand(rows.shape, generator=generator) < _MASKED_SHARE
    return {"input_ids": rows.masked_fill(hidden, _MASK), "labels": rows.masked_fill(~hidden, _IGNORED)}


def second_half(rows: Tensor, generator: torch.Generator) -> Batch:
    """The encoder reads the first half of each row, the decoder is asked for the second."""
    first, second = rows.chunk(2, dim=1)
    return {"input_ids": first.contiguous(), "labels": second.contiguous()}


def own(**parts: Any) -> Callable[[Size, int], nn.Module]:
    """Our Transformer with these parts; `attention` holds choices beside the number of heads."""
    attention = parts.pop("attention", {})
    given: dict[str, Any] = {"vocabulary": VOCABULARY, "context": CONTEXT} | parts

    def build(size: Size, seed: int) -> nn.Module:
        heads = AttentionConfig(**({"heads": size.heads} | attention))
        config = TransformerConfig(depth=size.depth, d_model=size.width, attention=heads, **given)
        return Transformer(config, seed=seed)

    return build


def hugging_face(
    model_type: str, fields: Callable[[Size], dict[str, Any]], model: str = "AutoModelForCausalLM"
) -> Callable[[Size, int], nn.Module]:
    """transformers' model of a type, with the class's own defaults beside these fields of its config."""

    def build(size: Size, seed: int) -> nn.Module:
        import transformers

        with offline_and_quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = transformers.AutoConfig.for_model(model_type, **(_TOKENS | fields(size)))
            made = getattr(transformers, model).from_config(config)
        made.config.use_cache = False
        return made

    return build


_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}


def usual(size: Size) -> dict[str, Any]:
    """The fields that most configs have."""
    return {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "max_position_embeddings": CONTEXT,
    }


def gated(size: Size) -> dict[str, Any]:
    """A gated feed-forward of 11/4 of the width; two query heads share a key head."""
    inner = {"intermediate_size": 11 * size.width // 4, "num_key_value_heads": max(1, size.heads // 2)}
    return usual(size) | inner | {"head_dim": size.width // size.heads}


def gpt2_fields(size: Size) -> dict[str, Any]:
    """GPT-2's names of the usual fields."""
    return {"n_embd": size.width, "n_layer": size.depth, "n_head": size.heads, "n_positions": CONTEXT}


def _bloom(size: Size) -> dict[str, Any]:
    return {"hidden_size": size.width, "n_layer": size.depth, "n_head": size.heads}


def _falcon(size: Size) -> dict[str, Any]:
    return {"hidden_size": size.width, "num_hidden_layers": size.depth, "num_attention_heads": size.heads}


def _opt(size: Size) -> dict[str, Any]:
    return usual(size) | {"ffn_dim": 4 * size.width, "word_embed_proj_dim": size.width}


def _gemma2(size: Size) -> dict[str, Any]:
    return gated(size) | {"query_pre_attn_scalar": size.width // size.heads, "sliding_window": 64}


def t5_fields(size: Size) -> dict[str, Any]:
    """T5's names of the usual fields; the depth counts encoder and decoder together."""
    return {
        "d_model": size.width,
        "d_kv": size.width // size.heads,
        "d_ff": 4 * size.width,
        "num_layers": max(1, size.depth // 2),
        "num_heads": size.heads,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }


ENOUGH_MASKED: dict[str, Any] = {"rows": 8, "count": 4}
"""Of 4,096 bytes 600 are asked for."""

_BIASED = NormConfig(kind="layer", epsilon=1e-5, bias=True)
_POST = NormConfig(kind="layer", epsilon=1e-5, bias=True, placement="post")
_BOTH_BIASED = {"bias": True, "output_bias": True}
_LEARNED = PositionConfig(kind="learned")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "own-gpt2",
            own(
                position=_LEARNED,
                attention=_BOTH_BIASED,
                feedforward=FeedForwardConfig(activation="gelu_tanh", gated=False, bias=True),
                norm=_BIASED,
                head=HeadConfig(tied=True),
            ),
            next_bytes,
        ),
        Family("own-llama", own(), next_bytes),
        Family(
            "own-gemma2",
            own(
                embedding=EmbeddingConfig(scale="sqrt"),
                attention={"key_heads": 2, "softcap": 50.0, "window": 64, "global_every": 2},
                feedforward=FeedForwardConfig(activation="gelu_tanh"),
                norm=NormConfig(placement="sandwich", offset=True),
                head=HeadConfig(tied=True, softcap=30.0),
            ),
            next_bytes,
        ),
        Family(
            "own-bert",
            own(
                position=_LEARNED,
                attention=_BOTH_BIASED,
                feedforward=FeedForwardConfig(activation="gelu", gated=False, bias=True),
                norm=_POST,
                head=HeadConfig(bias=True),
            ),
            next_bytes,
        ),
        Family("gpt2", hugging_face("gpt2", gpt2_fields), next_bytes),
        Family("llama", hugging_face("llama", gated), next_bytes),
        Family("mistral", hugging_face("mistral", gated), next_bytes),
        Family("qwen2", hugging_face("qwen2", gated), next_bytes),
        Family("qwen3", hugging_face("qwen3", gated), next_bytes),
        Family("gemma2", hugging_face("gemma2", _gemma2), next_bytes),
        Family("olmo2", hugging_face("olmo2", gated), next_bytes),
        Family("gpt_neox", hugging_face("gpt_neox", usual), next_bytes),
        Family("phi", hugging_face("phi", usual), next_bytes),
        Family("falcon", hugging_face("falcon", _falcon), next_bytes),
        Family("bloom", hugging_face("bloom", _bloom), next_bytes),
        Family("opt", hugging_face("opt", _opt), next_bytes),
        Family(
            "bert",
            hugging_face("bert", usual, "AutoModelForMaskedLM"),
            masked_bytes,
            trains=False,  # so few masked bytes do not lead it off the plateau, and stalled models have no label
            **ENOUGH_MASKED,
        ),
        Family("t5", hugging_face("t5", t5_fields, "AutoModelForSeq2SeqLM"), second_half),
    )
}
