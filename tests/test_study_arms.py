"""Arms are made as large as the baseline, or refused: counted on the models themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evenkeel.errors import ConfigError
from evenkeel.nn import Transformer, TransformerConfig
from evenkeel.studies.comparison import ArmPlan
from evenkeel.studies.reading.arms import CLOSE, plan_arms
from evenkeel.studies.reading.specifications import read_study, study_of

WIDE = "d_model=128"


def parameters_of(plan: ArmPlan) -> int:
    return sum(parameter.numel() for parameter in Transformer(TransformerConfig.from_dict(plan.config)).parameters())


def plans_of(*words: str, **options: Any) -> dict[str, ArmPlan]:
    return {plan.arm.name: plan for plan in plan_arms(read_study(words, **options))}


def shape(plan: ArmPlan) -> tuple[int, int, int]:
    config = TransformerConfig.from_dict(plan.config)
    return config.depth, config.d_model, config.d_ff


STUDIES = {
    "the feed-forwards": ["feedforward=relu,gelu,swish,glu,bilinear,reglu,geglu,swiglu,sigmoid,tanh,relu2"],
    "gated first": ["feedforward=swiglu,relu", "feedforward.bias=true"],
    "scales": ["attention.scale=sqrt,none,dim,0.1"],
    "depths": ["depth=4,1,2,3,6,8,12"],
    "both": ["feedforward=relu,swiglu", "depth=2,4"],
    "groups": ["attention.key_heads=4,2,1", "attention.output_gate=false,true"],
    "positions": ["position.kind=rotary,learned,relative,alibi", "head.tied=true,false"],
    "norms": ["norm.kind=rms,layer", "norm.placement=pre,sandwich,none"],
    "large heads": ["attention.head_dim=8,128"],  # more than d_ff alone can make up for
    "widths": ["d_model=128,96,64"],
    "given": ["feedforward.d_ff=300", "feedforward=relu,swiglu", "d_model=96"],
    "in eights": ["feedforward.multiple=8", "feedforward.d_ff=300", "attention.scale=sqrt,none"],
}


@pytest.mark.parametrize("name", STUDIES)
def test_arms_have_as_many_parameters_as_the_baseline(name: str) -> None:
    study = read_study(STUDIES[name])
    plans = plan_arms(study)
    assert tuple(plan.arm for plan in plans) == study.arms
    counted = {plan.arm.name: parameters_of(plan) for plan in plans}
    wanted = counted[study.baseline]
    for plan in plans:
        assert plan.parameters == counted[plan.arm.name]
        assert plan.difference == pytest.approx((plan.parameters - wanted) / wanted, abs=1e-12)
        assert abs(plan.difference) <= 0.005
        for axis, value in plan.arm.choices.items():
            assert dict_at(plan.config, axis) == value  # what an arm sets is left alone
        assert ArmPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def dict_at(config: Any, axis: str) -> Any:
    for name in axis.split("."):
        config = config[name]
    return config


def test_the_baseline_stays_as_it_is_and_others_change_their_hidden_size() -> None:
    plans = plans_of("feedforward=relu,swiglu", WIDE)
    assert shape(plans["relu"]) == (2, 128, 512)
    assert shape(plans["swiglu"]) == (2, 128, 341)  # 512·2/3
    assert shape(plans_of("feedforward=swiglu,relu", WIDE)["relu"]) == (2, 128, 513)  # 342·3/2; the gated one rounds up


def test_an_arm_that_is_equal_as_it_stands_is_left_alone() -> None:
    plans = plans_of("attention.scale=sqrt,none", "feedforward.multiple=64", "feedforward.d_ff=300")
    assert {plan.config["feedforward"]["d_ff"] for plan in plans.values()} == {300}
    assert {plan.difference for plan in plans.values()} == {0.0}


def test_arms_of_another_depth_keep_their_proportions() -> None:
    plans = plans_of("depth=4,1,2,8", "feedforward=relu,swiglu", WIDE)
    for name, plan in plans.items():
        depth, d_model, d_ff = shape(plan)
        usual = 4 if "relu" in name else 8 / 3
        assert d_ff / d_model == pytest.approx(usual, rel=0.16)  # d_model goes in steps of 8
        assert (d_model > 128) == (depth < 4) and (d_model < 128) == (depth > 4)
    given = plans_of("depth=4,2", "feedforward.d_ff=1024", WIDE)["depth=2"]
    assert shape(given)[2] / shape(given)[1] == pytest.approx(8, rel=0.1)
    mixed = plans_of("depth=4,2", "feedforward=swiglu,relu", "feedforward.d_ff=344", WIDE)
    assert shape(mixed["depth=2 relu"])[2] / shape(mixed["depth=2 relu"])[1] == pytest.approx(344 * 1.5 / 128, rel=0.16)


def test_flops_are_matched_on_request() -> None:
    study = read_study(["feedforward=relu,swiglu", "attention.key_heads=4,1", "depth=2,4", WIDE], match="flops")
    plans = plan_arms(study)
    counted: dict[int, dict[int, float]] = {}
    for plan in plans:
        config = TransformerConfig.from_dict(plan.config)
        model, ids = Transformer(config), torch.zeros(1, config.context, dtype=torch.long)
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            model(ids, labels=ids).loss.backward()
        per_token = counter.get_total_flops() / config.context
        assert plan.flops == pytest.approx(per_token, rel=0.05)  # torch counts padded heads and no causal half
        counted.setdefault(config.depth, {})[plan.flops] = per_token
    for by_ours in counted.values():  # of one depth that is the same in all, so differences have to agree
        assert len({ours - torchs for ours, torchs in by_ours.items()}) == 1
    wanted = plans[0].flops
    assert plans[0].arm.name == study.baseline
    for plan in plans:
        assert plan.difference == pytest.approx((plan.flops - wanted) / wanted, abs=1e-12)
        assert abs(plan.difference) <= CLOSE
    assert max(abs(plan.parameters / plans[0].parameters - 1) for plan in plans) > CLOSE


def test_nothing_is_matched_on_request() -> None:
    plans = plans_of("depth=2,4", "feedforward.d_ff=64,512", WIDE, match="nothing")
    sizes = {name: parameters_of(plan) for name, plan in plans.items()}
    assert {name: shape(plan) for name, plan in plans.items()} == {
        f"depth={depth} d_ff={size}": (depth, 128, size) for depth in (2, 4) for size in (64, 512)
    }
    first = sizes["depth=2 d_ff=64"]
    for name, plan in plans.items():
        assert plan.difference == pytest.approx((sizes[name] - first) / first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["feedforward.d_ff=128,256", "depth=4", WIDE],
            r"arm 'd_ff=256' has 546,728 parameters at its nearest and the baseline 'd_ff=128' 525,440, a difference "
            r"of \+4\.05% where 0\.5% counts as equal; give --match nothing .*, or another d_model, d_ff or",
        ),
        (
            ["d_model=64,128", "depth=4"],
            r"arm 'd_model=128' cannot be made as large as the baseline 'd_model=64': with d_ff=1 the config has "
            r"330,368 parameters and the other one 230,208; .*--match nothing$",
        ),
        (
            ["d_model=64,128", "feedforward.d_ff=128,256", "depth=4"],
            r"arm 'd_model=64 d_ff=256' has 295,488 parameters .* 'd_model=64 d_ff=128' 197,184, .*\+49\.85% where",
        ),
        (
            ["feedforward=relu,swiglu", "feedforward.multiple=256", "d_model=96"],
            r"arm 'swiglu' has .* feedforward\.multiple$",
        ),
        (["context=64,128"], "arm 'context=128' has context=128 and the baseline 'context=64' 64, .*one context$"),
        (["vocabulary=100", "depth=2,4"], "arm 'depth=2' has vocabulary=100, .*; give 256 or more$"),
    ],
)
def test_what_cannot_be_compared_fairly_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan_arms(read_study(words))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_arms_spelled_out_are_matched_alike() -> None:
    study = study_of(
        {
            "arms": [
                {"name": "gated", "choices": {"feedforward": "reglu", "attention": {"qk_norm": True}}},
                {"name": "plain", "choices": {"feedforward": "relu2"}},
            ],
            "model": {"depth": 2, "attention.heads": 2},
        }
    )
    as_written = study.to_dict()
    gated, plain = plan_arms(study)
    assert study.to_dict() == as_written
    assert (gated.config["attention"]["qk_norm"], plain.config["attention"]["qk_norm"]) == (True, False)
    assert gated.difference == 0 and plain.difference == (plain.parameters - gated.parameters) / gated.parameters
    assert plain.config["attention"]["heads"] == 2 and abs(plain.difference) <= CLOSE
