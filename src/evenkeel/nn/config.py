"""What a transformer is made of, as data: frozen, nested by the dotted axes that a Change names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..errors import ConfigError
from .feedforward import ACTIVATIONS

Scale = Literal["sqrt", "dim", "none"] | float
Placement = Literal["pre", "none"]

_SCALES = ("sqrt", "dim", "none")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal self-attention.

    heads: how many; d_model is a multiple of it. scale: what scores q·k are multiplied by: "sqrt" 1/√d_k, "dim" 1/d_k,
    "none" 1, or a number. residual: whether the input is added to the output.
    """

    heads: int = 4
    scale: Scale = "sqrt"
    residual: bool = True

    def __post_init__(self) -> None:
        _at_least_one(self, "attention", "heads")
        if isinstance(self.scale, str):
            if self.scale not in _SCALES:
                raise ConfigError(f"attention.scale is {self.scale!r}; {_hint(self.scale, _SCALES)}")
        elif not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"attention.scale is {self.scale}; give {', '.join(_SCALES)}, or a finite number above 0")

    def score_scale(self, head_dim: int) -> float:
        """The factor that scores of this head dimension d_k are multiplied by."""
        if isinstance(self.scale, str):
            return {"sqrt": head_dim**-0.5, "dim": 1 / head_dim, "none": 1.0}[self.scale]
        return float(self.scale)


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """Position-wise feed-forward layer.

    activation: a name from `ACTIVATIONS`. gated: three matrices, W2(f(W1 x) ⊗ W3 x), instead of two, W2 f(W1 x).
    d_ff: hidden size; None means 4·d_model, or (8/3)·d_model when gated, which has as many parameters.
    residual: whether the input is added to the output.
    """

    activation: str = "silu"
    gated: bool = True
    d_ff: int | None = None
    residual: bool = True

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"feedforward.activation is {self.activation!r}; {_hint(self.activation, ACTIVATIONS)}")
        if self.d_ff is not None:
            _at_least_one(self, "feedforward", "d_ff")

    def hidden_size(self, d_model: int) -> int:
        """d_ff, worked out from d_model where it is None."""
        if self.d_ff is not None:
            return self.d_ff
        return round(d_model * 8 / 3) if self.gated else 4 * d_model


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMS norms: "pre" puts one before attention, feed-forward and head; "none" leaves them all out."""

    placement: Placement = "pre"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.placement not in get_args(Placement):
            raise ConfigError(f"norm.placement is {self.placement!r}; {_hint(self.placement, get_args(Placement))}")
        if not self.epsilon > 0:
            raise ConfigError(f"norm.epsilon is {self.epsilon} and must be above 0, for instance 1e-6")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A decoder: every choice is a field, and the nested fields are the axes that a Change and a study name.

    vocabulary: how many token ids. context: the longest sequence, in tokens. depth: blocks. d_model: width.
    Raises ConfigError where fields contradict each other.
    """

    vocabulary: int = 256
    context: int = 128
    depth: int = 4
    d_model: int = 128
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    feedforward: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    norm: NormConfig = field(default_factory=NormConfig)

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "depth", "d_model"):
            _at_least_one(self, "", name)
        heads = self.attention.heads
        if self.d_model % heads:
            divisors = [count for count in range(1, self.d_model + 1) if self.d_model % count == 0]
            nearest = min(divisors, key=lambda count: abs(count - heads))
            raise ConfigError(
                f"d_model is {self.d_model} and attention.heads is {heads}, which does not divide it; "
                f"the nearest that does is attention.heads={nearest}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"d_model {self.d_model} with attention.heads {heads} gives a head dimension of {self.head_dim}, and "
                f"rotary positions turn pairs of channels; make it even, for instance d_model={self.d_model + heads}"
            )

    @property
    def head_dim(self) -> int:
        """d_k, the size of one head's queries and keys."""
        return self.d_model // self.attention.heads

    def to_dict(self) -> dict[str, Any]:
        """All fields as nested plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformerConfig:
        """Read what `to_dict` wrote; raises ConfigError for a field that is not known or of the wrong type."""
        return _read(cls, data, "")


_PARTS = {"attention": AttentionConfig, "feedforward": FeedForwardConfig, "norm": NormConfig}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "Scale": (str, int, float),
    "Placement": (str,),
}


def _read(cls: type, data: Mapping[str, Any], prefix: str) -> Any:
    known = {item.name: item for item in fields(cls)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise ConfigError(f"the config has a field {prefix}{name}; {_hint(name, known)}")
        if name in _PARTS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} is {value!r} and must hold the fields of {_PARTS[name].__name__}")
            values[name] = _read(_PARTS[name], value, f"{name}.")
            continue
        expected = _TYPES[str(known[name].type)]
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            raise ConfigError(f"{prefix}{name} is {value!r} and must be {known[name].type}")
        values[name] = value
    return cls(**values)


def _at_least_one(config: Any, part: str, name: str) -> None:
    value = getattr(config, name)
    if value < 1:
        path = f"{part}.{name}" if part else name
        raise ConfigError(f"{path} is {value} and must be at least 1")


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
