"""Rules: from readings to findings. Works on a record from last week, without torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..catalogue import Catalogue
from ..schema import DataInfo, Finding, ModelInfo, Reading, RuleStatus, Site, StepLog
from . import (
    activation,
    architecture,
    attention,
    course,
    gate,
    gradient,
    head,
    idle,
    loss,
    norms,
    numerics,
    run,
    scores,
    softmax,
    stream,
    updates,
    weights,
)
from ._examples import Example, Place, at, example
from ._judging import Override, apply, judge_all, matches
from ._measurements import Measurements
from ._outside import flaw_of_rule
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
    "flaw_of_rule",
    "judge",
    "matches",
]

RULES: Catalogue[Rule] = Catalogue("rule", entry_point_group="evenkeel.rules", flaw=flaw_of_rule)

for _rule in (
    activation.ACT101,
    activation.ACT102,
    activation.ACT103,
    gate.GLU201,
    gate.GLU202,
    gate.GLU203,
    attention.ATT301,
    attention.ATT302,
    scores.ATT303,
    scores.ATT304,
    idle.ATT305,
    idle.ATT306,
    head.OUT401,
    head.OUT402,
    loss.OUT403,
    loss.OUT404,
    loss.OUT405,
    loss.OUT406,
    gradient.GRD501,
    gradient.GRD502,
    gradient.GRD503,
    numerics.NUM601,
    numerics.NUM602,
    softmax.NUM603,
    norms.NUM604,
    norms.NUM605,
    norms.NUM606,
    stream.NUM607,
    stream.NUM608,
    weights.NUM609,
    weights.NUM610,
    architecture.ARC701,
    architecture.ARC702,
    architecture.ARC703,
    stream.ARC704,
    run.RUN801,
    course.RUN802,
    course.RUN803,
    updates.RUN804,
    updates.RUN805,
    updates.RUN806,
    course.RUN807,
):
    RULES.add(_rule.code, _rule)


def judge(
    sites: Iterable[Site],
    readings: Iterable[Reading],
    log_entries: Iterable[StepLog],
    model: ModelInfo,
    data: DataInfo,
    overrides: Mapping[str, Override] | None = None,
    ignore: Collection[str] = (),
) -> tuple[tuple[Finding, ...], tuple[RuleStatus, ...]]:
    """Apply every rule to the readings of all steps.

    sites: in execution order. readings: of all steps; a rule judges each site by its latest. log_entries: the cheap
    log of a training run, empty for a single inspection. Findings come in the order of the catalogue, one per rule and
    severity, each consequence with its cause; every rule has a status. overrides: what a project sets otherwise, by
    the rule's code. ignore: codes of rules that are not applied.
    """
    rules = (rule for rule in RULES.values() if rule.code not in ignore)
    return judge_all(rules, sites, readings, log_entries, model, data, overrides or {})
