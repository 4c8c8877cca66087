"""OPT. Source: Zhang et al. 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import TransformerConfig
from .family import Family
from .layout import BEHIND_TWO, Layout, place
from .llama import ACTIVATIONS, tied
from .parts import Axes, Choice, Condition, Field, Fixed, Only, Settings, refusal


@dataclass(frozen=True)
class EmbeddingWidth(Condition):
    """Tokens are embedded in as many dimensions as the model has."""

    name: str = "word_embed_proj_dim"

    def read(self, settings: Settings) -> Axes:
        width, hidden = settings.get(self.name), settings.get("hidden_size")
        if width is not None and width != hidden:
            raise refusal(self.name, width, f"hidden_size is {hidden}, and only equal ones can be mapped")
        return {}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        return {self.name: config.d_model}


OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    parts=(
        Field("vocab_size", ("vocabulary",)),
        Field("max_position_embeddings", ("context",)),
        Field("num_hidden_layers", ("depth",)),
        Field("hidden_size", ("d_model",)),
        EmbeddingWidth(),
        Fixed("position.kind", "learned"),
        Field("num_attention_heads", ("attention.heads",)),
        Field("enable_bias", ("attention.bias", "attention.output_bias", "feedforward.bias"), bool, default=True),
        Fixed("feedforward.gated", False),
        Field("ffn_dim", ("feedforward.d_ff",)),
        Choice("activation_function", "feedforward.activation", ACTIVATIONS, default="relu"),
        Fixed("norm.kind", "layer"),
        Fixed("norm.bias", True),
        Fixed("norm.epsilon", 1e-5),
        Choice("do_layer_norm_before", "norm.placement", {True: "pre", False: "post"}, default=True),
        Only("_remove_final_layer_norm", False, "no norm before the head"),
        Only("layer_norm_elementwise_affine", True, "norms without weights"),
        tied(True),
    ),
    layout=Layout(
        prefix="model.",
        blocks="model.decoder.layers",
        ends=(
            place("model.decoder.embed_tokens", "embedding"),
            place("model.decoder.embed_positions", "positions", form=BEHIND_TWO),
            place("model.decoder.final_layer_norm", "norm"),
            place("lm_head", "head"),
        ),
        block=(
            place("self_attn.q_proj", "attention.query"),
            place("self_attn.k_proj", "attention.key"),
            place("self_attn.v_proj", "attention.value"),
            place("self_attn.out_proj", "attention.output"),
            place("self_attn_layer_norm", "attention_norm"),
            place("self_attn_layer_norm", "attention_post_norm"),
            place("fc1", "feedforward.up"),
            place("fc2", "feedforward.down"),
            place("final_layer_norm", "feedforward_norm"),
            place("final_layer_norm", "feedforward_post_norm"),
        ),
    ),
)
