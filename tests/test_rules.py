"""Rules: their own examples, what they say to missing and NaN readings, their bounds, and their pages."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from typing import Any

import numpy as np
import pytest

from evenkeel.cli.main import COMMANDS
from evenkeel.nn import TransformerConfig
from evenkeel.rules import RULES, Example, Override, Place, Rule, apply, at, example, judge
from evenkeel.rules._causes import with_causes
from evenkeel.schema import RUN, Finding, Severity, Site, StepLog

EVERY = [pytest.param(rule, id=rule.code) for rule in RULES.values()]


def only(rule: str, case: Example) -> Finding:
    findings, _ = apply(RULES[rule], case.measurements)
    assert len(findings) == 1
    return findings[0]


def outcome(rule: str, case: Example) -> str:
    return apply(RULES[rule], case.measurements)[1]


# --- what holds for each of ours; tests/test_conformance.py has what holds for outside ones too ----------------------


@pytest.mark.parametrize("rule", EVERY)
def test_a_code_is_of_a_family(rule: Rule):
    assert re.fullmatch(r"(ACT1|GLU2|ATT3|OUT4|GRD5|NUM6|ARC7|RUN8)\d\d", rule.code) and RULES[rule.code] is rule
    assert all(re.fullmatch(r"C\d\d", claim) for claim in rule.claims)


@pytest.mark.parametrize("rule", EVERY)
def test_the_command_to_try_exists(rule: Rule):
    program, command, *arguments = shlex.split(rule.try_command)
    assert program == "evenkeel" and command in COMMANDS
    assert arguments == ([rule.code] if command == "rules" else [])


@pytest.mark.parametrize("rule", EVERY)
def test_a_change_is_on_an_axis_of_the_transformer(rule: Rule):
    if rule.change is None:
        return
    part, name = rule.change.axis.split(".")
    config = TransformerConfig()
    changed = dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **{name: rule.change.value})}
    )
    assert getattr(getattr(changed, part), name) == rule.change.value


# --- what cannot be judged ---------------------------------------------------------------------------------------


def test_one_nan_among_sound_sites_keeps_a_rule_from_passing():
    sound, broken = (
        at(f"layers.{n}.attn:attention.softmax", max_logit=value) for n, value in enumerate((3.0, math.nan))
    )
    assert outcome("ATT303", example("sound", sound)) == "pass"
    assert outcome("ATT303", example("one NaN", sound, broken)) == "not_measured"


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        ({"zero_gradient_share": ()}, "no zero_gradient_share was read at layers.0.act"),
        ({"tokens": 24.0}, "tokens is 24 at layers.0.act, too few to judge by; it takes 512"),
        ({"zero_gradient_share": math.nan}, "zero_gradient_share is NaN at layers.0.act"),
    ],
)
def test_a_rule_that_could_not_judge_says_what_it_lacked(stats: dict[str, Any], reason: str):
    whole: dict[str, Any] = {
        "dead_channel_share": 0.0,
        "zero_gradient_share": 0.5,
        "input_absmax": 3.0,
        "tokens": 4096.0,
    }
    given = example("lacking", at("layers.0.act:activation.relu", **(whole | stats))).measurements
    _, statuses = judge(given.sites, given.readings, (), given.model, given.data)
    (status,) = [item for item in statuses if item.code == "ACT102"]
    assert (status.status, status.reason) == ("not_measured", reason)
    assert status.to_dict()["reason"] == reason
    assert all(not item.reason for item in statuses if item.status != "not_measured")


def test_rules_about_steps_have_nothing_to_judge_where_no_step_was_taken():
    maps = [at(f"layers.{n}.up.weight:parameter.parameter", gain=0.6, elements=64.0) for n in range(4)]
    assert {outcome(code, example("inspected", *maps)) for code in ("RUN804", "RUN805", "RUN806")} == {"not_applicable"}
    moved = at("layers.4.up.weight:parameter.parameter", gain=0.6, update={"update_ratio": 1e-3})
    assert outcome("RUN804", example("a run that tells no learning rate", moved)) == "not_measured"


def test_a_site_is_judged_by_its_latest_reading():
    early, late = (
        at("layers.0.attn:attention.softmax", step=step, max_logit=value) for step, value in ((0, 500.0), (50, 9.0))
    )
    assert outcome("ATT303", example("cured", late, early)) == "pass"
    assert outcome("ATT303", example("sick at first", early)) == "fail"


def test_one_nan_does_not_hide_a_finding_elsewhere():
    places = [at(f"layers.{n}.attn:attention.softmax", max_logit=value) for n, value in enumerate((math.nan, 5e4))]
    assert only("ATT303", example("NaN and large", *places)).sites == ("layers.1.attn:attention.softmax",)


def test_a_model_without_the_kind_of_site_is_not_applicable():
    nothing = example("a head alone", at("lm_head:head.softmax", loss=1.0))
    findings, statuses = judge(
        nothing.measurements.sites,
        nothing.measurements.readings,
        (),
        nothing.measurements.model,
        nothing.measurements.data,
    )
    assert findings == () and [status.code for status in statuses] == list(RULES)
    status = {item.code: item.status for item in statuses}
    assert {status[code] for code in ("ACT101", "ATT301", "GRD501", "NUM601", "RUN801")} == {"not_applicable"}
    assert status["OUT401"] == "not_measured"


# --- bounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "scale"), [("sigmoid", 8.88), ("tanh", 4.43)])
def test_a_bounded_function_saturates_at_the_input_scale_that_the_page_states(op: str, scale: float):
    slopes = {"sigmoid": lambda x: 1 / (4 * np.cosh(x / 2) ** 2), "tanh": lambda x: 1 / np.cosh(x) ** 2}[op]
    x = np.random.default_rng(0).standard_normal(400_000)

    def fires(size: float) -> bool:
        share = float((slopes(size * x) < 0.01 * slopes(0.0)).mean())
        place = at(
            f"act:activation.{op}", small_gradient_share=share, zero_gradient_share=0.0, input_absmax=9.0, tokens=999.0
        )
        return outcome("ACT101", example("scaled normal input", place)) == "fail"

    assert fires(1.02 * scale) and not fires(0.98 * scale)


def attention_of_normal_scores(spread: float, keys: int, rng: np.random.Generator) -> Example:
    """One layer of four heads with independent normal scores; the statistics in float64 from their definition."""
    scores = spread * rng.standard_normal((4, 256, keys))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean(-1)
    found: dict[str, Any] = {
        "entropy": entropy,
        "entropy_relative": entropy / math.log(keys),
        "score_std": scores.std((1, 2)),
        "softmax_gain": (1 - (weights**2).sum(-1)).mean(-1),
        "sink_mass": weights[:, :, 0].mean(-1),
        "max_logit": scores.max((1, 2)),
    }
    per_head: dict[str, Any] = {stat: tuple(values.tolist()) for stat, values in found.items()}
    place = at("layers.0.attn:attention.softmax", **per_head)
    return example(f"normal scores of spread {spread:.2f} over {keys} keys", place)


@pytest.mark.parametrize("keys", (16, 128, 1024))
def test_scores_of_random_queries_and_keys(keys: int):
    rng = np.random.default_rng(keys)
    condensed = math.sqrt(2 * math.log(keys))
    for head_dim in (32, 64, 128):
        unscaled = attention_of_normal_scores(math.sqrt(head_dim), keys, rng)
        assert outcome("ATT304", unscaled) == "fail", head_dim
    for spread in (0.3, 1.0, condensed):
        assert outcome("ATT304", attention_of_normal_scores(spread, keys, rng)) == "pass", spread
    for code in ("ATT301", "ATT302", "ATT303"):
        assert outcome(code, attention_of_normal_scores(1.0, keys, rng)) == "pass"
    assert outcome("ATT301", attention_of_normal_scores(400.0, keys, rng)) == "fail"
    assert outcome("ATT302", attention_of_normal_scores(0.05, keys, rng)) == "fail"


def test_uniform_attention_warns_only_where_the_loss_came_down_and_stands():
    place = at("layers.0.attn:attention.softmax", entropy_relative=(0.9995, 0.9999), score_std=(0.05, 0.02))
    falling = tuple(StepLog(step=step, loss=5.0 * 0.995**step) for step in range(400))
    flat = tuple(StepLog(step=step, loss=5.0) for step in range(400))
    stalled = tuple(StepLog(step=step, loss=max(3.3, 5.0 - 0.02 * step)) for step in range(400))
    assert only("ATT302", example("inspected", place)).severity == "info"
    assert only("ATT302", example("at the start", place, log=flat)).severity == "info"
    assert only("ATT302", example("learning", place, log=falling)).severity == "info"
    assert only("ATT302", example("too short to tell", place, log=stalled[:190])).severity == "info"
    assert only("ATT302", example("standing", place, log=stalled)).severity == "warning"


def blocks(gradients: list[float], *, prefix: str = "layers") -> list[Place]:
    return [
        at(f"{prefix}.{n}:residual.block", residual_rms=1.0, backward={"gradient_rms": value})
        for n, value in enumerate(gradients)
    ]


HEAD = at("lm_head:head.softmax", loss=2.0)


def test_vanishing_names_the_block_where_the_gradient_stops():
    finding = only("GRD501", example("stopped", *blocks([0.0, 0.0, 0.4, 0.5]), HEAD))
    assert finding.severity == "error" and "stops in layers.2" in finding.message
    assert finding.sites == ("layers.0:residual.block", "layers.1:residual.block", "layers.2:residual.block")


@pytest.mark.parametrize("depth", (2, 6, 12, 24, 48))
def test_a_post_norm_stack_passes_at_every_depth_and_a_plain_sigmoid_stack_does_not(depth: int):
    post_norm = [2.0 ** (-(depth - n) / 2) for n in range(depth)]
    sigmoid = [0.05 ** (depth - n) for n in range(depth)]
    assert outcome("GRD501", example("post-norm", *blocks(post_norm), HEAD)) == "pass"
    assert outcome("GRD501", example("plain sigmoid", *blocks(sigmoid), HEAD)) == "fail"


def test_vanishing_names_the_narrowest_pair():
    finding = only("GRD501", example("one bad block", *blocks([1e-4, 1e-4, 1e-4, 1.0, 1.0, 1.0]), HEAD))
    assert finding.sites == ("layers.2:residual.block", "layers.3:residual.block")


def test_encoder_and_decoder_are_two_stacks():
    places = [*blocks([1e-5, 1e-5], prefix="encoder.block"), *blocks([1.0, 1.0], prefix="decoder.block"), HEAD]
    assert outcome("GRD501", example("a quiet encoder", *places)) == "pass"
    places = [*blocks([0.0, 0.0], prefix="encoder.block"), *blocks([1.0, 1.0], prefix="decoder.block"), HEAD]
    assert "stops in decoder.block.0" in only("GRD501", example("a cut encoder", *places)).message


def test_a_loss_without_gradient_is_no_stop():
    assert outcome("GRD501", example("no targets", *blocks([0.0, 0.0, 0.0]), HEAD)) == "pass"


def test_a_rounding_bound_knows_its_dtype():
    place = at("lm_head:head.softmax", logsumexp_mean=10.0, logit_absmax=150.0)
    assert only("OUT401", example("bfloat16", place, dtype="bfloat16")).evidence[0].bound == 128
    assert outcome("OUT401", example("float16", place, dtype="float16")) == "pass"
    assert outcome("OUT401", example("float32", place)) == "pass"


def test_the_first_module_forward_then_backward():
    forward = example(
        "both",
        at("a:module.Linear", nonfinite=0.0, backward={"nonfinite": 5.0}),
        at("b:module.Linear", nonfinite=3.0, backward={"nonfinite": 5.0}),
        at("c:module.Linear", nonfinite=9.0, backward={"nonfinite": 0.0}),
    )
    assert only("NUM601", forward).sites == ("b:module.Linear",)
    backward = example(
        "backward",
        at("a:module.Linear", nonfinite=0.0, backward={"nonfinite": 5.0}),
        at("b:module.Linear", nonfinite=0.0, backward={"nonfinite": 3.0}),
        at("c:module.Linear", nonfinite=0.0, backward={"nonfinite": 0.0}),
    )
    assert only("NUM601", backward).sites == ("b:module.Linear",)


def test_cases_of_one_severity_are_one_finding_told_by_the_worst():
    logits = (150.0, 900.0, 300.0, 2e4)
    places = [at(f"layers.{n}.attn:attention.softmax", max_logit=value) for n, value in enumerate(logits)]
    findings, _ = apply(RULES["ATT303"], example("several", *places).measurements)
    assert [finding.severity for finding in findings] == ["error", "warning"]
    assert findings[1].sites == tuple(f"layers.{n}.attn:attention.softmax" for n in (0, 1, 2))
    assert findings[1].evidence[0].value == 900.0 and "layers.1.attn" in findings[1].message


def test_dead_channels_in_a_model_that_works_are_an_alarm_only_beyond_what_working_models_have():
    def dead(share: float, loss: float) -> str:
        layer = at("a:activation.relu", dead_channel_share=share, zero_gradient_share=0.8, input_absmax=9.0, tokens=4e3)
        return only("ACT102", example("relu", layer, at("h:head.softmax", loss=loss, classes=256.0))).severity

    assert [dead(share, 2.8) for share in (0.6, 0.8, 1.0)] == ["info", "warning", "error"]
    assert [dead(share, 5.6) for share in (0.6, 0.8, 1.0)] == ["warning", "warning", "error"]


def test_what_is_left_of_a_solved_task_is_no_alarm():
    def severity(code: str, *, loss: float, logged: float, spread: float = 1.0) -> list[str]:
        blocks = [
            at(f"layers.{n}:residual.block", residual_rms=1.0, backward={"gradient_rms": size})
            for n, size in enumerate((1e-6 * spread, 1e-3, 1.0))
        ]
        head = at("score:head.softmax", loss=loss, classes=2.0)
        log = (*run(*[loss, 1.05 * loss] * 10, jumps={}), StepLog(step=20, loss=logged, jump=50.0))
        return [item.severity for item in apply(RULES[code], example("solved", *blocks, head, log=log).measurements)[0]]

    assert severity("GRD501", loss=0.5, logged=0.6) == ["warning"]
    assert severity("GRD501", loss=0.02, logged=0.6) == ["info"]
    assert severity("GRD501", loss=0.02, logged=0.6, spread=0.0)[0] == "error"  # exactly 0 is a cut, whatever the loss
    assert severity("RUN801", loss=0.02, logged=0.06) == ["info"]
    assert severity("RUN801", loss=0.02, logged=0.6) == ["warning"]
    scaled = (*run(*[0.1, 0.11] * 10, jumps={}), StepLog(step=20, loss=0.06, jump=50.0))
    other = example("a loss divided by 16", at("score:head.softmax", loss=1.6, classes=50_257.0), log=scaled)
    assert only("RUN801", other).severity == "warning"


def test_large_logits_of_a_model_that_works_are_worth_knowing_up_to_what_models_had_without_clipping():
    def severity(height: float, loss: float = 2.4) -> str:
        attention = at("layers.0.attn:attention.softmax", max_logit=height, max_logit_rise=height)
        return only("ATT303", example("one", attention, at("h:head.softmax", loss=loss, classes=256.0))).severity

    assert [severity(height) for height in (300.0, 3000.0, 30_000.0)] == ["info", "warning", "error"]
    assert severity(300.0, loss=5.5) == "warning"


def test_what_alibi_adds_is_no_rise_above_a_row():
    finding = only("ATT303", example("old", at("a:attention.softmax", max_logit=1000.0, added_max=110.0)))
    assert finding.evidence[0].stat == "max_logit" and finding.evidence[0].value == 890.0
    assert "mean of its row" not in finding.message


def test_a_gate_that_both_factors_close_never_opens():
    def severity(*, gradient: float, steps: tuple[int, ...] = (0,)) -> str:
        stats: dict[str, Any] = {"product_absmax": 0.0, "dead_channel_share": 1.0, "selectivity": 0.0, "tokens": 4096.0}
        places = [
            place
            for step in steps
            for place in (
                at("a.mlp:gate.swiglu", step=step, **stats),
                at("a.mlp.act:activation.silu", step=step, zero_gradient_share=0.0),
                at("a.mlp.up.weight:parameter.parameter", step=step, backward={"gradient_rms": gradient}),
                at("h:head.softmax", step=step, loss=5.6, classes=256.0),
            )
        ]
        return only("GLU201", example("zeros", *places)).severity

    assert severity(gradient=1e-3) == "info" and severity(gradient=0.0) == "error"
    assert severity(gradient=1e-3, steps=(0, 500)) == "error"  # it had its time


@pytest.mark.parametrize(
    ("moved", "outcome_"), [({50: 0.8}, "pass"), ({50: 0.1, 2000: 0.6}, "fail"), ({2000: 0.6}, "fail")]
)
def test_only_a_short_stretch_shows_that_rounding_loses_nothing(moved: dict[int, float], outcome_: str):
    """Of rare large updates thousands of steps carry most elements once, though nearly all are lost."""
    update = {"changed_share": 0.05, "learning_rate": 1e-5, "planned_learning_rate": 1e-5}
    places = [
        at(
            "a.weight:parameter.parameter",
            step=step,
            gain=1.0,
            update=update | ({"moved_share": moved[step]} if step in moved else {}),
        )
        for step in (0, 50, 100, 2000)
    ]
    assert outcome("NUM610", example("bf16", *places, dtype="bfloat16")) == outcome_


# --- spikes ------------------------------------------------------------------------------------------------------


def run(*losses: float, jumps: dict[int, float]) -> tuple[StepLog, ...]:
    return tuple(
        StepLog(step=step, loss=loss, jump=jumps.get(step), batch=f"batch{step}") for step, loss in enumerate(losses)
    )


def sizes(path: str, values: list[float]) -> list[Place]:
    return [at(f"{path}:residual.block", step=step, residual_rms=value) for step, value in enumerate(values)]


def test_a_spike_that_came_back_is_info_and_one_that_did_not_a_warning():
    calm = [2.0, 2.1] * 10
    back = example("back", log=run(*calm, 9.0, *[2.05] * 10, jumps={20: 50.0}))
    away = example("away", log=run(*calm, 9.0, *[6.0] * 10, jumps={20: 50.0}))
    fresh = example("fresh", log=run(*calm, 9.0, jumps={20: 50.0}))
    assert [only("RUN801", case).severity for case in (back, away, fresh)] == ["info", "warning", "warning"]


def test_of_a_lost_run_only_the_first_lost_step_is_told():
    lost = example("lost", log=run(2.0, 2.1, math.nan, math.nan, 9.0, jumps={2: math.inf, 3: math.inf, 4: 50.0}))
    finding = only("RUN801", lost)
    assert finding.severity == "error" and "step 2 on batch batch2" in finding.message


def test_what_moved_first_goes_by_step_then_by_execution_order():
    log = run(*[2.0] * 8, 9.0, jumps={8: 50.0})
    steady = [1.0, 1.1, 1.0, 1.1, 1.0, 1.1, 1.0]
    early = sizes("layers.2", [*steady, 5.0, 5.0])
    late = sizes("layers.0", [*steady, 1.1, 9.0])
    twin = sizes("layers.1", [*steady, 5.0, 5.0])
    finding = only("RUN801", example("by step", *late, *early, log=log))
    assert finding.sites == (RUN.id, "layers.2:residual.block") and "at step 7" in finding.message
    finding = only("RUN801", example("by order", *late, *twin, *early, log=log))
    assert finding.sites == (RUN.id, "layers.1:residual.block")


def test_a_reading_inside_its_own_range_did_not_move():
    log = run(*[2.0] * 8, 9.0, jumps={8: 50.0})
    finding = only("RUN801", example("steady", *sizes("layers.0", [1.0, 1.1] * 4 + [1.15]), log=log))
    assert finding.sites == (RUN.id,) and "measure more often" in finding.message


# --- what a project sets otherwise -------------------------------------------------------------------------------


def test_a_bound_set_otherwise_decides():
    case = example("logits of 150", at("layers.0.attn:attention.softmax", max_logit=150.0))
    assert apply(RULES["ATT303"], case.measurements)[1] == "fail"
    assert apply(RULES["ATT303"], case.measurements, Override(bounds={"clipped": 200.0}))[1] == "pass"


def test_a_severity_set_otherwise_holds_for_every_finding_of_the_rule():
    case = example(
        "logits", *(at(f"layers.{i}.attn:attention.softmax", max_logit=value) for i, value in ((0, 150.0), (1, 2e4)))
    )
    (finding,), _ = apply(RULES["ATT303"], case.measurements, Override(severity="info"))
    assert finding.severity == "info" and len(finding.sites) == 2


# --- causes and consequences -------------------------------------------------------------------------------------


def test_nothing_explains_itself_however_indirectly():
    def reached(code: str) -> set[str]:
        return {item for direct in RULES[code].explains for item in (direct, *reached(direct))}

    for rule in RULES.values():
        assert set(rule.explains) <= set(RULES) and rule.code not in reached(rule.code)


def finding(code: str, *sites: str, severity: Severity = "warning") -> Finding:
    return Finding(code=code, rule="", severity=severity, sites=sites, evidence=(), message="", why="", advice=())


def chained(**explains: tuple[str, ...]) -> dict[str, Rule]:
    return {code: dataclasses.replace(RULES["ATT303"], code=code, explains=codes) for code, codes in explains.items()}


def test_a_consequence_names_the_main_finding_and_not_the_one_between():
    rules = chained(ACT1=("ACT2",), ACT2=("GRD3",), GRD3=())
    sites = [Site(path=path, kind="residual", op="block") for path in ("layers.0", "layers.1")]
    found = [finding(code, sites[1].id) for code in ("GRD3", "ACT2", "ACT1")]
    assert [item.cause for item in with_causes(found, rules, sites)] == ["ACT1", "ACT1", ""]


def test_what_is_only_worth_knowing_explains_no_warning():
    rules = chained(ACT1=("ACT2", "ACT3"), ACT2=(), ACT3=())
    sites = [Site(path="layers.0", kind="residual", op="block")]
    found = [
        finding("ACT1", sites[0].id, severity="info"),
        finding("ACT2", sites[0].id, severity="error"),
        finding("ACT3", sites[0].id, severity="info"),
    ]
    assert [item.cause for item in with_causes(found, rules, sites)] == ["", "", "ACT1"]


def test_what_runs_before_a_fault_does_not_follow_from_it_but_gradients_do():
    rules = chained(ACT1=("ACT2", "GRD3"), ACT2=(), GRD3=())
    sites = [Site(path=path, kind="residual", op="block") for path in ("layers.0", "layers.1")]
    found = [finding("ACT1", sites[1].id), finding("ACT2", sites[0].id), finding("GRD3", sites[0].id)]
    assert [item.cause for item in with_causes(found, rules, sites)] == ["", "", "ACT1"]
