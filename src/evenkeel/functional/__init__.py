"""Exact functions of a transformer's nonlinear parts: torch tensors in and out."""

from ..reference.gates import CLAMPED_AT
from ._activations import (
    ACTIVATIONS,
    Activation,
    elu,
    gelu,
    gelu_tanh,
    identity,
    leaky_relu,
    mish,
    quick_gelu,
    register_activation,
    relu,
    relu2,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from ._attention import attention
from ._attention_options import Scale, scale_factor
from ._attention_statistics import AttentionStatistics, attention_statistics, score_statistics
from ._between import linear, rms_norm, rotate
from ._gates import bilinear, clamped_swiglu, gated, geglu, geglu_tanh, glu, reglu, swiglu
from ._linear_losses import linear_cross_entropy
from ._losses import cross_entropy
from ._operators import OPERATORS
from ._recurrence import gru, lstm
from ._sampler import Sampler
from ._sampling import Sampled, distribution, sample
from ._sigmoid_losses import sigmoid_cross_entropy
from ._softmax import SoftmaxStatistics, log_softmax, logsumexp, naive_softmax, softmax, softmax_statistics
from ._statistics import TensorStatistics, tensor_statistics

__all__ = [
    "ACTIVATIONS",
    "CLAMPED_AT",
    "OPERATORS",
    "Activation",
    "AttentionStatistics",
    "Sampled",
    "Sampler",
    "Scale",
    "SoftmaxStatistics",
    "TensorStatistics",
    "attention",
    "attention_statistics",
    "bilinear",
    "clamped_swiglu",
    "cross_entropy",
    "distribution",
    "elu",
    "gated",
    "geglu",
    "geglu_tanh",
    "gelu",
    "gelu_tanh",
    "glu",
    "gru",
    "identity",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "lstm",
    "mish",
    "naive_softmax",
    "quick_gelu",
    "register_activation",
    "reglu",
    "relu",
    "relu2",
    "rms_norm",
    "rotate",
    "sample",
    "scale_factor",
    "score_statistics",
    "sigmoid",
    "sigmoid_cross_entropy",
    "silu",
    "softmax",
    "softmax_statistics",
    "softplus",
    "swiglu",
    "tanh",
    "tensor_statistics",
]
