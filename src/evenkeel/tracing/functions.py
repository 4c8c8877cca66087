"""What tracing knows of torch's functions: their plain names and what they do to a tensor's meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ANCHORS = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus sigmoid tanh hardtanh hardsigmoid hardswish "
    "logsigmoid log_sigmoid softsign tanhshrink hardshrink softshrink threshold expit special_expit prelu "
    "relu2 gelu_tanh quick_gelu".split()
)
"""Functions that are activations by themselves: torch's, and evenkeel's own."""

SMOOTH = frozenset(
    "exp expm1 exp2 erf erfc special_erf special_erfc pow square sqrt rsqrt log log1p abs neg negative reciprocal "
    "clamp clamp_min clamp_max clip add sub subtract rsub mul multiply div divide true_divide rdiv rpow".split()
)
"""Functions that build an activation only together (x·0.5·(1 + erf(x/√2)))."""

POINTWISE = ANCHORS | SMOOTH

AFFINE = frozenset(
    "add sub subtract rsub mul multiply div divide true_divide neg negative clamp clamp_min clamp_max clip".split()
)
"""With scalars, these leave a gate a gate."""

PRODUCTS = frozenset(("mul", "multiply"))
QUOTIENTS = frozenset(("div", "divide", "true_divide"))

CASTS = frozenset(
    "to float half bfloat16 double type type_as contiguous clone detach dropout feature_dropout alpha_dropout".split()
)
"""Same values, perhaps rounded, dropped or copied."""

VIEWS = frozenset(
    "view reshape view_as reshape_as transpose swapaxes swapdims permute movedim unsqueeze squeeze expand expand_as "
    "flatten unflatten getitem narrow select chunk split split_with_sizes tensor_split unbind t T mT repeat "
    "repeat_interleave broadcast_to index_select pad".split()
)
"""Same values in another shape, or some of them, or with a border around them."""

QUESTIONS = frozenset(
    "shape size dim ndim numel stride dtype device layout requires_grad grad_fn is_leaf is_floating_point is_complex "
    "is_sparse is_cuda is_cpu is_meta is_contiguous item".split()
)
"""What is asked of a tensor and makes none."""

MATMULS = frozenset("matmul bmm baddbmm mm addmm einsum addbmm".split())
CONVOLUTIONS = frozenset("conv1d conv2d conv3d".split())
CHOICES = frozenset("topk sort argsort argmax".split())
NORMS = frozenset("layer_norm rms_norm group_norm".split())
MOMENTS = frozenset(("mean", "var"))
RECURRENCES = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())

MIXING = frozenset(
    MATMULS
    | CONVOLUTIONS
    | RECURRENCES
    | set(
        "linear bilinear embedding softmax scaled_dot_product_attention attention multi_head_attention_forward "
        "flex_attention zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones".split()
    )
)
"""Behind these a tensor no longer holds its own arguments, only what was made of them; everything else may add."""

ADDING_PRODUCTS = frozenset(("addmm", "baddbmm", "addbmm"))
"""The first argument is added to the product of the others."""


class FunctionNames:
    """Plain names of the callables that a function mode is handed: `Tensor.__imul__` is `mul`, in place."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[str, bool]] = {}

    def __call__(self, func: Callable[..., Any]) -> tuple[str, bool]:
        """The name of `func` and whether it writes into its first argument."""
        try:
            return self._known[func]
        except KeyError:
            found = self._known[func] = _plain_name(func)
            return found
        except TypeError:
            return _plain_name(func)


def _plain_name(func: Callable[..., Any]) -> tuple[str, bool]:
    if isinstance(func, torch._ops.OpOverload):
        name = func._schema.name.rpartition("::")[2]
    else:
        name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", ""), False
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        in_place = name in ("iadd", "isub", "imul", "itruediv", "ipow")
        name = name[1:] if in_place else name
        name = {"truediv": "div", "rtruediv": "rdiv", "radd": "add", "rmul": "mul"}.get(name, name)
        return name, in_place
    in_place = name.endswith("_") and not name.startswith("_")
    return name.rstrip("_") if in_place else name, in_place
