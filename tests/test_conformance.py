"""Every rule and instrument passes the suites that outside ones inherit, and what breaks the protocol is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_instruments import events
from torch import Tensor

from evenkeel.instruments import INSTRUMENTS, Stat, flaw_of_instrument
from evenkeel.instruments.residual import ResidualInstrument
from evenkeel.rules import RULES, Rule, flaw_of_rule
from evenkeel.schema import SiteKind
from evenkeel.testing import InstrumentConformance, RuleConformance
from evenkeel.tracing.events import Event, GradientEvent, OutputEvent

for _code, _rule in RULES.items():
    globals()[f"Test{_code}"] = type(f"Test{_code}", (RuleConformance,), {"rule": _rule})


class _OfOurs(InstrumentConformance):
    """With the events of test_instruments, twice over, so that there are enough of them."""

    def events(self) -> Sequence[Event]:
        return events()[self.name] * 3 if self.name in events() else events()[self.instrument.kind] * 3


for _name, _instrument in INSTRUMENTS.items():
    _title = f"Test{_name.title().replace('_', '')}"
    globals()[_title] = type(_title, (_OfOurs,), {"instrument": _instrument, "name": _name})


pytestmark = pytest.mark.usefixtures("one_thread")  # small tensors, and other tests may run beside these


# --- the suites can fail -----------------------------------------------------------------------------------------


def failures(suite: type) -> set[str]:
    """The tests of a suite that fail."""
    failed = set()
    for name in (name for name in dir(suite) if name.startswith("test_")):
        try:
            getattr(suite(), name)()
        except Exception:  # an assertion, or what a broken instrument raises
            failed.add(name)
    return failed


def of_rule(**changes: Any) -> set[str]:
    rule = replace(RULES["ATT303"], **changes)
    return failures(type("Suite", (RuleConformance,), {"rule": rule}))


def test_a_wrong_rule_fails_the_test_that_is_for_it() -> None:
    rule = RULES["ATT303"]
    assert of_rule() == set()
    assert of_rule(code="att303") == {"test_it_keeps_the_protocol"}
    assert "test_its_firing_examples_fire" in of_rule(judge=lambda measurements, sites, bounds: ())
    assert "test_its_silent_examples_stay_silent" in of_rule(silent=rule.firing)
    assert of_rule(why="") == {"test_it_says_all_that_it_must"}
    assert "test_some_instrument_reads_what_it_needs" in of_rule(needs=(replace(rule.needs[0], stat="unheard_of"),))
    fixed = dict(rule.bounds)
    deaf = of_rule(judge=lambda measurements, sites, bounds: rule.judge(measurements, sites, fixed))
    assert deaf == {"test_each_bound_that_can_be_set_decides"}


class Peaks:
    """The largest value of a stream, and of the gradient that comes back to it."""

    kind: ClassVar[SiteKind] = "residual"
    stats: ClassVar[tuple[Stat, ...]] = (Stat("peak", "1"), Stat("gradient_peak", "1", phase="backward"))

    def __init__(self) -> None:
        self._peaks: dict[Stat, Tensor] = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent):
            self._raise(self.stats[0], event.output.amax())
        elif isinstance(event, GradientEvent):
            self._raise(self.stats[1], event.gradient.amax())

    def _raise(self, stat: Stat, value: Tensor) -> None:
        self._peaks[stat] = torch.maximum(self._peaks.get(stat, value), value)

    def merge(self, other: Peaks) -> None:
        for stat, value in other._peaks.items():
            self._raise(stat, value)

    def read(self) -> Mapping[Stat, Tensor]:
        return dict(self._peaks)


class Streams(InstrumentConformance):
    """The suite of that instrument, and of wrong variants of it."""

    instrument = Peaks
    name = "peaks"

    def events(self) -> Sequence[Event]:
        values = torch.linspace(-2, 3, 240).reshape(4, 6, 10)
        return (OutputEvent(output=values), OutputEvent(output=2 * values), GradientEvent(gradient=values))


class Keeping(Peaks):
    def observe(self, event: Event) -> None:
        super().observe(event)
        if isinstance(event, OutputEvent):
            self.kept = [event.output.view(-1)]


class Waiting(Peaks):
    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent) and float(event.output.sum()) == float("inf"):
            return
        super().observe(event)


class Drawing(Peaks):
    def observe(self, event: Event) -> None:
        torch.rand(1)
        super().observe(event)


class Writing(Peaks):
    def observe(self, event: Event) -> None:
        super().observe(event)
        if isinstance(event, OutputEvent):
            event.output.zero_()


class Forgetting(Peaks):
    def merge(self, other: Peaks) -> None:
        self._peaks = other._peaks


class Surprising(Peaks):
    stats = Peaks.stats[:1]

    def observe(self, event: Event) -> None:
        if isinstance(event, OutputEvent):
            self._raise(Stat("more", "1"), event.output.amax())


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (Peaks, set()),
        (Keeping, {"test_it_keeps_no_tensor_of_the_model"}),
        (Waiting, {"test_it_never_waits_for_the_device"}),
        (Drawing, {"test_it_draws_no_random_numbers"}),
        (Writing, {"test_it_leaves_what_it_sees_as_it_was"}),
        (Surprising, {"test_it_reads_what_it_declares"}),
        (
            Forgetting,
            {
                "test_merging_is_observing_together_and_associative",
                "test_merging_with_nothing_seen_changes_nothing",
            },
        ),
    ],
)
def test_a_wrong_instrument_fails_the_test_that_is_for_it(wrong: type, caught: set[str]) -> None:
    found = failures(type("Suite", (Streams,), {"instrument": wrong}))
    assert found >= caught and (caught or not found)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_what_breaks_the_protocol_of_rules_is_said() -> None:
    rule = RULES["ATT303"]
    needs = (*rule.needs, replace(rule.needs[0], kind="gate"))

    def flaw(name: str = "ATT303", **changes: Any) -> str:
        return flaw_of_rule(name, replace(rule, **changes))

    assert flaw() == ""
    assert "of type int and must be an evenkeel.rules.Rule" in flaw_of_rule("ATT303", 3)
    assert "the class Rule and must be" in flaw_of_rule("ATT303", Rule)
    assert "has the code 'ATT303'" in flaw("my-rule")
    assert "three digits" in flaw("x", code="x")
    assert "attention and gate sites and must judge one kind" in flaw(needs=needs)
    assert "needs of type str" in flaw(needs=("max_logit",)).replace("needs of", "needs of")
    assert "'attn' sites; kinds are activation" in flaw(needs=(replace(rule.needs[0], kind="attn"),))
    assert "severities ('fatal',)" in flaw(severities=("fatal",))
    assert "no silent examples" in flaw(silent=())
    assert "judge, which must be a function" in flaw(judge=3)


def test_what_breaks_the_protocol_of_instruments_is_said() -> None:
    def flaw(**changes: Any) -> str:
        body = {"stats": (Stat("kurtosis_of_stream", "1"),), **changes}
        return flaw_of_instrument("tails", type("Tails", (ResidualInstrument,), body))

    assert flaw() == ""
    assert "must be a class" in flaw_of_instrument("tails", ResidualInstrument())
    assert "kind 'stream'; kinds are activation" in flaw(kind="stream")
    assert "stats, which must be a tuple" in flaw(stats=("kurtosis",))
    assert "no method read()" in flaw(read=None)
    assert "produces 'residual_rms' of every residual, as the instrument 'residual'" in flaw(
        stats=ResidualInstrument.stats[:1]
    )
    assert "twice" in flaw(stats=(Stat("a", "1"), Stat("a", "1")))
    assert "cannot be made without arguments" in flaw(__init__=lambda self, size: None)


# --- a package of somebody else ----------------------------------------------------------------------------------

PACKAGE = '''
from collections.abc import Iterator

import torch

from evenkeel.instruments import Stat
from evenkeel.rules import Case, Need, Rule, at, example
from evenkeel.schema import Evidence
from evenkeel.tracing.events import OutputEvent


class OddChannels:
    """even_share: how much of a stream's energy lies in its even channels."""

    kind = "residual"
    stats = (Stat("even_share", "share"),)

    def __init__(self):
        self._even = self._all = None

    def observe(self, event):
        if isinstance(event, OutputEvent):
            squares = event.output.double().square()
            self._add(squares[..., ::2].sum(), squares.sum())

    def _add(self, even, all):
        self._even = even if self._even is None else self._even + even
        self._all = all if self._all is None else self._all + all

    def merge(self, other):
        if other._all is not None:
            self._add(other._even, other._all)

    def read(self):
        return {} if self._all is None else {self.stats[0]: self._even / self._all}


def _judge(measurements, sites, bounds) -> Iterator[Case]:
    for site in sites:
        share = measurements.value(site, "even_share")
        if share > bounds["most"]:
            yield Case(
                severity="warning",
                sites=(site,),
                evidence=(Evidence(stat="even_share", value=share, bound=bounds["most"], unit="share"),),
                message=f"even channels of {site.path} hold {share:.3f} of its energy (bound {bounds['most']})",
                excess=share,
            )


RULE = Rule(
    code="ODD101",
    name="even channels",
    needs=(Need(kind="residual", stat="even_share"),),
    measures="the share of even channels",
    severities=("warning",),
    severity="warning",
    bounds={"most": 0.1},
    bound="0.1, because this is a test",
    why="It is a test.",
    advice=("Do nothing.",),
    try_command="evenkeel rules ODD101",
    source="this test",
    firing=(example("even", at("layers.0:residual.block", even_share=0.5)),),
    silent=(example("odd", at("layers.0:residual.block", even_share=0.05)),),
    judge=_judge,
)
'''

TESTS = """
import torch
from outside import RULE, OddChannels

from evenkeel.testing import InstrumentConformance, RuleConformance
from evenkeel.tracing.events import OutputEvent


class TestRule(RuleConformance):
    rule = RULE


class TestInstrument(InstrumentConformance):
    instrument = OddChannels
    name = "odd-channels"

    def events(self):
        return [OutputEvent(output=torch.arange(24.0).reshape(2, 3, 4) + shift) for shift in range(3)]
"""

PROGRAM = """
import json
import torch
import evenkeel as ek
from evenkeel.cli.main import main

torch.manual_seed(0)
model = ek.Transformer(ek.TransformerConfig(vocabulary=256, context=16, depth=2, d_model=16))
tokens = torch.arange(32).reshape(2, 16)
diagnosis = ek.inspect(model, [{"input_ids": tokens, "labels": tokens}])
(finding,) = [item for item in diagnosis.findings if item.code == "ODD101"]
assert finding.sites == ("blocks.0:residual.block", "blocks.1:residual.block"), finding
settings = ek.Settings.from_file("pyproject.toml")
calm = ek.inspect(model, [{"input_ids": tokens, "labels": tokens}], settings=settings)
assert "ODD101" not in [item.code for item in calm.findings], calm.findings
model.save("model")
other = ["--config", "other.toml", "--format", "json", "--out", "d.json"]
open("other.toml", "w").write("[tool.evenkeel.rules.ODD101]\\nseverity = 'error'\\n")
assert main(["inspect", "model", "--tokens", "64", "--device", "cpu", *other]) == 1
found = [(item["code"], item["severity"]) for item in json.load(open("d.json"))["findings"]]
assert ("ODD101", "error") in found, found
assert main(["rules", "odd101"]) == 0
"""


def installed(folder: Path, points: str, name: str = "outside") -> None:
    """A distribution as pip would leave it: the module, and metadata with its entry points."""
    (folder / "outside.py").write_text(PACKAGE)
    metadata = folder / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(points)


POINTS = "[evenkeel.rules]\nODD101 = outside:RULE\n\n[evenkeel.instruments]\nodd-channels = outside:OddChannels\n"


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=folder)


def test_a_rule_and_an_instrument_of_another_package_work_and_inherit_their_tests(tmp_path: Path) -> None:
    installed(tmp_path, POINTS)
    (tmp_path / "pyproject.toml").write_text("[tool.evenkeel.rules.ODD101]\nbounds = {most = 1.0}\n")
    done = ran(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "ODD101 even channels" in done.stdout and "most = 1 (pyproject.toml; by default 0.1)" in done.stdout
    (tmp_path / "test_outside.py").write_text(TESTS)
    tested = ran(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_outside.py")
    suites = [name for suite in (RuleConformance, InstrumentConformance) for name in dir(suite) if "test_" in name]
    assert tested.returncode == 0 and f"{len(suites)} passed" in tested.stdout, tested.stdout
    (tmp_path / "outside.py").write_text(PACKAGE.replace("if other._all is not None", "if False"))
    tested = ran(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_outside.py")
    assert tested.returncode == 1 and "test_merging_is_observing_together" in tested.stdout


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ("[evenkeel.rules]\nODD102 = outside:RULE\n", "rule 'ODD102' of outside 1.2 has the code 'ODD101'"),
        ("[evenkeel.rules]\nODD101 = outside:_judge\n", "of type function and must be an evenkeel.rules.Rule"),
        ("[evenkeel.rules]\nODD101 = outside:MISSING\n", "cannot be loaded from outside:MISSING (AttributeError"),
        ("[evenkeel.rules]\nODD101 = elsewhere:RULE\n", "ModuleNotFoundError: No module named 'elsewhere'"),
        ("[evenkeel.rules]\nATT303 = outside:RULE\n", "rule 'ATT303' of outside 1.2 has the code 'ODD101'"),
    ],
)
def test_a_package_that_breaks_the_protocol_is_refused_in_one_line(tmp_path: Path, points: str, said: str) -> None:
    installed(tmp_path, points)
    done = ran(tmp_path, "-m", "evenkeel", "rules")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and said in done.stderr and "mend or uninstall" in done.stderr, done.stderr


def test_a_refused_package_is_refused_each_time(tmp_path: Path) -> None:
    """Not taken for loaded after the first error, nor half of it."""
    installed(tmp_path, "[evenkeel.rules]\nODD101 = outside:RULE\nODD102 = outside:RULE\n")
    program = (
        "from evenkeel.errors import UsageError\nfrom evenkeel.rules import RULES\n"
        "for _ in range(2):\n    try: len(RULES)\n    except UsageError as error: print(error)\n"
    )
    assert ran(tmp_path, "-c", program).stdout.count("rule 'ODD102'") == 2
