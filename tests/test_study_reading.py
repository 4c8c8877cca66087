"""What a user writes becomes a study: words, options and TOML files; and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_files import config_alone, wrote

from evenkeel.errors import ConfigError, EvenkeelError, ModelError
from evenkeel.nn import TransformerConfig
from evenkeel.nn.config.axes import axis_types, flat
from evenkeel.studies.reading.arms import plan_arms
from evenkeel.studies.reading.axes import choices_of
from evenkeel.studies.reading.presets import PRESETS
from evenkeel.studies.reading.specifications import KEYS, read_file, read_study, seconds, study_of
from evenkeel.studies.study import Contrast, Study


def choices(study: Study) -> dict[str, dict[str, Any]]:
    return {arm.name: dict(arm.choices) for arm in study.arms}


# --- words ------------------------------------------------------------------------------------------------------------


def test_words_give_every_combination_and_the_first_is_the_baseline() -> None:
    study = read_study(["attention.scale=sqrt,none,0.1", "depth=2,4"])
    assert study.baseline == "scale=sqrt depth=2"
    assert choices(study) == {
        f"scale={scale} depth={depth}": {"attention.scale": scale, "depth": depth}
        for scale in ("sqrt", "none", 0.1)
        for depth in (2, 4)
    }
    assert study.contrasts[0] == Contrast("scale=sqrt depth=4", "scale=sqrt depth=2") and len(study.contrasts) == 5


def test_presets_go_by_their_names_and_other_values_by_their_axis() -> None:
    assert read_study(["feedforward=relu, swiglu"]).names == ("relu", "swiglu")
    assert read_study(["feedforward=relu,swiglu", "depth=2,4"]).names[1] == "relu depth=4"
    assert read_study(["feedforward.activation=relu,elu"]).names == ("relu", "elu")
    both = read_study(["attention.scale=sqrt,dim", "embedding.scale=sqrt,1"])
    assert both.names[1] == "attention.scale=sqrt embedding.scale=1"
    assert read_study(["attention.qk_norm=false,true", "attention.softcap=none,50"]).names[3] == (
        "qk_norm=true softcap=50"
    )
    assert not any("," in name for name in both.names)


@pytest.mark.parametrize(
    ("axis", "word", "value"),
    [
        ("depth", "2", 2),
        ("attention.scale", "none", "none"),  # a rule of that name
        ("attention.scale", "1", 1.0),
        ("attention.softcap", "none", None),
        ("attention.window", "16", 16),
        ("attention.window", "None", None),
        ("position.kind", "none", "none"),
        ("position.scaling", "none", None),
        ("position.scaling.factor", "2", 2.0),
        ("attention.qk_norm", "true", True),
        ("head.z_loss", "1e-4", 1e-4),
        ("feedforward.d_ff", "none", None),
        ("norm.placement", "post", "post"),
    ],
)
def test_a_word_has_the_type_of_its_field(axis: str, word: str, value: Any) -> None:
    (found,) = choices_of(axis, word).values()
    assert (found, type(found)) == (value, type(value))


def test_every_field_of_a_config_is_an_axis() -> None:
    values = dict(flat(TransformerConfig().to_dict()))
    assert values.keys() <= axis_types().keys()
    for axis, value in values.items():
        word = "none" if value is None else str(value)
        assert choices_of(axis, word) == {axis: value}


def test_an_axis_of_one_value_is_of_every_arm_and_named_in_none() -> None:
    study = read_study(["feedforward=relu,gelu", "depth=3", "attention.scale=dim"])
    assert study.names == ("relu", "gelu")
    assert study.model == {"context": 64, "depth": 3, "d_model": 64, "attention": {"scale": "dim"}}
    assert {(plan.config["depth"], plan.config["attention"]["scale"]) for plan in plan_arms(study)} == {(3, "dim")}


def test_options_set_fields_and_none_sets_nothing() -> None:
    study = read_study(
        ["feedforward=relu,gelu"], budget="90s", seeds=3, data=None, contrasts=[["relu", "gelu"]], match="flops"
    )
    plain = read_study(["feedforward=relu,gelu"])
    assert study == replace(plain, budget=90.0, seeds=3, contrasts=(Contrast("relu", "gelu"),), match="flops")


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("45", 45), (7, 7)]
)
def test_durations(text: Any, value: float) -> None:
    assert seconds("budget", text) == value


@pytest.mark.parametrize("text", ["ten", "10d", "-5m", "", True, None, "1h30m"])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ConfigError, match="give seconds, or a duration such as 90s, 10m or 2h"):
        seconds("budget", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["feedforward=gellu,relu"], "feedforward is 'gellu'; did you mean 'gelu'?"),
        (["feedforward.activation=relu,gellu"], "feedforward.activation is 'gellu'; did you mean 'gelu'?"),
        (["feedforward=swigul,relu"], "did you mean 'swiglu'?"),
        (["attention.scal=sqrt,none"], "there is no axis 'attention.scal'; did you mean 'attention.scale'?"),
        (["scale=sqrt,none"], "did you mean 'embedding.scale' or 'attention.scale'?"),
        (["attention.zzz=1,2"], "there is no axis 'attention.zzz'; known: attention.heads, attention.key_heads"),
        (["attention.scale=sqrt,sqr"], "attention.scale is 'sqr'; did you mean 'sqrt'?"),
        (["attention.scale=sqrt,7x"], "attention.scale is '7x'; give sqrt, dim, none, a number"),
        (["attention.scale=sqrt,-1"], "arm 'scale=-1': attention.scale is -1.0; give sqrt, dim, none, or a finite"),
        (["depth=2,2.5"], "depth is '2.5'; give a whole number"),
        (["depth=2,0"], "arm 'depth=0': depth is 0 and must be at least 1"),
        (["attention.qk_norm=yes,no"], "attention.qk_norm is 'yes'; give true, false"),
        (["attention.heads=4,3"], "arm 'heads=3': d_model is 64 and attention.heads is 3, which does not divide it"),
        (["depth=2"], "at least two arms and this has 1"),
        (["depth=2,,4"], "depth has no value; write it as in depth=2,4"),
        (["depth="], "depth has no value"),
        (["depth=2,4,2"], "depth has '2' and '2', which are the same"),
        (["feedforward=silu,swish"], "feedforward has 'silu' and 'swish', which are the same"),
        (["depth=2,4", "depth=8"], "depth is given twice"),
        (["feedforward=relu,gelu", "feedforward.gated=true,false"], "both set feedforward.gated"),
        (["position.scaling=none", "position.scaling.factor=1,2"], "both set position.scaling.factor"),
        ([], "write axis=value,value"),
        (["depth=2,4", "relu"], "'relu' is no axis; write axis=value,value"),
        (["=2,4"], "'=2,4' is no axis"),
        (["relu"], "relu cannot be read (No such file or directory); give a study.toml, or axis=value,value"),
        (["a.toml", "depth=2,4"], "give one file, or axes"),
    ],
)
def test_wrong_words_are_refused_with_what_was_meant(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "a study has no key 'seed'; did you mean 'seeds'?"),
        ({"baseline": "rellu"}, "no arm is called 'rellu'; did you mean 'relu'?"),
        ({"match": "flop"}, "match is 'flop'; did you mean 'flops'?"),
        ({"contrasts": [["relu", "geluu"]]}, "no arm is called 'geluu'; did you mean 'gelu'?"),
        ({"contrasts": ["relu"]}, "give pairs of names"),
        ({"contrasts": [["relu", "gelu", "relu"]]}, "give pairs of names"),
        ({"rows": "16"}, "rows is '16' and must be a whole number"),
        ({"rows": True}, "rows is True and must be a whole number"),
        ({"margin": "small"}, "margin is 'small' and must be a number"),
        ({"learning_rates": 0.1}, "learning_rates is 0.1; give two numbers"),
        ({"learning_rates": [0.1, 0.01]}, "the smaller one first"),
        ({"steps": 100, "tokens": 10_000}, "steps and tokens are given together"),
        ({"tokens": 1e6}, "tokens is 1000000.0 and must be a whole number"),
        ({"tokens": 1000}, "steps is 1 and must be at least 10"),
        ({"model": {"detph": 2}}, "there is no axis 'detph'; did you mean 'depth'?"),
        ({"model": 3}, "model is 3 and must be a table; write [model]"),
        ({"arms": []}, "either axes or arms"),
    ],
)
def test_wrong_options_are_refused_with_what_was_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(["feedforward=relu,gelu"], **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- files ------------------------------------------------------------------------------------------------------------

WHOLE = """
    baseline = "gelu"
    contrasts = [["swiglu", "gelu"], ["swiglu", "relu"]]
    match = "flops"
    data = "texts"
    rows = 8
    tokens = 100_000
    seeds = 3
    tuning_trials = 4
    learning_rates = [1e-4, 1e-2]
    margin = 0.02
    target = 2.5

    [model]
    d_model = 64
    context = 64
    attention = { heads = 2 }
    norm.placement = "post"

    [axes]
    feedforward = ["relu", "gelu", "swiglu"]
"""


def test_a_file_sets_every_field(tmp_path: Path) -> None:
    study = read_study([str(wrote(tmp_path / "study.toml", WHOLE))])
    assert study == Study(
        arms=read_study(["feedforward=relu,gelu,swiglu"]).arms,
        baseline="gelu",
        contrasts=(Contrast("swiglu", "gelu"), Contrast("swiglu", "relu")),
        model={"context": 64, "depth": 2, "d_model": 64, "attention": {"heads": 2}, "norm": {"placement": "post"}},
        match="flops",
        data=str(tmp_path / "texts"),
        rows=8,
        steps=196,  # of 8·64 tokens; 195 are 99,840
        seeds=3,
        tuning_trials=4,
        learning_rates=(1e-4, 1e-2),
        margin=0.02,
        target=2.5,
    )
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


def test_tokens_count_in_the_context_of_the_arms() -> None:
    arms = [{"name": name, "choices": {"feedforward": name, "context": 32}} for name in ("relu", "gelu")]
    assert study_of({"arms": arms, "tokens": 10_240, "rows": 8}).steps == 40
    with pytest.raises(ConfigError, match="at least two arms"):
        study_of({"arms": [], "tokens": 10_240})


def test_options_take_the_place_of_a_files_keys(tmp_path: Path) -> None:
    path = wrote(tmp_path / "study.toml", WHOLE)
    study = read_study([str(path)], data="here", steps=50, seeds=9)
    assert (study.data, study.steps, study.seeds) == ("here", 50, 9)


def test_axes_of_a_file_may_be_nested_or_dotted_and_arms_spelled_out(tmp_path: Path) -> None:
    words = read_study(["attention.scale=sqrt,none", "attention.softcap=none,50"])
    dotted = wrote(
        tmp_path / "a.toml", '[axes]\n"attention.scale" = ["sqrt", "none"]\n"attention.softcap" = ["none", 50.0]'
    )
    nested_ones = wrote(tmp_path / "b.toml", '[axes.attention]\nscale = ["sqrt", "none"]\nsoftcap = ["none", 50.0]')
    assert read_file(dotted) == read_file(nested_ones) == words
    arms = read_file(
        wrote(
            tmp_path / "c.toml",
            """
            [[arms]]
            name = "as in LLaMA"
            choices = { feedforward = "swiglu" }

            [[arms]]
            name = "as in T5"
            choices = { feedforward = "relu", "attention.scale" = "none", position = { kind = "relative" } }
            """,
        )
    )
    assert arms.baseline == "as in LLaMA"
    assert choices(arms)["as in T5"] == {
        "feedforward.activation": "relu",
        "feedforward.gated": False,
        "attention.scale": "none",
        "position.kind": "relative",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a study has either axes or arms"),
        ("seed = 3", "a study has no key 'seed'; did you mean 'seeds'?"),
        ("[axis]\nfeedforward = ['relu', 'gelu']", "a study has no key 'axis'; did you mean 'axes'?"),
        ("[axes]\nfeedforward = ['relu', 'geluu']", "feedforward is 'geluu'; did you mean 'gelu'?"),
        ("[axes]\nfeedforward = ['relu', 3]", "feedforward is 3; give the name of a preset"),
        ("[axes]\nattention.scal = ['sqrt', 'none']", "there is no axis 'attention.scal'; did you mean"),
        ("[axes]\ndepth = [2, 'x']", "depth is 'x'; give a whole number"),
        ("[axes]\ndepth = [2, 4.5]", "arm 'depth=4.5': depth is 4.5 and must be int"),
        ("[axes]\ndepth = []", "depth has no value"),
        ("axes = 3", "axes is 3 and must be a table; write [axes]"),
        ("arms = 3", "arms must be tables; write [[arms]]"),
        ("[[arms]]\nchoices = {depth = 2}", "the name of an arm is None and must be a text"),
        ("[[arms]]\nname = 'a'\nchoice = {depth = 2}", "an arm has no key 'choice'; did you mean 'choices'?"),
        (2 * "[[arms]]\nname = 'a'\nchoices = {depth = 2}\n", "2 arms are called 'a'"),
        ("budget = 'soon'\n[axes]\ndepth = [2, 4]", "budget is 'soon'; give seconds"),
        ("budget = -3\n[axes]\ndepth = [2, 4]", "budget is -3.0 and must be above 0"),
        ("depth = = 2", "is no TOML"),
        ("\0", "is no TOML"),
        ("like = 'nowhere'\n[axes]\ndepth = [2, 4]", "there is no directory"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = wrote(tmp_path / "study.toml", text)
    with pytest.raises(EvenkeelError) as caught:
        read_file(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ModelError) or str(caught.value).startswith(f"{path}: ") or "no TOML" in message


def test_with_a_users_own_objective_axes_are_what_it_makes_of_them() -> None:
    study = study_of({"axes": {"dropout": [0.0, 0.1]}, "objective": "my.py:train"})
    assert choices(study) == {"dropout=0": {"dropout": 0.0}, "dropout=0.1": {"dropout": 0.1}}
    assert [plan.config for plan in plan_arms(study)] == [{}, {}]


# --- the page ---------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
SECTION = PAGE.partition("## Writing a study\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)


def test_what_the_page_shows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = blocks("python")
    wrote(tmp_path / "my.py", source)
    config_alone(tmp_path / "path" / "to" / "model", "llama")
    files = [read_file(wrote(tmp_path / "study.toml", block)) for block in blocks("toml")]
    lines = re.findall(r"^evenkeel compare (.+)$", SECTION, re.MULTILINE)
    assert len(files) == 2 and len(lines) == 7
    for line in lines:
        words, _, like = line.partition(" --like ")
        study = read_study(words.split(), like=like or None)
        assert len(plan_arms(study)) == len(study.arms) >= 2


def test_the_page_has_every_key_and_every_preset() -> None:
    rows = re.findall(r"^\| (.*?) \|", SECTION, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {*KEYS, *PRESETS} <= named
    assert not named - {*KEYS, *PRESETS, "mish"} - {"ACTIVATIONS"}
