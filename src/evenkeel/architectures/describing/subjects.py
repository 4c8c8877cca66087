"""What is described: a model whose weights have shapes and no values, with inputs for it, from wherever it is named."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from ...directories import OWN_MODEL_TYPE, demo_directory, read_json, without_code
from ...errors import ModelError, UsageError
from ...precision import FORMATS
from ...schema import clean_name, in_one_line
from ..inputs import picture_batches, position_limits, sound_batches, vocabulary_size
from ..loading import Kind, LoadedModel
from .allocation import Sparingly

LENGTH = 23
"""Tokens in the row that a model is shown: few, and no size that a width or a number of heads has."""

_FEWER = 4  # a decoder's row is that much shorter, so that its own keys are told from those of the encoder


@dataclass(frozen=True)
class Subject:
    """A model in eval mode and one batch for it.

    inputs: keyword arguments as a dict, else a tuple. mode: the fake mode its tensors belong to, None where they are
    real. values: what its buffers hold, by the identity of the tensor that stands for them. kind: what it takes,
    "other" for a module whose inputs were given. context: the most tokens its config allows, 0 where it does not say.
    dtype: that the config names, empty where it names none. config: the transformers config it was built from.
    """

    name: str
    model: nn.Module
    inputs: dict[str, Any] | tuple[Any, ...]
    mode: FakeTensorMode | None
    values: dict[int, Tensor]
    kind: Kind | str
    context: int = 0
    dtype: str = ""
    config: Any = None
    notes: tuple[str, ...] = ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """In it, the model can be called; transformers reaches no network and prints nothing."""
        with self.mode or nullcontext(), torch.no_grad(), _quiet(self.model):
            yield


def from_module(model: nn.Module, inputs: Any) -> Subject:
    """A copy of a live model without values, as if on the CPU; the model itself is left alone."""
    model = getattr(model, "_orig_mod", model)  # a compiled model is described as what was compiled
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    try:
        with FakeCopyMode(mode):
            fake = copy.deepcopy(model)
    except Exception as error:  # a module may hold anything, locks and open files too
        raise ModelError(
            f"{type(model).__name__} cannot be copied without its values: {in_one_line(error)}; describe it before it "
            "is wrapped"
        ) from error
    if hasattr(getattr(fake, "config", None), "model_type"):
        from .huggingface import spell_out

        spell_out(fake)
    held = {name: buffer for name, buffer in model.named_buffers() if buffer.device.type != "meta"}
    values = {id(buffer): held[name].detach().cpu() for name, buffer in fake.named_buffers() if name in held}
    for holder in _holders(fake):
        for item in holder.values():
            if isinstance(item, FakeTensor):
                _on_the_cpu(item)
    return _subject(type(model).__name__, fake.eval(), inputs, mode, values)


def from_path(path: str | Path) -> Subject:
    """The model of a directory, of a config.json, or of a model_type that transformers knows, with class defaults."""
    config, notes = read_config(path)
    name = clean_name(str(path))
    if config.get("model_type") == OWN_MODEL_TYPE:
        return replace(from_module(_own(config), None), name=name, notes=notes)
    try:
        subject = from_config(config)
    except ModelError as error:
        if config != {"model_type": path}:
            raise
        raise ModelError(f"there is no directory {name!r}, and as a model_type: {error}") from error
    return replace(subject, name=name, notes=(*notes, *subject.notes))


def around(model: nn.Module, subject: Subject) -> Subject:
    """The same subject with another model, whose tensors have values."""
    return replace(subject, model=model, inputs=_made_up(model)[1], mode=None, values={})


def from_config(data: dict[str, Any]) -> Subject:
    """The model of a config.json that names no code."""
    try:
        import transformers  # noqa: F401 (whether it is there decides what can be said)
    except ImportError as error:
        raise ModelError('Hugging Face configs need transformers: pip install "evenkeel[hf]"') from error
    from .huggingface import build

    model, config, notes = build(data)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    values = _give_device(model, mode)
    named = str(data.get("dtype") or data.get("torch_dtype"))
    dtype = named if named in FORMATS else ""
    made = _subject(type(model).__name__, model.eval(), None, mode, values)
    return replace(made, dtype=dtype, config=config, notes=notes)


def read_config(path: str | Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config without the keys that name code, and notes; raises ModelError where there is none."""
    given = Path(path)
    if str(path) == "demo" and not given.exists():
        given = demo_directory()
        if not given.is_dir():
            raise ModelError("the demo's model is not there yet; run `evenkeel demo` first")
    elif isinstance(path, str) and path.replace("-", "_").isidentifier() and not given.exists():
        return _defaults(path)
    file = given if given.is_file() else given / "config.json"
    if not file.is_file():
        raise ModelError(f"{clean_name(str(path))!r} holds no config.json; give a directory or a file that does")
    config, dropped = without_code(read_json(file))
    notes = (f"dropped from {file.name}, because it names code to run: {', '.join(dropped)}",) if dropped else ()
    return config, notes


def _defaults(model_type: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    note = f"there is no directory {model_type!r}: this is transformers' class default for that model_type"
    return {"model_type": model_type}, (note,)


def _own(config: dict[str, Any]) -> nn.Module:
    from ...nn import Transformer, TransformerConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with Sparingly():
        return Transformer(TransformerConfig.from_dict(fields))


def _subject(
    name: str, model: nn.Module, inputs: Any, mode: FakeTensorMode | None, values: dict[int, Tensor]
) -> Subject:
    if inputs is not None:
        given = {**inputs} if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
        return Subject(name, model, _in_mode(given, mode), mode, values, "other")
    kind, batch, context = _made_up(model)
    return Subject(name, model, _in_mode(batch, mode), mode, values, kind, context)


def _in_mode(inputs: Any, mode: FakeTensorMode | None) -> Any:
    if mode is None:
        return inputs
    return tree_map_only(Tensor, lambda item: _on_the_cpu(mode.from_tensor(item, static_shapes=True)), inputs)


def _on_the_cpu(tensor: FakeTensor) -> FakeTensor:
    """The same tensor; where it has no values its device is but a name, and masks are made again on the CPU."""
    tensor.fake_device = torch.device("cpu")
    return tensor


def _holders(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Wherever modules keep tensors."""
    for module in model.modules():
        yield from cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers, module.__dict__))


def _made_up(model: nn.Module) -> tuple[Kind, dict[str, Any], int]:
    """Inputs as the kind of the model wants them."""
    config = getattr(model, "config", None)
    if config is None:
        raise UsageError(
            f"{type(model).__name__} has no config that tells its inputs; give some: describe(model, inputs=(x,))"
        )
    own = not hasattr(config, "model_type")
    from ..classes import kind_of  # transformers is loaded where the model is one of its own

    kind: Kind = "causal" if own else kind_of(type(model), config)  # pyright: ignore[reportArgumentType]
    loaded = LoadedModel(model, None, kind, config.to_dict())
    if kind == "vision":
        return kind, {name: value[:1] for name, value in picture_batches(loaded)[0].items()}, 0
    if kind == "audio":
        return kind, {name: value[:1] for name, value in sound_batches(loaded)[0].items()}, 0
    limits = [limit for limit in position_limits(loaded) if limit > 0]
    ids = (torch.arange(min([LENGTH, *limits])) + 3) % vocabulary_size(loaded)
    batch: dict[str, Any] = {"input_ids": ids[None]}
    if kind == "encoder_decoder":
        batch["decoder_input_ids"] = ids[None, :-_FEWER]
    if not own:
        batch["use_cache"] = False
    return kind, batch, min(limits, default=0)


def _give_device(model: nn.Module, mode: FakeTensorMode) -> dict[int, Tensor]:
    """Let tensors without values say that they are on the CPU, wherever a module keeps them; returns values of others.

    The values are by the identity of what stands for them in the model from then on.
    """
    known: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            bare = tensor.detach()
            empty = tensor.device.type == "meta"
            made = FakeTensor(mode, bare, torch.device("cpu")) if empty else mode.from_tensor(bare, static_shapes=True)
            made = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
            known[id(tensor)] = made
            if not empty:
                values[id(made)] = bare
        return known[id(tensor)]

    for holder in _holders(model):
        for key, item in list(holder.items()):
            if isinstance(item, Tensor):
                holder[key] = fake(item)
    return values


def _quiet(model: nn.Module) -> Any:
    if not hasattr(getattr(model, "config", None), "model_type"):
        return nullcontext()
    from ..offline import offline_and_quiet

    return offline_and_quiet()
