"""Rules: from readings to findings. Works on a record from last week, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..catalogue import Catalogue
from ..schema import DataInfo, Finding, ModelInfo, Reading, RuleStatus, Site, StepLog
from . import activation, architecture, attention, gate, gradient, head, numerics, run, scores
from ._examples import Example, Place, at, example
from ._judging import Override, apply, judge_all
from ._measurements import Measurements
from ._rule import Bounds, Case, Need, Rule

__all__ = [
    "RULES",
    "Bounds",
    "Case",
    "Example",
    "Measurements",
    "Need",
    "Override",
    "Place",
    "Rule",
    "apply",
    "at",
    "example",
    "judge",
]

RULES: Catalogue[Rule] = Catalogue("rule", entry_point_group="evenkeel.rules")

for _rule in (
    activation.ACT101,
    activation.ACT102,
    activation.ACT103,
    gate.GLU201,
    attention.ATT301,
    attention.ATT302,
    scores.ATT303,
    scores.ATT304,
    head.OUT401,
    head.OUT402,
    gradient.GRD501,
    gradient.GRD502,
    numerics.NUM601,
    numerics.NUM602,
    architecture.ARC701,
    architecture.ARC702,
    architecture.ARC703,
    run.RUN801,
):
    RULES.add(_rule.code, _rule)


def judge(
    sites: Iterable[Site],
    readings: Iterable[Reading],
    log_entries: Iterable[StepLog],
    model: ModelInfo,
    data: DataInfo,
    overrides: Mapping[str, Override] | None = None,
) -> tuple[tuple[Finding, ...], tuple[RuleStatus, ...]]:
    """Apply every rule to the readings of all steps.

    sites: in execution order. readings: of all steps; a rule judges each site by its latest. log_entries: the cheap
    log of a training run, empty for a single inspection. Findings come in the order of the catalogue, one per rule and
    severity, each consequence with its cause; every rule has a status. overrides: what a project sets otherwise, by
    the rule's code.
    """
    return judge_all(RULES.values(), sites, readings, log_entries, model, data, overrides or {})
