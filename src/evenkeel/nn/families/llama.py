"""LLaMA. Source: Touvron et al. 2023; Grattafiori et al. 2024."""

from __future__ import annotations

from .family import Family
from .layout import Layout, place
from .parts import Choice, Field, Fixed, Part, WholeHeads
from .rotary import Rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "linear": "identity",
}
"""Names that transformers gives to activations of the catalogue, and ours."""

SIZES: tuple[Part, ...] = (
    Field("vocab_size", ("vocabulary",)),
    Field("max_position_embeddings", ("context",)),
    Field("num_hidden_layers", ("depth",)),
    Field("hidden_size", ("d_model",)),
    Field("num_attention_heads", ("attention.heads",)),
    Field("intermediate_size", ("feedforward.d_ff",)),
)
KEY_HEADS = Field("num_key_value_heads", ("attention.key_heads",), default=None, null=True)
HEAD_DIM = Field("head_dim", ("attention.head_dim",), default=None, null=True)
EPSILON = Field("rms_norm_eps", ("norm.epsilon",), float, default=1e-6)
ACTIVATION = Choice("hidden_act", "feedforward.activation", ACTIVATIONS, default="silu")
ATTENTION_BIAS = Field("attention_bias", ("attention.bias", "attention.output_bias"), bool, default=False)
MLP_BIAS = Field("mlp_bias", ("feedforward.bias",), bool, default=False)
GATED = Fixed("feedforward.gated", True)
WHOLE_HEADS = WholeHeads()

LAYOUT = Layout(
    prefix="model.",
    blocks="model.layers",
    ends=(place("model.embed_tokens", "embedding"), place("model.norm", "norm"), place("lm_head", "head")),
    block=(
        place("input_layernorm", "attention_norm"),
        place("self_attn.q_proj", "attention.query"),
        place("self_attn.k_proj", "attention.key"),
        place("self_attn.v_proj", "attention.value"),
        place("self_attn.o_proj", "attention.output"),
        place("self_attn.q_norm", "attention.query_norm"),
        place("self_attn.k_norm", "attention.key_norm"),
        place("post_attention_layernorm", "feedforward_norm"),
        place("mlp.gate_proj", "feedforward.gate"),
        place("mlp.up_proj", "feedforward.up"),
        place("mlp.down_proj", "feedforward.down"),
    ),
    ignored=("rotary_emb.inv_freq",),
)


def tied(default: bool) -> Field:
    """Whether the head's matrix is the embedding's; files leave the field out where it has its default."""
    return Field("tie_word_embeddings", ("head.tied",), bool, default=default)


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    parts=(
        *SIZES,
        WHOLE_HEADS,
        KEY_HEADS,
        HEAD_DIM,
        Rope(),
        GATED,
        ACTIVATION,
        ATTENTION_BIAS,
        MLP_BIAS,
        EPSILON,
        tied(False),
    ),
    layout=LAYOUT,
)
