"""Families: what transformers computes, our model of the same directory computes, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from family_cases import CASES, IDS, PADDED, made, read_back, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from evenkeel.nn import Transformer
from evenkeel.nn.families import FAMILIES
from evenkeel.nn.families.family import normal
from evenkeel.nn.families.layout import entries, ours_from

Directories = Callable[[str], Path]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return partial(saved, tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case: str, directories: Directories) -> None:
    theirs, ours = made(case), Transformer.from_directory(directories(case))
    expected, found = theirs(IDS).logits, ours(IDS).logits
    assert found is not None and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) / IDS.numel()
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    mapped: dict[str, Tensor] = {}
    for name, entry in entries(FAMILIES[theirs.config.model_type].layout, shapes).items():
        mapped |= ours_from(entry, gradients.pop(name), shapes)
    assert not gradients
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, mapped[name], rtol=0, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str, directories: Directories) -> None:
    theirs, ours = made(case), Transformer.from_directory(directories(case))
    greedy = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    expected = theirs.generate(IDS, attention_mask=torch.ones_like(IDS), **greedy)
    assert ours.generate(IDS, max_new_tokens=9).tolist() == expected.tolist()

    padded = ours.generate(IDS, max_new_tokens=9, attention_mask=PADDED)[:, IDS.shape[1] :].tolist()
    for row, mask, written in zip(IDS, PADDED, padded, strict=True):
        alone = row[mask.bool()][None]
        alone = theirs.generate(alone, attention_mask=torch.ones_like(alone), **greedy)
        assert written == alone[0, -9:].tolist()
    if theirs.config.model_type != "openai-gpt":  # whose generate takes padding for text
        expected = theirs.generate(IDS, attention_mask=PADDED, **greedy)
        assert padded == expected[:, IDS.shape[1] :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_the_same_model_to_transformers(case: str, directories: Directories, tmp_path: Path) -> None:
    theirs, ours = made(case), Transformer.from_directory(directories(case))
    ours.save_directory(tmp_path)
    again = read_back(tmp_path)
    assert type(again) is type(theirs)
    assert [getattr(again.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [
        getattr(theirs.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    ]
    for (name, after), (_, before) in zip(again.state_dict().items(), theirs.state_dict().items(), strict=True):
        unused = 2 if name.endswith("embed_positions.weight") else 0  # rows of OPT that no token takes
        assert torch.equal(after[unused:], before[unused:]), name
    assert torch.equal(again(IDS).logits, theirs(IDS).logits)
    assert normal(Transformer.from_directory(tmp_path).config) == normal(ours.config)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_counted_as_transformers_counts_them(case: str, directories: Directories) -> None:
    theirs, ours = made(case), Transformer.from_directory(directories(case))
    unused = 2 * 32 if theirs.config.model_type == "opt" else 0  # two rows of positions that no token takes
    assert ours.config.parameter_count() == sum(parameter.numel() for parameter in theirs.parameters()) - unused
    assert ours.parameter_count() == ours.config.parameter_count()


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "opt"])
def test_bfloat16_stays_what_it_is(case: str, directories: Directories, tmp_path: Path) -> None:
    source = tmp_path / "source"
    made(case).to(torch.bfloat16).save_pretrained(source)
    model = Transformer.from_directory(source)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_directory(tmp_path / "saved")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "saved" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        unused = 2 if name.endswith("embed_positions.weight") else 0
        assert torch.equal(tensor[unused:].view(torch.int16), after[name][unused:].view(torch.int16)), name
    assert read_back(tmp_path / "saved").dtype == torch.bfloat16
    wide = Transformer.from_directory(source, dtype=torch.float64)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}
    torch.testing.assert_close(wide.embedding.weight.bfloat16(), model.embedding.weight, rtol=0, atol=0)


def test_several_dtypes_become_the_narrowest_that_holds_them_all(directories: Directories, tmp_path: Path) -> None:
    made("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.full((32,), 1 + 2**-20)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = Transformer.from_directory(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_parameter("norm.weight"), tensors["model.norm.weight"])
