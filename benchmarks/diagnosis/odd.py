"""Healthy models that look odd: in each of them something is far from the usual, on purpose and with success."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.nn import EmbeddingConfig, FeedForwardConfig, HeadConfig, NormConfig, PositionConfig

from .zoo import (
    ENOUGH_MASKED,
    FAMILIES,
    VOCABULARY,
    Batch,
    Family,
    Size,
    gated,
    gpt2_fields,
    hugging_face,
    masked_bytes,
    next_bytes,
    own,
    second_half,
    t5_fields,
    usual,
)

_PADDED = 24
_PATCH, _PICTURE = 8, 32


class Answer(NamedTuple):
    """What the models of this file return."""

    loss: Tensor
    logits: Tensor


class RecurrentModel(nn.Module):
    """Bytes through recurrent layers: every gate is a sigmoid."""

    def __init__(self, size: Size, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width)
        self.recurrence = cell(size.width, size.width, num_layers=size.depth, batch_first=True)
        self.head = nn.Linear(size.width, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Answer:
        logits = self.head(self.recurrence(self.embedding(input_ids))[0])
        return Answer(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits)


class EncoderLayers(nn.Module):
    """torch's own encoder layers with a causal mask."""

    def __init__(self, size: Size, *, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width)
        layer = nn.TransformerEncoderLayer(
            size.width, size.heads, 4 * size.width, batch_first=True, norm_first=norm_first, dropout=0.0
        )
        self.layers = nn.TransformerEncoder(layer, size.depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Answer:
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        x = self.embedding(input_ids)
        logits = self.head(self.norm(self.layers(x, mask=mask.to(x.dtype), is_causal=True)))
        return Answer(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits)


class TwoClasses(nn.Module):
    """Which of two kinds of text is it? Pooled over all tokens, one answer for each row."""

    def __init__(self, size: Size, seed: int) -> None:
        super().__init__()
        self.body: Any = FAMILIES["own-bert"].build(size, seed)
        self.head = nn.Linear(size.width, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Answer:
        logits = self.head(self.body.hidden(input_ids).mean(1))
        return Answer(F.cross_entropy(logits, labels), logits)


def left_padded(rows: Tensor, generator: torch.Generator) -> Batch:
    """Every second row begins with padding, which nobody may see and which counts in no loss."""
    mask = torch.ones_like(rows)
    mask[1::2, :_PADDED] = 0
    return {"input_ids": rows * mask, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, -100)}


def many_spaces(rows: Tensor, generator: torch.Generator) -> Batch:
    """Whether a row has more blanks than most have."""
    return {"input_ids": rows, "labels": ((rows == 32).float().mean(1) > 0.2).long()}


def pictures(rows: Tensor, generator: torch.Generator) -> Batch:
    """Noise, brighter on one side: which?"""
    labels = torch.randint(2, rows.shape[:1], generator=generator)
    x = torch.randn(rows.shape[0], 3, _PICTURE, _PICTURE, generator=generator)
    x[..., : _PICTURE // 2] += (2 * labels.view(-1, 1, 1, 1) - 1).float()
    return {"pixel_values": x, "labels": labels}


def frozen_below(model: nn.Module) -> nn.Module:
    """The embedding and the lower half of the blocks learn no more."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for part in (*[item for item in model.modules() if isinstance(item, nn.Embedding)], *blocks[: len(blocks) // 2]):
        part.requires_grad_(False)
    return model


def with_lora(targets: str | list[str]) -> Callable[[nn.Module], nn.Module]:
    """Low-rank adapters of peft around the maps of these names; B starts at zero."""

    def dressed(model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            adapted: Any = model
            return get_peft_model(adapted, LoraConfig(r=4, target_modules=targets))

    return dressed


class Int8Linear(nn.Module):
    """y = (x Wᵀ)·s + b with W in int8 and one s per row of W; no weight learns."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1).clamp_min(1e-8) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None], bias)


def in_int8(model: nn.Module) -> nn.Module:
    """Every map between features holds its weights in int8, the head does not."""
    head = getattr(model, "lm_head", getattr(model, "head", None))
    kept = set() if head is None else set(head.modules())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child not in kept:
                setattr(parent, name, Int8Linear(child))
    return model


def zero_outputs(model: nn.Module) -> nn.Module:
    """Every branch of an untrained model gives nothing: its last map starts at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".output.weight", ".down.weight")):
                parameter.zero_()
    return model


def filled_sinks(model: nn.Module) -> nn.Module:
    """Learned sink logits as training leaves them: most of the attention rests on them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.fill_(6.0)
    return model


def _like(family: str, name: str, **choices: Any) -> Family:
    """A family of the zoo with something odd about it."""
    known = FAMILIES[family]
    return replace(known, name=name, **choices)


def _own(name: str, **parts: Any) -> Family:
    return Family(name, own(**parts), next_bytes)


def _hub(name: str, fields: Callable[[Size], dict[str, Any]], **choices: Any) -> Family:
    """transformers' model of a type that decodes, under the type's name."""
    return Family(name, hugging_face(name, fields), next_bytes, **choices)


def _experts(**more: Any) -> Callable[[Size], dict[str, Any]]:
    def fields(size: Size) -> dict[str, Any]:
        return gated(size) | {"num_experts_per_tok": 2, "moe_intermediate_size": size.width} | more

    return fields


def _deepseek(size: Size) -> dict[str, Any]:
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return _experts()(size) | latent | groups | {"num_key_value_heads": size.heads, "head_dim": 8}


def _granite(size: Size) -> dict[str, Any]:
    return gated(size) | {"attention_multiplier": size.heads / size.width, "residual_multiplier": 0.22}


def _mamba(size: Size) -> dict[str, Any]:
    return {"hidden_size": size.width, "num_hidden_layers": size.depth, "state_size": 8}


def _distilbert(size: Size) -> dict[str, Any]:
    inner = {"dim": size.width, "hidden_dim": 4 * size.width, "n_layers": size.depth, "n_heads": size.heads}
    return inner | {"max_position_embeddings": 1024}


def _mpt(size: Size) -> dict[str, Any]:
    return {"d_model": size.width, "n_layers": size.depth, "n_heads": size.heads, "max_seq_len": 1024}


def _bart(size: Size) -> dict[str, Any]:
    sides = {
        f"{side}_{field}": value
        for side in ("encoder", "decoder")
        for field, value in (("layers", max(1, size.depth // 2)), ("attention_heads", size.heads))
    }
    inner = {"d_model": size.width, "encoder_ffn_dim": 4 * size.width, "decoder_ffn_dim": 4 * size.width}
    return sides | inner | {"decoder_start_token_id": 0, "pad_token_id": 0}


def _vit(size: Size) -> dict[str, Any]:
    return usual(size) | {"image_size": _PICTURE, "patch_size": _PATCH}


def _masked(name: str, fields: Callable[[Size], dict[str, Any]]) -> Family:
    made = hugging_face(name, fields, "AutoModelForMaskedLM")
    return Family(name, made, masked_bytes, trains=False, **ENOUGH_MASKED)  # as of the zoo's BERT


_DEEP = (Size(24, 64), Size(32, 64))
_WIDE = (Size(2, 512), Size(1, 768))
_FLAT = (Size(1, 64), Size(2, 64), Size(3, 64))  # without residual branches no more layers learn
_PLAIN = {"activation": "relu2", "gated": False}

ODD: dict[str, Family] = {
    family.name: family
    for family in (
        _like("own-llama", "deep-own-llama", sizes=_DEEP[:1]),
        _like("own-bert", "deep-own-post-norm", sizes=(Size(16, 64),), trains=False),  # it stalls, as BERT does
        _like("gpt2", "deep-gpt2", sizes=_DEEP, trains=False),
        _like("qwen3", "deep-qwen3", sizes=_DEEP, trains=False),
        _like("own-llama", "wide-own-llama", sizes=_WIDE, trains=False),
        _like("bloom", "wide-bloom", sizes=_WIDE, trains=False),
        _like("own-llama", "long-own-llama", rows=1, length=1024),
        _like("bloom", "long-bloom", rows=1, length=1024),
        _like("mistral", "short-mistral", rows=1, length=24),
        _like("gpt2", "short-gpt2", rows=2, length=16),
        _like("own-gpt2", "short-own-gpt2", rows=1, length=12),
        _like("opt", "one-row-opt", rows=1, length=64),
        _own("tied-own", head=HeadConfig(tied=True)),
        _own("qk-norm-own", attention={"qk_norm": True}),
        _own("low-softcap-own", attention={"softcap": 5.0}, head=HeadConfig(softcap=10.0)),
        _own("mup-own", attention={"scale": "dim"}),
        _own("mup-one-wide-head-own", attention={"scale": "dim", "heads": 1}),
        _own("sinks-own", attention={"sinks": True}),
        Family("filled-sinks-own", own(attention={"sinks": True}), next_bytes, dressed=filled_sinks),
        _own("sigmoid-attention-own", attention={"normalizer": "sigmoid"}),
        _own("output-gate-own", attention={"output_gate": True, "key_heads": 1, "qk_norm": True}),
        _own("no-positions-own", position=PositionConfig(kind="none")),
        _own("alibi-own", position=PositionConfig(kind="alibi")),
        _own("relative-own", position=PositionConfig(kind="relative")),
        _own("narrow-window-own", attention={"window": 8}),
        _own("relu2-own", feedforward=FeedForwardConfig(**_PLAIN)),
        _own("bilinear-own", feedforward=FeedForwardConfig(activation="identity")),
        _own("sigmoid-glu-own", feedforward=FeedForwardConfig(activation="sigmoid")),
        _own("z-loss-own", head=HeadConfig(z_loss=1e-3, bias=True)),
        _own("large-embedding-own", embedding=EmbeddingConfig(scale=32.0)),
        _own("sandwich-own", norm=NormConfig(placement="sandwich")),
        _own("large-vocabulary-own", vocabulary=32_768),
        Family(
            "zero-outputs-own",
            own(attention={"qk_norm": True}, feedforward=FeedForwardConfig(**_PLAIN)),
            next_bytes,
            dressed=zero_outputs,
            trains=False,
        ),
        Family("zero-outputs-own-llama", own(), next_bytes, dressed=zero_outputs, trains=False),
        Family("lstm", lambda size, seed: _seeded(seed, RecurrentModel, size, ek.nn.LSTM), next_bytes, sizes=_FLAT),
        Family("gru", lambda size, seed: _seeded(seed, RecurrentModel, size, ek.nn.GRU), next_bytes, sizes=_FLAT),
        Family(
            "torch-encoder-pre-norm",
            lambda size, seed: _seeded(seed, EncoderLayers, size, norm_first=True),
            next_bytes,
        ),
        Family(
            "torch-encoder-post-norm",
            lambda size, seed: _seeded(seed, EncoderLayers, size, norm_first=False),
            next_bytes,
        ),
        Family(
            "two-classes", lambda size, seed: _seeded(seed, TwoClasses, size, seed), many_spaces, rows=16, length=64
        ),
        _hub("mixtral", _experts(num_local_experts=4)),
        _hub("qwen3_moe", _experts(num_experts=4)),
        _hub("olmoe", _experts(num_experts=8)),
        _hub("gpt_oss", _experts(num_local_experts=4, output_router_logits=True)),
        _hub("deepseek_v3", _deepseek),
        _hub("granite", _granite),
        _hub("nemotron", gated),
        _hub("gptj", lambda size: gpt2_fields(size) | {"rotary_dim": 8}),
        _hub("openai-gpt", gpt2_fields),
        _hub("phi3", gated),
        _hub("gemma", gated),
        _hub("gemma3_text", gated),
        _hub("cohere", gated),
        _hub("stablelm", gated),
        _hub("starcoder2", gated),
        _hub("olmo", gated),
        _hub("mpt", _mpt),
        _hub(
            "xglm",
            lambda size: (
                {"d_model": size.width, "ffn_dim": 4 * size.width, "num_layers": size.depth}
                | {"attention_heads": size.heads}
            ),
        ),
        _hub("mamba", _mamba),
        _masked("distilbert", _distilbert),
        _masked("electra", lambda size: usual(size) | {"embedding_size": size.width}),
        _masked("deberta-v2", usual),
        _masked("roberta", lambda size: usual(size) | {"max_position_embeddings": 1100, "pad_token_id": 1}),
        _masked("modernbert", lambda size: usual(size) | {"global_attn_every_n_layers": 2, "pad_token_id": 0}),
        Family(
            "t5-gated",
            hugging_face(
                "t5", lambda size: t5_fields(size) | {"feed_forward_proj": "gated-gelu"}, "AutoModelForSeq2SeqLM"
            ),
            second_half,
        ),
        Family("bart", hugging_face("bart", _bart, "AutoModelForSeq2SeqLM"), second_half),
        Family("vit", hugging_face("vit", _vit, "AutoModelForImageClassification"), pictures, rows=8),
        _like("llama", "lora-llama", dressed=with_lora(["q_proj", "v_proj"])),
        _like("gpt2", "lora-gpt2", dressed=with_lora(["c_attn"])),
        _like("qwen3", "lora-qwen3", dressed=with_lora("all-linear")),
        _like("own-llama", "int8-own-llama", dressed=in_int8),
        _like("opt", "int8-opt", dressed=in_int8),
        _like("bert", "int8-bert", dressed=in_int8),
        _like("own-gpt2", "frozen-own-gpt2", dressed=frozen_below),
        _like("mistral", "frozen-mistral", dressed=frozen_below),
        _like("llama", "left-padded-llama", task=left_padded),
        _like("gpt2", "left-padded-gpt2", task=left_padded),
        _like("own-llama", "left-padded-own-llama", task=left_padded),
        _like("bloom", "left-padded-bloom", task=left_padded),
    )
}


def _seeded(seed: int, build: Callable[..., nn.Module], *arguments: Any, **choices: Any) -> nn.Module:
    """A module that draws from torch's generator, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments, **choices)
