"""What a model is made of, as data: the parts of an architecture and what each costs. JSON both ways, no torch.

Text is lower case and closed: "not found" stands where something could not be told, never a guess; None in a number
means that there is none of it, except where a field says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .schema import Document, decode_number, encode_number

NOT_FOUND = "not found"

PARTS = ("embedding", "positions", "attention", "feed-forward", "router", "recurrence", "norms", "head", "other")
"""Where a parameter or a multiplication belongs."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AttentionPart:
    """Attention that is alike in `layers` calls; `paths` are the modules they run in.

    kind: self or cross. heads, key_heads: of queries, of keys and values. head_dim, value_dim: channels of a key and a
    value. scale: what ⟨q, k⟩ is multiplied by, all factors on the way to the softmax taken together; None where it was
    not found. scale_rule: 1/√d, 1/d, 1, other, not found. normalizer: softmax or sigmoid. softcap: c of
    c·tanh(score / c). sinks: a learned logit beside the keys. causal: None where the mask was not found. window: a
    query sees keys at a distance below it; chunked: only those in its own chunk of that length. qk_norm: none, or kind
    and reach. positions: rotary, alibi, relative bias, fixed bias. rotary_dim: channels turned. cached_values: numbers
    per token and layer in keys and values, each stored once. latent_values: numbers per token and layer from which keys
    and values follow by weights alone, where fewer.
    """

    layers: int
    paths: tuple[str, ...]
    kind: str
    heads: int
    key_heads: int
    head_dim: int
    value_dim: int
    scale: float | None
    scale_rule: str
    normalizer: str
    softcap: float | None
    sinks: bool
    causal: bool | None
    window: int | None
    chunked: bool
    qk_norm: str
    positions: tuple[str, ...]
    rotary_dim: int
    cached_values: int
    latent_values: int | None


@dataclass(frozen=True, kw_only=True)
class FeedForwardPart:
    """Feed-forwards that are alike in `layers` places.

    kind: plain or gated. activation, gate: ops of the catalogue; gate is empty in the plain form. matrices: how many
    matrices of d_model by d_ff. ratio: d_ff / d_model. parity: matrices·d_ff / (8·d_model), 1 for two matrices at 4 and
    for three at 8/3. experts: in each layer, 0 where there are none; active: through how many a token goes.
    """

    layers: int
    paths: tuple[str, ...]
    kind: str
    activation: str
    gate: str
    matrices: int
    d_model: int
    d_ff: int
    experts: int = 0
    active: int = 0

    @property
    def ratio(self) -> float:
        return self.d_ff / self.d_model

    @property
    def parity(self) -> float:
        return self.matrices * self.d_ff / (8 * self.d_model)


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """The map to logits: `outputs` classes, a bias, a cap c·tanh(x / c), and whether it shares the embedding's weights.

    outputs is 0 where no head was found.
    """

    outputs: int
    tied: bool
    bias: bool
    softcap: float | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One part's share. flops: per token, 2 for a multiply-add, of one forward pass at the cost's context.

    active: parameters that one token goes through. Both are None where only a small instance could be run.
    """

    part: str
    parameters: int
    active: int | None
    flops: float | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a token costs. parts: in the order of PARTS, those that are there.

    context: the number of keys that attention is counted at (a window counts as its own length). attention_flops: per
    token, of scores and of weights on values at that context; contained in the part "attention". cached_bytes: per
    token, of all keys and values in the model's dtype; windowed layers stop growing at their window. context_bytes: of
    all that is cached for `context` tokens, windows kept to. latent_bytes: per token where latents are cached instead,
    None where there are none.
    """

    parts: tuple[Cost, ...]
    context: int
    attention_flops: float | None
    cached_bytes: int
    context_bytes: int
    latent_bytes: int | None

    @property
    def parameters(self) -> int:
        return sum(cost.parameters for cost in self.parts)

    @property
    def active(self) -> int | None:
        known = [cost.active for cost in self.parts if cost.active is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def flops(self) -> float | None:
        """Per token of a forward pass, as in decoding."""
        known = [cost.flops for cost in self.parts if cost.flops is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def training_flops(self) -> float | None:
        """Per token of forward and backward: three times the forward pass."""
        return None if self.flops is None else 3 * self.flops


@dataclass(frozen=True, kw_only=True)
class Description(Document):
    """A described model; sites, readings, findings and rules are those of a diagnosis.

    source: what was described. method: "shapes" (the whole model, no values), "shrunk" (a small real instance of the
    same choices). d_model 0 and norm "not found" where they could not be told. norm: kind; placement: pre, post,
    sandwich (before and after), output (after only), none. positions: learned, fixed, and those of the attentions.
    """

    source: str
    method: str
    depth: int
    d_model: int
    norm: str
    placement: str
    positions: tuple[str, ...]
    attentions: tuple[AttentionPart, ...]
    feedforwards: tuple[FeedForwardPart, ...]
    head: HeadPart
    costs: Costs

    def to_dict(self) -> dict[str, Any]:
        described = {
            "source": self.source,
            "method": self.method,
            "depth": self.depth,
            "d_model": self.d_model,
            "norm": self.norm,
            "placement": self.placement,
            "positions": list(self.positions),
            "attentions": [_plain(item) for item in self.attentions],
            "feedforwards": [
                {**_plain(item), "ratio": item.ratio, "parity": item.parity} for item in self.feedforwards
            ],
            "head": _plain(self.head),
            "costs": {
                **_plain(self.costs),
                "parameters": self.costs.parameters,
                "active": self.costs.active,
                "flops": self.costs.flops,
                "training_flops": self.costs.training_flops,
            },
        }
        return {**super().to_dict(), "architecture": described}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Description:
        """Read back what `to_dict` wrote; raises RecordError for another schema version."""
        document = Document.from_dict(data)
        shared = {item.name: getattr(document, item.name) for item in fields(Document)}
        given = data["architecture"]
        costs = given["costs"]
        parts = tuple(_read(Cost, item) for item in costs["parts"])
        own = {
            "positions": tuple(given["positions"]),
            "attentions": tuple(_read(AttentionPart, item) for item in given["attentions"]),
            "feedforwards": tuple(_read(FeedForwardPart, item) for item in given["feedforwards"]),
            "head": _read(HeadPart, given["head"]),
            "costs": _read(Costs, {**costs, "parts": parts}),
        }
        plain = ("source", "method", "depth", "d_model", "norm", "placement")
        return cls(**shared, **{name: given[name] for name in plain}, **own)


def _plain(part: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return encode_number(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    return plain(dataclasses.asdict(part))


def _read(cls: type[T], data: Mapping[str, Any]) -> T:
    known = {item.name: item for item in fields(cls)}  # pyright: ignore[reportArgumentType]
    values = {}
    for name, value in data.items():
        if name in known:
            number = isinstance(value, str) and str(known[name].type).startswith("float")
            values[name] = decode_number(value) if number else tuple(value) if isinstance(value, list) else value
    return cls(**values)
