"""The data that measuring, judging and drawing share: frozen dataclasses, JSON both ways, no torch.

Numbers that JSON cannot hold are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from .errors import RecordError

SCHEMA_VERSION = 1

SiteKind = Literal[
    "activation",
    "gate",
    "attention",
    "router",
    "recurrence",
    "norm",
    "residual",
    "head",
    "parameter",
    "module",
    "run",
]
SiteStatus = Literal["measured", "not_reached", "not_measured"]
Phase = Literal["forward", "backward", "update"]
Severity = Literal["error", "warning", "info"]
RuleOutcome = Literal["pass", "fail", "not_applicable", "not_measured"]
DataKind = Literal["text", "random", "given"]

SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

_LONGEST_NAME = 200
_LONGEST_CAUSE = 300


def printable(text: str) -> str:
    """Text from outside with every control character replaced, so that no terminal obeys it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def clean_name(text: str) -> str:
    """A name from outside, made safe to print: control characters replaced, overlong middles cut out."""
    safe = printable(text)
    if len(safe) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe[:120]}\N{HORIZONTAL ELLIPSIS}{digest}\N{HORIZONTAL ELLIPSIS}{safe[-60:]}"


def in_one_line(error: BaseException) -> str:
    """An exception from outside as one printable line: its class and its message, cut where it is overlong."""
    line = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    return line if len(line) <= _LONGEST_CAUSE else f"{line[:_LONGEST_CAUSE]}\N{HORIZONTAL ELLIPSIS}"


def encode_number(value: float) -> float | str:
    """A float as JSON can hold it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def decode_number(value: float | str) -> float:
    """The float behind what `encode_number` wrote."""
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The stable address of a nonlinear place: module path, kind, op and call number."""

    path: str
    kind: SiteKind
    op: str
    call: int = 0
    status: SiteStatus = "measured"
    reason: str = ""

    @property
    def id(self) -> str:
        """`path:kind.op`, with `@n` behind it for the n-th further call of the same place."""
        return f"{self.path}:{self.kind}.{self.op}" + (f"@{self.call}" if self.call else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "path": self.path,
            "kind": self.kind,
            "op": self.op,
            "call": self.call,
            "status": self.status,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Site:
        return cls(**_known(cls, data))


RUN = Site(path="", kind="run", op="training")
"""The run as a whole, where no module is to blame."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Finished numbers of a site at a step; `site` is a site's id, `axis` names what `values` runs over."""

    site: str
    step: int
    phase: Phase
    stat: str
    values: tuple[float, ...]
    unit: str
    axis: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "step": self.step,
            "phase": self.phase,
            "stat": self.stat,
            "axis": self.axis,
            "values": [encode_number(value) for value in self.values],
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reading:
        known = _known(cls, data)
        return cls(**{**known, "values": tuple(decode_number(value) for value in known["values"])})


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measured number beside the bound that it passed."""

    stat: str
    value: float
    bound: float
    unit: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "stat": self.stat,
            "value": encode_number(self.value),
            "bound": encode_number(self.bound),
            "unit": self.unit,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evidence:
        known = _known(cls, data)
        return cls(**{**known, "value": decode_number(known["value"]), "bound": decode_number(known["bound"])})


@dataclass(frozen=True)
class Change:
    """A remedy as data, on the dotted axes of configs and studies: `Change("attention.scale", "sqrt")`."""

    axis: str
    value: str | float | int | bool | None

    def to_dict(self) -> dict[str, Any]:
        return {"axis": self.axis, "value": self.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Change:
        return cls(**_known(cls, data))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule found: where, by which numbers, why it matters, and what to do about it.

    cause: the code of the finding that this one follows from; empty for a main finding.
    """

    code: str
    rule: str
    severity: Severity
    sites: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    message: str
    why: str
    advice: tuple[str, ...]
    change: Change | None = None
    claims: tuple[str, ...] = ()
    try_command: str = ""
    source: str = ""
    cause: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "rule": self.rule,
            "severity": self.severity,
            "cause": self.cause or None,
            "sites": list(self.sites),
            "evidence": [item.to_dict() for item in self.evidence],
            "message": self.message,
            "why": self.why,
            "advice": list(self.advice),
            "change": self.change.to_dict() if self.change else None,
            "claims": list(self.claims),
            "try": self.try_command,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        known = _known(cls, data)
        return cls(
            **{
                **known,
                "sites": tuple(data["sites"]),
                "evidence": tuple(Evidence.from_dict(item) for item in data["evidence"]),
                "advice": tuple(data["advice"]),
                "claims": tuple(data["claims"]),
                "change": Change.from_dict(data["change"]) if data.get("change") else None,
                "try_command": data.get("try", ""),
                "cause": data.get("cause") or "",
            }
        )


@dataclass(frozen=True, kw_only=True)
class RuleStatus:
    """Whether a rule passed, failed, had nothing to judge, or lacked the readings it needs; then the reason says which.

    reason: why it could not be judged; empty where it was, or had nothing to judge.
    """

    code: str
    status: RuleOutcome
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "status": self.status, **({"reason": self.reason} if self.reason else {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RuleStatus:
        return cls(**_known(cls, data))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a record says of its model; `structure` is a hash over parameter names, shapes and dtypes."""

    class_name: str
    parameters: int
    dtype: str
    device: str
    structure: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "class": self.class_name,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "device": self.device,
            "structure": self.structure,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelInfo:
        return cls(**{**_known(cls, data), "class_name": data["class"]})


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What the model was measured on; `tokens` counts tokens seen (0 where the inputs are no tokens)."""

    source: str
    kind: DataKind
    tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "kind": self.kind, "tokens": self.tokens}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataInfo:
        return cls(**_known(cls, data))


@dataclass(frozen=True, kw_only=True)
class StepLog:
    """The cheap numbers of one training step: loss, gradient norm, the batch's fingerprint, a jump's size."""

    step: int
    loss: float | None = None
    gradient_norm: float | None = None
    batch: str = ""
    measured: bool = False
    jump: float | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """The JSON document of a diagnosis: everything that was measured and judged, and nothing else."""

    tool: str
    model: ModelInfo
    data: DataInfo
    sites: tuple[Site, ...] = ()
    readings: tuple[Reading, ...] = ()
    findings: tuple[Finding, ...] = ()
    rules: tuple[RuleStatus, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": self.tool,
            "model": self.model.to_dict(),
            "data": self.data.to_dict(),
            "sites": [site.to_dict() for site in self.sites],
            "readings": [reading.to_dict() for reading in self.readings],
            "findings": [finding.to_dict() for finding in self.findings],
            "rules": [status.to_dict() for status in self.rules],
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The document as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Document:
        """Read a document back; raises RecordError for another schema version."""
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"the document has schema_version {version!r} and this evenkeel reads {SCHEMA_VERSION}; "
                "read it with the evenkeel that wrote it"
            )
        return cls(
            tool=data["tool"],
            model=ModelInfo.from_dict(data["model"]),
            data=DataInfo.from_dict(data["data"]),
            sites=tuple(Site.from_dict(item) for item in data["sites"]),
            readings=tuple(Reading.from_dict(item) for item in data["readings"]),
            findings=tuple(Finding.from_dict(item) for item in data["findings"]),
            rules=tuple(RuleStatus.from_dict(item) for item in data["rules"]),
            notes=tuple(data.get("notes", ())),
        )


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(cls)}
    return {key: value for key, value in data.items() if key in names}
