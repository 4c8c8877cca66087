"""What every rule must do, tested on its own examples."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import ClassVar

from ..instruments import INSTRUMENTS
from ..rules import Example, Measurements, Need, Override, Rule, apply, flaw_of_rule

_FACTORS = (1e-9, 1e-3, 0.5, 2.0, 1e3, 1e9)  # a little and far beyond what a bound decides


class RuleConformance:
    """The tests of a rule: inherit it in a class that pytest collects, and set `rule`.

    They are made from the rule's own examples, so a rule that conforms has examples that show what it does.
    """

    rule: ClassVar[Rule]

    def test_it_keeps_the_protocol(self) -> None:
        assert flaw_of_rule(self.rule.code, self.rule) == ""

    def test_its_firing_examples_fire(self) -> None:
        for example in self.rule.firing:
            findings, status = apply(self.rule, example.measurements)
            assert findings, f"{self.rule.code} must fire on {example.about!r} and does not"
            assert status == "fail"
            known = {site.id for site in example.measurements.sites} | {":run.training"}
            for finding in findings:
                assert finding.code == self.rule.code, f"the finding on {example.about!r} has code {finding.code}"
                assert finding.severity in self.rule.severities, f"{finding.severity} is none of {self.rule.severities}"
                assert finding.sites, f"the finding on {example.about!r} names no site"
                assert set(finding.sites) <= known, f"{set(finding.sites) - known} are no sites of {example.about!r}"
                assert finding.evidence, f"the finding on {example.about!r} shows no evidence"
                numbers = [number for item in finding.evidence for number in (item.value, item.bound)]
                assert not any(map(math.isnan, numbers)), f"the evidence on {example.about!r} holds NaN"
                assert re.search(r"\d", finding.message), f"no number is in the message {finding.message!r}"
                assert "  " not in finding.message, f"two spaces are in the message {finding.message!r}"

    def test_its_silent_examples_stay_silent(self) -> None:
        outcomes = set()
        for example in self.rule.silent:
            findings, status = apply(self.rule, example.measurements)
            assert not findings, f"{self.rule.code} must be silent on {example.about!r} and says {findings[0].message}"
            outcomes.add(status)
        assert outcomes <= {"pass", "not_measured"}, f"silent examples must concern the rule; they end in {outcomes}"
        assert "pass" in outcomes, "one silent example at least must be judged and pass"

    def test_it_says_all_that_it_must(self) -> None:
        for name in ("name", "measures", "severity", "bound", "why", "advice", "try_command", "source"):
            assert getattr(self.rule, name), f"{self.rule.code} says nothing under {name}"

    def test_some_instrument_reads_what_it_needs(self) -> None:
        made = {(item.kind, stat.name, stat.phase) for item in INSTRUMENTS.values() for stat in item.stats}
        missing = {(need.kind, need.stat, need.phase) for need in self.rule.needs} - made
        assert not missing, f"no instrument produces {missing}"

    def test_without_a_needed_reading_nothing_is_judged(self) -> None:
        for example, need in self._needs():
            outcome = apply(self.rule, _without(example.measurements, need))
            assert outcome == ((), "not_measured"), f"{need.stat} is missing in {example.about!r}: {outcome}"

    def test_nan_is_neither_a_finding_nor_a_pass(self) -> None:
        for example, need in self._needs():
            outcome = apply(self.rule, _with_nan(example.measurements, need))
            assert outcome == ((), "not_measured"), f"{need.stat} is NaN in {example.about!r}: {outcome}"

    def test_each_bound_that_can_be_set_decides(self) -> None:
        """A bound set elsewhere changes what is found in some example."""
        examples = (*self.rule.firing, *self.rule.silent)
        for name, value in self.rule.bounds.items():
            changed = any(
                apply(self.rule, example.measurements, Override(bounds={name: factor * (value or 1.0)}))
                != apply(self.rule, example.measurements)
                for example, factor in product(examples, _FACTORS)
            )
            assert changed, f"no value of the bound {name!r} changes anything; does judge() take it from its bounds?"

    def _needs(self) -> Iterator[tuple[Example, Need]]:
        return product((*self.rule.firing, *self.rule.silent), self.rule.needs)


def _without(measurements: Measurements, need: Need) -> Measurements:
    kept = tuple(item for item in measurements.readings if (item.stat, item.phase) != (need.stat, need.phase))
    return replace(measurements, readings=kept)


def _with_nan(measurements: Measurements, need: Need) -> Measurements:
    readings = tuple(
        replace(item, values=(math.nan, *item.values[1:]))
        if (item.stat, item.phase) == (need.stat, need.phase)
        else item
        for item in measurements.readings
    )
    return replace(measurements, readings=readings)
