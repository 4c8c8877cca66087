"""A model directory before its weights are loaded: its config as data, and the names and shapes of its weights."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelError
from ..precision import FORMATS
from ..schema import clean_name
from .configuration import quantisation, read_json, without_code

OWN_MODEL_TYPE = "evenkeel"

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
_TOKENIZER_DATA = (*_VOCABULARIES, "merges.txt", "added_tokens.json", "special_tokens_map.json")
_SAFETENSORS_FORMATS = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint: its safetensors dtype (`F32`, `BF16`, ...) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Directory:
    """What a model directory says before anything of it runs.

    config, tokenizer_config: without the keys that name code. files: names of the weight files, sorted.
    """

    path: Path
    config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    files: tuple[str, ...]
    weights: Mapping[str, Weight]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path as messages show it."""
        return named(self.path)

    @property
    def own(self) -> bool:
        """Whether this is a model of evenkeel's own."""
        return self.config.get("model_type") == OWN_MODEL_TYPE

    @property
    def dtype(self) -> str:
        """The format that the model comes in: the config's, else that of most weights."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        if named in FORMATS:
            return named
        elements: Counter[str] = Counter()
        for weight in self.weights.values():
            elements[_SAFETENSORS_FORMATS.get(weight.dtype, "float32")] += weight.elements
        return elements.most_common(1)[0][0]

    @property
    def has_tokenizer(self) -> bool:
        return any(True for pattern in _VOCABULARIES for _ in self.path.glob(pattern))


def cache_directory() -> Path:
    """Where things are kept between runs: `$EVENKEEL_CACHE`, else `evenkeel` in the user's cache."""
    own = os.environ.get("EVENKEEL_CACHE")
    if own:
        return Path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "evenkeel"


def demo_directory() -> Path:
    """Where the demo's healthy model is kept."""
    return cache_directory() / "demo"


def open_directory(directory: str | Path) -> Directory:
    """Read what a model directory holds: config.json and the headers of its safetensors files, nothing else.

    `demo` means the demo's healthy model, unless there is a directory of that name here. Raises ModelError where
    something is missing, damaged, or in a form that cannot be read safely.
    """
    path = _existing(directory)
    if not (path / CONFIG_FILE).is_file():
        raise ModelError(f"{named(path)} holds no config.json; {_remedy_without_config(path)}")
    config, notes = _settings(path / CONFIG_FILE)
    tokenizer_config, more = _settings(path / _TOKENIZER_CONFIG) if (path / _TOKENIZER_CONFIG).is_file() else ({}, ())
    method = quantisation(config)
    if method is not None:
        raise ModelError(
            f"{named(path)} holds quantised weights ({method}); give the directory of the model before quantisation"
        )
    files = _weight_files(path)
    weights: dict[str, Weight] = {}
    for name in files:
        weights |= _header(path / name)
    if not weights:
        raise ModelError(f"{named(path)} holds no weights: {', '.join(files)} is empty; copy the file anew")
    return Directory(path, config, tokenizer_config, files, weights, (*notes, *more))


@contextmanager
def data_only(directory: Directory) -> Iterator[Path]:
    """A directory that shows the weights and the tokenizer's data, and hides code, pickles and adapters.

    What is in it is all that an outside loader gets to see: links to vetted files, and config files without the keys
    that name code.
    """
    with TemporaryDirectory(prefix="evenkeel-") as name:
        staged = Path(name)
        for file in directory.files:
            (staged / file).symlink_to((directory.path / file).resolve())
        if directory.files != (WEIGHTS_FILE,):
            (staged / INDEX_FILE).symlink_to((directory.path / INDEX_FILE).resolve())
        for pattern in _TOKENIZER_DATA:
            for source in directory.path.glob(pattern):
                (staged / source.name).symlink_to(source.resolve())
        for file, settings in ((CONFIG_FILE, directory.config), (_TOKENIZER_CONFIG, directory.tokenizer_config)):
            (staged / file).write_text(json.dumps(settings), encoding="utf-8")
        yield staged


def _settings(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config file without the keys that name code, and a note that lists them if there were any."""
    kept, dropped = without_code(read_json(path))
    if not dropped:
        return kept, ()
    return kept, (f"dropped from {path.name}, because it names code to run: {', '.join(dropped)}",)


def _existing(directory: str | Path) -> Path:
    if str(directory) == "demo" and not Path("demo").is_dir():
        path = demo_directory()
        if not path.is_dir():
            raise ModelError("the demo's model is not there yet; run `evenkeel demo` first")
        return path
    path = Path(directory)
    try:
        found, is_directory = path.exists(), path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        found, is_directory = False, False
    if not found:
        raise ModelError(f"there is no directory {named(path)}; give a directory with config.json and safetensors")
    if not is_directory:
        raise ModelError(f"{named(path)} is a file; give the directory that holds config.json and the weights")
    return path


def named(path: Path) -> str:
    """A path as messages show it."""
    return repr(clean_name(str(path)))


def _remedy_without_config(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "it is an adapter: merge it into its base model (`merge_and_unload`) and save that"
    return "give the directory of a Hugging Face model"


def _weight_files(path: Path) -> tuple[str, ...]:
    if (path / WEIGHTS_FILE).is_file():
        return (WEIGHTS_FILE,)
    if (path / INDEX_FILE).is_file():
        return _sharded(path)
    others = sorted(item.name for pattern in _OTHER_WEIGHTS for item in path.glob(pattern))
    if others:
        raise ModelError(
            f"{named(path)} holds weights only as {clean_name(others[0])}, which can run code when it is read; load "
            "them where you trust them and save with `save_pretrained`, which writes safetensors"
        )
    raise ModelError(f"{named(path)} holds no weights; it needs {WEIGHTS_FILE} or {INDEX_FILE} with its shards")


def _sharded(path: Path) -> tuple[str, ...]:
    weight_map = read_json(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX_FILE} in {named(path)} has no weight_map; copy the file anew")
    names = {name if isinstance(name, str) else repr(name) for name in weight_map.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{INDEX_FILE} names the shard {clean_name(name)!r}, which is no safetensors file beside it"
            )
        if not (path / name).is_file():
            raise ModelError(f"{named(path)} lacks the shard {clean_name(name)} that {INDEX_FILE} names; copy it there")
    return tuple(sorted(names))


def _header(path: Path) -> dict[str, Weight]:
    """Names, dtypes and shapes; the safetensors library checks that the file is as long as its header says."""
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: Weight(item.get_dtype(), tuple(item.get_shape())) for name, item in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{named(path)} is damaged or cut short: {error}; copy the file anew") from error
