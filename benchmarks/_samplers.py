"""Logits of several shapes, their exact nucleus, and the samplers that are compared on them.

All do the same: temperature 0.8, then the shortest prefix of the most probable tokens that holds 0.9, then one token.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from evenkeel.functional import Sampler, distribution, sample

TEMPERATURE, P = 0.8, 0.9
SAMPLER = Sampler(temperature=TEMPERATURE, top_p=P)
WINDOW = 1024
EVENKEEL, TRANSFORMERS = "evenkeel", "transformers"


def peaked(rows: int, length: int, generator: Generator) -> Tensor:
    """N(0, 1), and one token at 30, which holds all but a millionth."""
    logits = torch.randn(rows, length, generator=generator)
    return logits.scatter_(-1, torch.randint(length, (rows, 1), generator=generator), 30)


def heavy_head(rows: int, length: int, generator: Generator) -> Tensor:
    """As language models have them: most tokens in a bell far below, and Zipf's law at the head.

    N(0, 2²), but in 1,000 random places 16 − 1.5·ln r + N(0, ½²) for the ranks r = 1, ..., 1,000. At temperature 0.8
    the bell of 128,256 tokens holds a quarter of a per cent, and some ten tokens hold 0.9.
    """
    logits = 2 * torch.randn(rows, length, generator=generator)
    ranks = torch.arange(1, min(1000, length) + 1)
    head = 16 - 1.5 * ranks.log() + torch.randn(rows, len(ranks), generator=generator) / 2
    places = torch.rand(rows, length, generator=generator).argsort(-1)[:, : len(ranks)]
    return logits.scatter_(-1, places, head)


SHAPES: dict[str, Callable[[int, int, Generator], Tensor]] = {
    "peaked": peaked,
    "N(0, 3²)": lambda rows, length, generator: 3 * torch.randn(rows, length, generator=generator),
    "heavy": heavy_head,
    "flat": lambda rows, length, generator: 1e-3 * torch.randn(rows, length, generator=generator),
    "equal": lambda rows, length, generator: torch.zeros(rows, length),
}


def made(shape: str, rows: int, length: int) -> Tensor:
    """float32 logits, the same in every run."""
    return SHAPES[shape](rows, length, torch.Generator().manual_seed(length))


def nucleus(logits: Tensor) -> Tensor:
    """Which tokens of each row are in the nucleus, by a float64 sort, equal logits by token number."""
    kept = torch.zeros(logits.shape, dtype=torch.bool)
    for row, scores in zip(kept, logits.double().numpy() / TEMPERATURE, strict=True):
        order = np.argsort(-scores, kind="stable")
        mass = np.cumsum(np.exp(scores[order] - scores.max()), dtype=np.longdouble)
        row[torch.from_numpy(order[: np.searchsorted(mass, P * float(mass[-1])) + 1])] = True
    return kept


@dataclass(frozen=True)
class Contender:
    """A sampler with its logits."""

    sample: Callable[[], Any]
    """A token for each row."""
    kept: Callable[[], Tensor] | None = None
    """Which tokens it can draw, (rows, V); None where only the draws show it."""
    ready: Callable[[], object] = lambda: None
    """What goes before `sample` and is none of its work."""


def evenkeel(logits: Tensor, **options: Any) -> Contender:
    """Ours: with a prepared sampler, or with options."""
    seeds, positions = torch.arange(logits.shape[0]), itertools.count()
    sampler = None if options else SAMPLER

    def kept() -> Tensor:
        """Nothing in a row whose token or count `sample` has otherwise than `distribution`."""
        tokens, support, _ = sample(logits, sampler, seeds=seeds, **options)
        possible = distribution(logits, sampler, **options) > 0
        agreed = possible.gather(-1, tokens.unsqueeze(-1)) & (possible.sum(-1) == support).unsqueeze(-1)
        return possible & agreed

    return Contender(lambda: sample(logits, sampler, seeds=seeds, position=next(positions), **options), kept)


def transformers(logits: Tensor) -> Contender:
    """What `generate` does: two warpers, softmax, multinomial."""
    tokens: Any = torch.zeros(logits.shape[0], 1, dtype=torch.long)
    warpers = TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(P)

    def scores() -> Tensor:
        return warpers[1](tokens, warpers[0](tokens, logits))

    return Contender(lambda: torch.multinomial(scores().softmax(-1), 1), lambda: scores() > -torch.inf)


def window(logits: Tensor) -> Contender:
    """What fast servers do: the k largest logits and all else in them; wrong where more than k tokens matter."""

    def cut() -> tuple[Tensor, Tensor]:
        values, tokens = logits.topk(min(WINDOW, logits.shape[-1]))
        p = (values / TEMPERATURE).softmax(-1)
        return p.masked_fill(p.cumsum(-1) - p >= P, 0), tokens

    def draw() -> Tensor:
        p, tokens = cut()
        return tokens.gather(-1, torch.multinomial(p, 1))

    def kept() -> Tensor:
        p, tokens = cut()
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, tokens, p > 0)

    return Contender(draw, kept)


class TokenData(ctypes.Structure):
    """llama.cpp's llama_token_data_array."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


class ChainParameters(ctypes.Structure):
    """llama.cpp's llama_sampler_chain_params."""

    _fields_ = (("no_perf", ctypes.c_bool),)


def llama_cpp(logits: Tensor) -> Contender | None:
    """llama.cpp's chain, as xllamacpp ships it: temperature, top_p, dist; it fills its array of tokens itself."""
    package = find_spec("xllamacpp")
    if package is None:
        return None
    (path,) = Path(next(iter(package.submodule_search_locations or ()))).glob("*.so")
    library, pointer = ctypes.CDLL(str(path)), ctypes.c_void_p

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = library[f"llama_sampler_{name}"]
        found.restype, found.argtypes = result, arguments
        return found

    chain = function("chain_init", pointer, ChainParameters)(ChainParameters(True))
    add = function("chain_add", None, pointer, pointer)
    add(chain, function("init_temp", pointer, ctypes.c_float)(TEMPERATURE))
    add(chain, function("init_top_p", pointer, ctypes.c_float, ctypes.c_size_t)(P, 1))
    add(chain, function("init_dist", pointer, ctypes.c_uint32)(0))
    apply = function("apply", None, pointer, ctypes.POINTER(TokenData))
    rows, numbers = logits.numpy(), np.arange(logits.shape[-1])
    data = np.zeros(len(numbers), np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))

    def run(row: np.ndarray) -> TokenData:
        data["id"], data["logit"] = numbers, row
        array = TokenData(data.ctypes.data, len(numbers), -1, False)
        apply(chain, ctypes.byref(array))
        return array

    def kept() -> Tensor:
        result = torch.zeros_like(logits, dtype=torch.bool)
        for mask, row in zip(result, rows, strict=True):
            mask[torch.from_numpy(data["id"][: run(row).size].astype(np.int64))] = True
        return result

    return Contender(lambda: [data["id"][run(row).selected] for row in rows], kept)


def onnxruntime_genai(logits: Tensor, top_k: int = 0) -> Contender | None:
    """onnxruntime-genai on logits that it is given; its model is an empty graph that never runs."""
    if find_spec("onnxruntime_genai") is None or find_spec("onnx") is None:
        return None
    genai = import_module("onnxruntime_genai")
    with tempfile.TemporaryDirectory() as directory:
        empty_model(Path(directory), logits)
        model = genai.Model(directory)
    parameters = genai.GeneratorParams(model)
    rows = logits.shape[0]
    parameters.set_search_options(batch_size=rows, max_length=4, min_length=4)  # so that no row ends
    parameters.set_search_options(do_sample=True, temperature=TEMPERATURE, top_p=P, top_k=top_k)
    fresh: list[Any] = []

    def ready() -> None:
        if not fresh:
            fresh.append(genai.Generator(model, parameters))
            fresh[0].set_logits(logits.numpy())

    def draw() -> np.ndarray:
        generator = fresh.pop()
        generator.generate_next_token()
        return generator.get_next_tokens()

    return Contender(draw, ready=ready)


def empty_model(directory: Path, logits: Tensor) -> None:
    """A graph with a language model's inputs and outputs and nothing between them."""
    onnx = import_module("onnx")
    number, real = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT

    def values(kind: int, shape: list[object], *names: str) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(name, kind, shape) for name in names]

    past, present = ([f"{when}.0.{what}" for what in ("key", "value")] for when in ("past", "present"))
    nodes = [onnx.helper.make_node("Identity", [before], [after]) for before, after in zip(past, present, strict=True)]
    nodes.append(onnx.helper.make_node("Cast", ["input_ids"], ["logits"], to=real))
    cache: list[object] = ["batch", 1, "length", 1]
    inputs = values(number, ["batch", "length"], "input_ids", "attention_mask") + values(real, cache, *past)
    outputs = values(real, ["batch", "length"], "logits") + values(real, cache, *present)
    graph = onnx.helper.make_graph(nodes, "empty", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), directory / "model.onnx")
    sizes = "head_size hidden_size num_attention_heads num_key_value_heads num_hidden_layers"
    names = {"past_key_names": "past.%d.key", "past_value_names": "past.%d.value"}
    made = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    decoder = {
        "filename": "model.onnx",
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {"logits": "logits", **made},
        **dict.fromkeys(sizes.split(), 1),
    }
    end = int(logits.amax(0).argmin())  # the end must be some token, and min_length takes it away
    about = {"type": "llama", "vocab_size": logits.shape[-1], "context_length": 4, "eos_token_id": end}
    (directory / "genai_config.json").write_text(
        json.dumps({"model": {**about, "pad_token_id": 0, "decoder": decoder}})
    )


NEEDED = {"onnxruntime-genai": "onnxruntime-genai onnx", "llama.cpp": "xllamacpp"}
"""What pip must install for a way."""

WAYS: dict[str, Callable[[Tensor], Contender | None]] = {
    EVENKEEL: evenkeel,
    "evenkeel, as keywords": lambda logits: evenkeel(logits, temperature=TEMPERATURE, top_p=P),
    f"torch, top {WINDOW}": window,
    "onnxruntime-genai": onnxruntime_genai,
    "onnxruntime-genai, k 50": lambda logits: onnxruntime_genai(logits, 50),
    "llama.cpp": llama_cpp,
    TRANSFORMERS: transformers,
}
