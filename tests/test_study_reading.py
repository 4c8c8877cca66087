"""What a user writes becomes a study: words, TOML files, own activations, models to be like; and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import model_directories
import pytest
import torch
from torch.nn import functional as F

from evenkeel.errors import ConfigError, EvenkeelError, ModelError
from evenkeel.functional import ACTIVATIONS
from evenkeel.nn import AttentionConfig, FeedForward, FeedForwardConfig, HeadConfig, Transformer, TransformerConfig
from evenkeel.nn.config.axes import axis_types, flat, nested
from evenkeel.studies.arms import config_of, plan_arms
from evenkeel.studies.axes import choices_of
from evenkeel.studies.presets import PRESETS
from evenkeel.studies.proxies import proxy
from evenkeel.studies.reading import KEYS, read_file, read_study, seconds, study_of
from evenkeel.studies.study import Contrast, Study


def wrote(path: Path, text: str) -> Path:
    path.write_text(dedent(text))
    return path


def choices(study: Study) -> dict[str, dict[str, Any]]:
    return {arm.name: dict(arm.choices) for arm in study.arms}


# --- presets -----------------------------------------------------------------------------------------------------

SHAZEER: dict[str, tuple[int, Any]] = {  # matrices, and the function by torch
    "relu": (2, F.relu),
    "gelu": (2, F.gelu),
    "swish": (2, F.silu),
    "glu": (3, torch.sigmoid),
    "bilinear": (3, lambda x: x),
    "reglu": (3, F.relu),
    "geglu": (3, F.gelu),
    "swiglu": (3, F.silu),
}
OTHERS = {
    "silu": (2, F.silu),
    "sigmoid": (2, torch.sigmoid),
    "tanh": (2, torch.tanh),
    "relu2": (2, lambda x: F.relu(x) ** 2),
    "geglu_tanh": (3, lambda x: F.gelu(x, approximate="tanh")),
    "softplus": (2, F.softplus),
    "mish": (2, F.mish),
}


@pytest.mark.parametrize(("name", "wanted"), [*SHAZEER.items(), *OTHERS.items()])
def test_a_preset_is_the_layer_of_that_name(name: str, wanted: tuple[int, Any]) -> None:
    matrices, function = wanted
    config = TransformerConfig.from_dict(nested(choices_of("feedforward", name)))
    layer = FeedForward(config.d_model, config.feedforward)
    weights = dict(layer.named_parameters())
    assert len(weights) == matrices
    x = torch.randn(3, config.d_model, generator=torch.Generator().manual_seed(0))
    first = function(x @ weights["gate.weight" if matrices == 3 else "up.weight"].T)
    hidden = first * (x @ weights["up.weight"].T) if matrices == 3 else first
    torch.testing.assert_close(layer(x), hidden @ weights["down.weight"].T)


def test_every_activation_is_a_preset_and_every_preset_is_tested() -> None:
    assert set(PRESETS) <= {*SHAZEER, *OTHERS}
    for name in set(ACTIVATIONS) - set(PRESETS):
        assert choices_of("feedforward", name) == {"feedforward.activation": name, "feedforward.gated": False}


# --- words -------------------------------------------------------------------------------------------------------


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
    study = read_study(["feedforward=relu,gelu", "depth=2", "attention.scale=dim"])
    assert study.names == ("relu", "gelu")
    assert study.model == {"depth": 2, "attention": {"scale": "dim"}}
    assert {(plan.config["depth"], plan.config["attention"]["scale"]) for plan in plan_arms(study)} == {(2, "dim")}


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
        (["attention.heads=4,3"], "arm 'heads=3': d_model is 128 and attention.heads is 3, which does not divide it"),
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
        ({"steps": 100, "tokens": 10_000}, "steps and tokens are both given"),
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


# --- files -------------------------------------------------------------------------------------------------------

WHOLE = """
    baseline = "gelu"
    contrasts = [["swiglu", "gelu"], ["swiglu", "relu"]]
    match = "flops"
    data = "texts"
    rows = 8
    tokens = 100_000
    budget = "1h"
    seeds = 3
    tuning_trials = 4
    learning_rates = [1e-4, 1e-2]
    margin = 0.02

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
        model={"d_model": 64, "context": 64, "attention": {"heads": 2}, "norm": {"placement": "post"}},
        match="flops",
        data=str(tmp_path / "texts"),
        rows=8,
        steps=196,  # of 8·64 tokens; 195 are 99,840
        budget=3600.0,
        seeds=3,
        tuning_trials=4,
        learning_rates=(1e-4, 1e-2),
        margin=0.02,
    )
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


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


# --- own activations ---------------------------------------------------------------------------------------------

MINE = """
    import torch

    def softer(x):
        return x / (1 + x.abs())

    def gelu(x):
        return x * torch.sigmoid(2 * x)
"""


def test_an_own_activation_is_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrote(tmp_path / "my.py", MINE)
    study = read_study(["feedforward=swiglu,my.py:softer"])
    reference = study.arms[1].choices["feedforward.activation"]
    assert study.names == ("swiglu", "softer")
    assert reference.startswith("my.py:softer@") and study.arms[1].choices["feedforward.gated"] is False
    plan = plan_arms(study)[1]
    model = Transformer(TransformerConfig.from_dict(plan.config))
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(ACTIVATIONS[plan.config["feedforward"]["activation"]].function(x), F.softsign(x))
    assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 256)

    gated = read_study(["feedforward.activation=silu,my.py:softer", "feedforward.gated=true"])
    assert gated.names == ("silu", "softer") and plan_arms(gated)[1].config["feedforward"]["gated"] is True
    everywhere = study_of({"axes": {"depth": [2, 4]}, "model": {"feedforward": {"activation": "my.py:softer"}}})
    assert {plan.config["feedforward"]["activation"] for plan in plan_arms(everywhere)} == {
        plan.config["feedforward"]["activation"]
    }
    assert read_study(["feedforward=gelu,my.py:gelu"]).names == ("gelu", "my.py:gelu")


def test_a_changed_file_is_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = wrote(tmp_path / "my.py", MINE)
    study = read_study(["feedforward=relu,my.py:softer"])
    name = plan_arms(study)[1].config["feedforward"]["activation"]
    assert read_study(["feedforward=relu,my.py:softer"]).identity == study.identity
    wrote(file, MINE.replace("1 + x.abs()", "2 + x.abs()"))
    with pytest.raises(ConfigError, match=r"^arm 'softer': my\.py has the digest \w{8} and .* had \w{8}; restore the"):
        plan_arms(study)
    changed = read_study(["feedforward=relu,my.py:softer"])
    other = plan_arms(changed)[1].config["feedforward"]["activation"]
    assert changed.identity != study.identity and other != name
    assert ACTIVATIONS[other].function(torch.ones(())) == torch.tensor(1 / 3)


def test_another_process_runs_the_study_from_its_data_alone(tmp_path: Path) -> None:
    wrote(tmp_path / "my.py", MINE)
    study = read_file(wrote(tmp_path / "s.toml", '[axes]\nfeedforward = ["relu", "my.py:softer"]'))
    program = (
        "import json, sys; from evenkeel.studies.arms import plan_arms; from evenkeel.studies.study import Study; "
        "from evenkeel.nn import Transformer, TransformerConfig; "
        "plan = plan_arms(Study.from_dict(json.load(sys.stdin)))[1]; "
        "model = Transformer(TransformerConfig.from_dict(plan.config)); "
        "print(model.blocks[0].feedforward.activation)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(study.to_dict()), text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == plan_arms(study)[1].config["feedforward"]["activation"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x.sum()", r"f gave \(\) in torch.float32 for a tensor of \(5, 13\) in torch.float32; return one of the same"),
        ("x.double()", r"gave \(5, 13\) in torch.float64"),
        ("x.float() * 1", r"gave \(5, 13\) in torch.float32 for a tensor of \(5, 13\) in torch.bfloat16"),
        ("3", "gave int for a tensor"),
        ("x.detach()", "gives no gradient; compute with torch alone"),
        ("x.sign()", "has the slope 0 from -8 to 8"),
        ("x.log()", r":f is nan at -8 in torch.float32; make it finite from -8 to 8"),
        ("x.abs().sqrt()", r"the slope of .*:f is nan at 0 in torch.float32; make it finite"),
        ("x.softmax(-1)", "gives other values for a part of a tensor than for the whole"),
        ("x - x.mean()", "gives other values for a part"),
        ("x / x.abs().max()", "gives other values for a part"),
        ("x + torch.rand_like(x)", "gives other values for a part"),
        ("x.relu_()", r"fails on a tensor of \(5, 13\) in torch.float32 \(RuntimeError: .*in-place"),
        ("undefined(x)", "fails on a tensor .*NameError"),
        ("x * float('inf') if x.dtype == torch.bfloat16 else x", ":f is -inf at -8 in torch.bfloat16"),
    ],
)
def test_a_function_that_is_no_activation_is_refused(tmp_path: Path, body: str, message: str) -> None:
    path = wrote(tmp_path / "my.py", f"import torch\ndef f(x):\n    return {body}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_study([f"feedforward=relu,{path}:f"])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not [name for name in ACTIVATIONS if name.startswith("f_")]


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (None, "my.py:f", r"my\.py cannot be read \(No such file or directory\); give the Python file that holds f"),
        ("def softer(x): return x", "my.py:softr", r"has no function softr; did you mean 'softer'\?"),
        ("f = 3", "my.py:f", "has no function f; known: none"),
        ("import nonsense_that_is_not", "my.py:f", r"cannot be run \(ModuleNotFoundError: .*\); mend the file"),
        ("def f(x) return x", "my.py:f", r"cannot be run \(SyntaxError"),
        ("exit(0)", "my.py:f", r"cannot be run \(SystemExit"),
        ("", "my.py:", "names no function of a file; write my.py:function"),
        ("", "my.py:two words", "names no function of a file"),
    ],
)
def test_a_file_without_the_function_is_refused(tmp_path: Path, text: str | None, reference: str, message: str) -> None:
    if text is not None:
        wrote(tmp_path / "my.py", text)
    with pytest.raises(ConfigError, match=message) as caught:
        study_of({"axes": {"feedforward": ["relu", reference]}}, tmp_path)
    assert "\n" not in str(caught.value)


# --- like --------------------------------------------------------------------------------------------------------

LARGE = {
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
}


def directory(path: Path, model_type: str, **fields: Any) -> str:
    """A directory that holds a config.json alone."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": model_type, **LARGE, **fields}))
    return str(path)


def test_a_proxy_keeps_kinds_and_proportions(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    small = proxy(directory(tmp_path, "llama", rope_theta=5e5, rope_scaling=scaling, tie_word_embeddings=True))
    assert small == TransformerConfig(
        vocabulary=256,
        context=128,
        depth=4,
        d_model=128,
        position=replace(TransformerConfig().position, base=5e5),
        attention=AttentionConfig(heads=4, key_heads=1),
        feedforward=FeedForwardConfig(activation="silu", gated=True, d_ff=448),
        head=HeadConfig(tied=True),
    )
    wide = proxy(tmp_path, depth=2, d_model=256)
    assert (wide.depth, wide.d_ff, wide.attention.heads, wide.attention.key_heads) == (2, 896, 8, 2)


def test_a_proxy_of_gemma_2_keeps_softcaps_windows_and_what_its_scale_means(tmp_path: Path) -> None:
    fields = {"hidden_size": 4608, "head_dim": 128, "num_key_value_heads": 16, "query_pre_attn_scalar": 144}
    small = proxy(directory(tmp_path, "gemma2", **fields, intermediate_size=36_864, sliding_window=4096))
    attention = small.attention
    assert (attention.softcap, small.head.softcap, small.embedding.scale) == (50.0, 30.0, "sqrt")
    assert (small.norm.placement, small.norm.offset, small.feedforward.activation) == ("sandwich", True, "gelu_tanh")
    assert (attention.window, attention.global_every, attention.heads, attention.key_heads) == (64, 2, 4, 2)
    assert small.d_ff / small.d_model == 8
    assert attention.score_scale(small.head_dim) * small.head_dim**0.5 == pytest.approx((128 / 144) ** 0.5)
    Transformer(small)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_model_has_a_proxy_without_its_weights(tmp_path: Path, family: str) -> None:
    path = model_directories.save(family, tmp_path / family, tokenizer=False)
    read = Transformer.from_directory(path).config
    (path / "model.safetensors").unlink()
    small = proxy(path, d_model=read.d_model)
    assert small.feedforward == replace(read.feedforward, d_ff=read.d_ff)
    assert (small.norm, small.head, small.position) == (read.norm, read.head, read.position)


def test_a_model_of_our_own_has_a_proxy(tmp_path: Path) -> None:
    own = TransformerConfig(
        d_model=64, attention=AttentionConfig(scale="dim", sinks=True), head=HeadConfig(z_loss=1e-4)
    )
    Transformer(own).save(tmp_path)
    small = proxy(tmp_path)
    assert (small.attention, small.head) == (own.attention, own.head)


@pytest.mark.parametrize(("heads", "groups"), [(71, 1), (14, 2), (12, 12), (40, 5), (6, 2)])
@pytest.mark.parametrize("d_model", [32, 96, 128])
def test_every_grouping_has_a_proxy_that_can_be_built(tmp_path: Path, heads: int, groups: int, d_model: int) -> None:
    fields = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": 64 * heads}
    small = proxy(directory(tmp_path, "llama", **fields), depth=1, d_model=d_model)
    width = small.attention.heads * small.head_dim
    assert abs(width - d_model) <= small.attention.heads  # of even heads, the nearest
    if d_model == 128 and heads < 64:
        assert small.attention.heads / small.attention.groups == heads / groups
    assert sum(p.numel() for p in Transformer(small).parameters()) == small.parameter_count()


def test_like_is_the_model_of_every_arm_and_its_own_arm_the_baseline(tmp_path: Path) -> None:
    like = directory(tmp_path, "llama")
    study = read_study(["feedforward=relu,swiglu", "d_model=64", "attention.scale=dim"], like=like)
    assert study.baseline == "swiglu"  # LLaMA's
    assert study.model == nested({"attention.scale": "dim"}, proxy(like, d_model=64).to_dict())
    assert config_of(study, study.arms[1]).d_ff == 224
    assert read_study(["feedforward=relu,gelu"], like=like).baseline == "relu"
    assert read_study(["feedforward=relu,swiglu"], like=like, baseline="relu").baseline == "relu"


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("mixtral", {}, "has model_type 'mixtral', and choices are read of llama, .*; write this model's as axes"),
        ("llama", {"hidden_act": "snake"}, "cannot be shrunk: config.json has hidden_act 'snake', which no Transf"),
        ("llama", {"hidden_size": None}, "cannot be shrunk: config.json has "),
        ("gpt2", {"n_embd": 768}, "cannot be shrunk: config.json has no vocab_size|no n_"),
    ],
)
def test_a_model_that_cannot_be_mapped_is_refused(
    tmp_path: Path, model_type: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(["depth=2,4"], like=directory(tmp_path, model_type, **fields))
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no config"):
        read_study(["depth=2,4"], like=str(tmp_path))
    with pytest.raises(ModelError, match="there is no directory 'llama'; give one with the config"):
        read_study(["depth=2,4"], like="llama")


# --- the page ----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
SECTION = PAGE.partition("## Writing a study\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)


def test_what_the_page_shows_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source,) = blocks("python")
    wrote(tmp_path / "my.py", source)
    directory(tmp_path / "path" / "to" / "model", "llama")
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
