"""A hand-made document whose every number is known: three blocks, the first of them sick."""

from __future__ import annotations

from evenkeel.schema import (
    Change,
    DataInfo,
    Document,
    Evidence,
    Finding,
    ModelInfo,
    Phase,
    Reading,
    RuleStatus,
    Site,
)

MODEL = ModelInfo(
    class_name="SmallForCausalLM", parameters=1_234_567, dtype="bfloat16", device="cuda:0", structure="ab"
)
DATA = DataInfo(source="book.txt", kind="text", tokens=4096)


def reading(site: Site, stat: str, *values: float, phase: Phase = "forward", unit: str = "1", step: int = 0) -> Reading:
    return Reading(site=site.id, step=step, phase=phase, stat=stat, values=values, unit=unit)


def finding(code: str, *sites: Site, **changes: object) -> Finding:
    fields: dict[str, object] = {
        "code": code,
        "rule": "saturated activation",
        "severity": "warning",
        "sites": tuple(site.id for site in sites),
        "evidence": (Evidence(stat="small_gradient_share", value=0.931, bound=0.5, unit="share"),),
        "message": "93.1% of the inputs are flat.",
        "why": "No signal passes.",
        "advice": ("Use another activation.", "Normalise before it."),
        "change": Change("feedforward.activation", "silu"),
        "claims": ("C01", "C02"),
        "try_command": f"evenkeel rules {code}",
        "source": "derived",
    }
    return Finding(**{**fields, **changes})  # type: ignore[arg-type]


def block(index: int, stack: str = "layers") -> tuple[Site, Site, Site, Site]:
    """The attention, activation, gate and residual site of a block."""
    path = f"{stack}.{index}"
    return (
        Site(path=f"{path}.attention", kind="attention", op="softmax"),
        Site(path=f"{path}.act", kind="activation", op="silu"),
        Site(path=f"{path}.mlp", kind="gate", op="product"),
        Site(path=path, kind="residual", op="block"),
    )


def document(blocks: int = 3, stack: str = "layers") -> Document:
    sites: list[Site] = []
    readings: list[Reading] = []
    for index in range(blocks):
        attention, activation, gate, residual = block(index, stack)
        sites += [attention, activation, gate, residual]
        readings += [
            reading(attention, "entropy_relative", 0.25 + index / 100, 0.75),
            reading(attention, "max_logit", 3.0, 12.5),
            reading(activation, "small_gradient_share", 0.931 if index == 0 else 0.0125),
            reading(activation, "dead_channel_share", 0.0),
            reading(gate, "gate_open_share", 0.31),
            reading(gate, "selectivity", 0.5),
            reading(residual, "residual_rms", 1.5),
            reading(residual, "gradient_rms", 1.23456e-5, phase="backward"),
        ]
    head = Site(path="lm_head", kind="head", op="cross_entropy")
    fused = Site(path="layers.1.scan", kind="recurrence", op="scan", status="not_measured", reason="it is fused")
    readings += [
        reading(head, "loss", 5.5431, unit="nats"),
        reading(head, "accuracy", 0.0123),
        reading(head, "optimal_temperature", 1.021),
    ]
    return Document(
        tool="evenkeel 0.1.0",
        model=MODEL,
        data=DATA,
        sites=(*sites, head, fused),
        readings=tuple(readings),
        findings=(finding("ACT101", block(0, stack)[1]),),
        rules=tuple(
            RuleStatus(code=code, status=status, reason=reason)  # type: ignore[arg-type]
            for code, status, reason in (
                ("ACT101", "fail", ""),
                ("ATT301", "pass", ""),
                ("GRD501", "pass", ""),
                ("RUN801", "not_applicable", ""),
                ("OUT402", "not_measured", "no ece was read at lm_head"),
            )
        ),
    )
