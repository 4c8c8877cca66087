"""The callback for Hugging Face's Trainer, always in a real Trainer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import evenkeel as ek
from evenkeel.errors import UsageError
from evenkeel.integrations.transformers import WatchCallback

VOCABULARY, LENGTH, SAMPLES = 32, 8, 4


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


class Plain(nn.Module):
    """Not of transformers' making: its loss is a mean, whatever is accumulated, and dropout draws random numbers."""

    def __init__(self, shape: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.hidden = nn.Linear(16, 16)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, VOCABULARY)
        self.shape = shape

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.head(self.dropout(self.act(self.hidden(self.embed(input_ids)))))
        return self.shape(nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits)


def as_dict(loss: Tensor, logits: Tensor) -> dict[str, Tensor]:
    return {"loss": loss, "logits": logits}


def as_tuple(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    return loss, logits


def samples() -> list[dict[str, Tensor]]:
    ids = torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(
    model: nn.Module, directory: Path, callbacks: list[TrainerCallback] | None = None, **changes: Any
) -> Trainer:
    """Two micro-batches of two samples are one step, and a pass over the data; the clipping bites in every step."""
    settings: dict[str, Any] = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.01,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(output_dir=str(directory / "trainer"), **{**settings, **changes})
    dataset: Any = samples()
    return Trainer(model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)


def hooks_on(model: nn.Module) -> list[str]:
    """Where hooks of any kind are, by module path or parameter name."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [name for name, module in model.named_modules() for kind in kinds for _ in getattr(module, kind)]
    return found + [name for name, item in model.named_parameters() if item._post_accumulate_grad_hooks]


class Observer(TrainerCallback):
    """Notes at the end of every micro-batch but the last what hangs on the model while a step runs."""

    def __init__(self) -> None:
        self.hooks: list[list[str]] = []
        self.modes: list[int] = []

    def on_substep_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        self.hooks.append(hooks_on(model))
        self.modes.append(len(_get_current_function_mode_stack()))


def log_of(run: Trainer, key: str) -> list[float]:
    return [entry[key] for entry in run.state.log_history if key in entry]


def test_gradients_are_read_before_clipping_over_all_micro_batches(tmp_path: Path) -> None:
    oracle = llama().double()
    batch = {key: torch.stack([item[key] for item in samples()]) for key in ("input_ids", "labels")}
    oracle(**batch).loss.backward()

    callback = WatchCallback(every=2)
    trainer(llama(), tmp_path, [callback]).train()

    measured = {
        reading.site.removesuffix(":parameter.parameter"): reading.values[0]
        for reading in callback.diagnosis.readings
        if reading.step == 0 and reading.stat == "gradient_rms" and reading.site.endswith(":parameter.parameter")
    }
    expected = {
        name: item.grad.square().mean().sqrt().item()
        for name, item in oracle.named_parameters()
        if item.grad is not None
    }
    assert measured == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", [llama, lambda: Plain(as_dict)], ids=["shares", "means"])
def test_every_step_is_logged_as_the_trainer_itself_reports_it(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    run = trainer(make(), tmp_path, [WatchCallback(every=2, record=path)])
    run.train()

    record = ek.Record.open(path)
    entries = record.log_entries()
    assert [entry.step for entry in entries] == [0, 1, 2, 3, 4]
    assert [entry.measured for entry in entries] == [True, False, True, False, True]
    assert {reading.step for reading in record.readings()} == {0, 2, 4}
    assert [entry.loss for entry in entries] == pytest.approx(log_of(run, "loss"), rel=1e-5)
    norms = log_of(run, "grad_norm")
    assert min(norms) > 0.1  # far above the clipping at 0.01
    assert [entry.gradient_norm for entry in entries] == pytest.approx(norms, rel=1e-5)
    assert all(entry.batch for entry in entries)


def test_a_loss_that_the_model_does_not_name_is_taken_from_the_trainers_log(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    run = trainer(Plain(as_tuple), tmp_path, [WatchCallback(every=2, record=path)], logging_steps=2, max_steps=4)
    run.train()
    entries = ek.Record.open(path).log_entries()
    assert [entry.step for entry in entries] == [1, 3]
    assert [entry.loss for entry in entries] == pytest.approx(log_of(run, "loss"), rel=1e-6)
    assert [entry.gradient_norm for entry in entries] == pytest.approx(log_of(run, "grad_norm"), rel=1e-6)


@pytest.mark.parametrize("make", [llama, lambda: Plain(as_dict)], ids=["llama", "dropout"])
def test_training_is_the_same_bit_for_bit(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    alone, watched = make(), make()
    trainer(alone, tmp_path).train()
    trainer(watched, tmp_path, [WatchCallback(every=1)]).train()
    expected = alone.state_dict()
    assert watched.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in watched.state_dict().items())


def test_a_step_that_is_not_due_has_one_hook_and_none_is_left(tmp_path: Path) -> None:
    model, observer = llama(), Observer()
    trainer(model, tmp_path, [WatchCallback(every=3), observer]).train()
    assert [len(hooks) > 1 for hooks in observer.hooks] == [True, False, False, True, False]
    assert [hooks for hooks in observer.hooks if len(hooks) == 1] == [[""], [""], [""]]  # "": the outermost module
    assert [bool(modes) for modes in observer.modes] == [True, False, False, True, False]
    assert hooks_on(model) == []
    assert _get_current_function_mode_stack() == []


def test_frozen_weights_under_lora_are_not_sick(tmp_path: Path) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    callback = WatchCallback(every=2)
    trainer(peft.get_peft_model(llama(), settings), tmp_path, [callback]).train()
    diagnosis = callback.diagnosis
    trained = {site.path for site in diagnosis.sites if site.kind == "parameter"}
    assert len(trained) == 2 * 2 * 2  # two layers, two projections, A and B
    assert all("lora_" in path for path in trained)
    updates = {item.site.rsplit(":", 1)[0] for item in diagnosis.readings if item.stat == "update_ratio"}
    assert updates == trained
    assert [item for item in diagnosis.findings if item.code.startswith("GRD")] == []


def test_evaluation_between_steps_is_not_logged(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    run = trainer(llama(), tmp_path, [WatchCallback(every=1, record=path)], eval_strategy="steps", eval_steps=1)
    run.train()
    assert len(log_of(run, "eval_loss")) == 5
    entries = ek.Record.open(path).log_entries()
    assert [entry.loss for entry in entries] == pytest.approx(log_of(run, "loss"), rel=1e-5)


def test_a_second_run_continues_the_record(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    run = trainer(llama(), tmp_path, [WatchCallback(every=2, record=path)], max_steps=2)
    run.train()
    run.train()
    assert [entry.step for entry in ek.Record.open(path).log_entries()] == [0, 1, 2, 3]


class Failing(TrainerCallback):
    """Stops the second step in its middle, as an exception in the model would."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise RuntimeError("planted")


@pytest.mark.parametrize("every", [1, 10])
def test_close_takes_everything_off_after_an_exception(every: int, tmp_path: Path) -> None:
    model, callback = llama(), WatchCallback(every=every)
    with pytest.raises(RuntimeError, match="planted"):
        trainer(model, tmp_path, [callback, Failing()]).train()
    callback.close()
    assert hooks_on(model) == []
    assert _get_current_function_mode_stack() == []
    assert {reading.step for reading in callback.diagnosis.readings} == {0}


def test_a_later_run_after_an_exception_starts_clean(tmp_path: Path) -> None:
    model, callback = llama(), WatchCallback(every=1)
    with pytest.raises(RuntimeError, match="planted"):
        trainer(model, tmp_path, [callback, Failing()]).train()
    trainer(model, tmp_path, [callback], max_steps=2).train()
    assert hooks_on(model) == []
    assert {reading.step for reading in callback.diagnosis.readings} == {0, 1}


def test_copies_of_a_model_are_refused(tmp_path: Path) -> None:
    run = trainer(llama(), tmp_path)
    run.args._n_gpu = 2
    with pytest.raises(UsageError, match="2 devices"):
        WatchCallback().on_train_begin(run.args, run.state, run.control, model=llama())


def test_a_diagnosis_needs_a_run() -> None:
    with pytest.raises(UsageError, match="train"):
        _ = WatchCallback().diagnosis


def test_transformers_is_loaded_when_it_is_used() -> None:
    code = (
        "import sys, evenkeel as ek; ek.integrations; assert 'transformers' not in sys.modules; "
        "print(ek.integrations.transformers.WatchCallback.__name__); assert 'transformers' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "WatchCallback\n", "")
