"""What every CPU kernel is made with: compilation on first call, the disk cache, and the bit work that numba lacks.

A kernel is generic in the format it reads and writes: bfloat16 comes as uint16, float16 as int16, and `widen` and
`narrow` go by these types, so that one kernel is compiled once per format. Arithmetic is float32 or float64.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import extending, types
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_CARRIERS = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}

CACHE_DIRECTORY = "EVENKEEL_CACHE_DIR"

_KEPT_SECONDS = 30 * 24 * 3600


def inline(function: Callable[..., Any] | None = None, *, flags: Collection[str] = ()) -> Any:
    """A scalar function that is always inlined into the kernels that call it; `flags` are LLVM's fast-math flags."""
    if function is None:
        return lambda function: inline(function, flags=flags)
    return numba.njit(function, forceinline=True, error_model="numpy", fastmath=set(flags))


def woven(function: Callable[..., Any]) -> Any:
    """A function that numba writes into its callers before it compiles them: for what mostly calls others.

    Code that is linked is optimised again at each level of calls, so that levels cost seconds.
    """
    return numba.njit(function, inline="always")


def part(function: Callable[..., Any]) -> Any:
    """A function that kernels call and share: for what is long. Its first words are out_of_line()."""
    return numba.njit(function, forceinline=False, fastmath=set(), nogil=True, error_model="numpy")


def kernel(function: Callable[..., Any]) -> Any:
    """A function over arrays that runs without the interpreter's lock, compiled once per argument types.

    Its qualified name tells it apart in the cache, and, once loaded, to the linker. Only what lies in this folder is
    cached: the cache's name depends on no other sources.
    """
    dispatcher: Any = numba.njit(function, nogil=True, error_model="numpy")
    if function.__module__.startswith(__name__.rpartition(".")[0]):
        dispatcher._cache = _DiskCache(f"{function.__module__}.{function.__qualname__}")
    return dispatcher


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a CPU tensor as an array; bfloat16 as uint16, float16 as int16."""
    carrier = _CARRIERS.get(tensor.dtype)
    if tensor.requires_grad:
        tensor = tensor.detach()
    return (tensor if carrier is None else tensor.view(carrier)).numpy()


def cache_directory() -> Path | None:
    """Where compiled kernels are kept, or None where no such place can be written.

    EVENKEEL_CACHE_DIR, else the user's cache directory.
    """
    root = Path(os.environ.get(CACHE_DIRECTORY) or _user_cache())
    path = root / f"kernels-{_stamp()}"
    if not root.is_absolute():
        return None  # a user without a home
    try:
        if not path.exists():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_old(path)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return None


def _forget_old(new: Path) -> None:
    """Remove what other versions left behind that nothing has been added to for a month."""
    for path in new.parent.glob("kernels-*"):
        if path != new and path.stat().st_mtime < new.stat().st_mtime - _KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _user_cache() -> str:
    if sys.platform == "win32":
        return os.path.join(os.environ.get("LOCALAPPDATA", os.path.expanduser("~")), "evenkeel")
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Caches/evenkeel")
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "evenkeel")


@cache
def _stamp() -> str:
    """A hash of all that compiled code depends on: every kernel's source (one inlines another), and the compilers."""
    digest = hashlib.sha256(repr((sys.version, numba.__version__, llvmlite.__version__)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _DiskCache(_Cache):
    """One file per kernel, argument types and processor; a file that cannot be read or written is a miss.

    numba's own cache sees changes in the kernel's file only, loses entries when two processes write at once, and raises
    where nothing can be written.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._prefix = name.rpartition("kernels.")[2]
        self._enabled = True

    @property
    def cache_path(self) -> Any:
        return str(cache_directory() or "")

    def _file(self, signature: object, codegen: Any) -> Path | None:
        directory = cache_directory()
        if directory is None or not self._enabled:
            return None
        key = repr((self._name, str(signature), codegen.magic_tuple()))
        return directory / f"{self._prefix}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def load_overload(self, sig: object, target_context: Any) -> Any:
        target_context.refresh()
        path = self._file(sig, target_context.codegen())
        try:
            return path and CompileResult._rebuild(target_context, *pickle.loads(path.read_bytes()))
        except Exception:  # no file, half a file, another program's file: compile again
            return None

    def save_overload(self, sig: object, data: Any) -> None:
        path = self._file(sig, data.codegen)
        if path is None:
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_bytes(dumps(data._reduce()))
            os.replace(partial, path)
        except Exception:  # a full disk, say: this process has its kernel all the same
            partial.unlink(missing_ok=True)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        directory = cache_directory()
        for path in directory.glob(f"{self._prefix}-*") if directory else ():
            path.unlink(missing_ok=True)


def intrinsic(function: Callable[..., Any]) -> Any:
    """numba's, in no type: it is called without the typing context that it is written with."""
    return extending.intrinsic(function)


@intrinsic
def in_256_bits(typing: Any) -> Any:
    """Ask for vectors of 256 bits at most in the function that calls it, where LLVM would choose 512."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="256"')  # llvmlite's own add knows fewer names
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def out_of_line(typing: Any) -> Any:
    """Keep the function that calls it out of those that call that: copies of long loops take long to compile."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c with one rounding."""
    return a(a, a, a), lambda context, builder, signature, values: builder.fma(*values)


@intrinsic
def add_exponent(typing: Any, x: Any, t: Any) -> Any:
    """x·2^k for the integer k in the lowest bits of t = 1.5·2^23 + k (float32) or 1.5·2^52 + k (float64)."""
    bits, mantissa, number = (_I32, 23, _FLOAT) if x == types.float32 else (_I64, 52, _DOUBLE)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        raised = builder.shl(builder.bitcast(values[1], bits), ir.Constant(bits, mantissa))
        return builder.bitcast(builder.add(builder.bitcast(values[0], bits), raised), number)

    return x(x, x), generate


@intrinsic
def magnitude(typing: Any, x: Any) -> Any:
    """|x|, by clearing the sign."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.fabs", [values[0].type])
        return builder.call(function, values)

    return x(x), generate


@intrinsic
def with_sign(typing: Any, x: Any, sign: Any) -> Any:
    """|x| with the sign of the other."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = builder.module.declare_intrinsic("llvm.copysign", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, values)

    return x(x, x), generate


@inline
def memory(address, count, kind):
    """An array of so many elements at an address; kind: NumPy's type of one."""
    return numba.carray(_pointer(address, kind), count)  # pyright: ignore[reportPrivateImportUsage]


@intrinsic
def _pointer(typing: Any, address: Any, kind: Any) -> Any:

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(address, kind), generate


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two, NaN if either is: a form of it that vectorises."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = values[0].type
        function = builder.module.declare_intrinsic("llvm.maximum", [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, values, fastmath=("nsz",))

    return x(x, x), generate


@intrinsic
def widen(typing: Any, x: Any) -> Any:
    """float32 from an array's element: uint16 holds a bfloat16, int16 a float16; float32 and float64 as they are."""
    if x in (types.float32, types.float64):
        return x(x), lambda context, builder, signature, values: values[0]

    def from_bfloat16(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        upper = builder.shl(builder.zext(values[0], _I32), ir.Constant(_I32, 16))
        return builder.bitcast(upper, _FLOAT)

    def from_float16(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], _HALF), _FLOAT)

    return types.float32(x), from_bfloat16 if x == types.uint16 else from_float16


@intrinsic
def rounded_as(typing: Any, x: Any, array: Any) -> Any:
    """A float64 as what `widen` makes of the array's elements: float64, or rounded to float32."""
    if array.dtype == types.float64:
        return x(x, array), lambda context, builder, signature, values: values[0]
    return types.float32(x, array), lambda context, builder, signature, values: builder.fptrunc(values[0], _FLOAT)


@intrinsic
def narrow(typing: Any, x: Any, array: Any) -> Any:
    """A float32 or float64 as an element of `array`, rounded to nearest, ties to even.

    float64 goes to a 16-bit format by way of float32, which costs at most 2^-13 of its ulp.
    """
    target = array.dtype

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = values[0]
        if x == types.float64:
            value = builder.fptrunc(value, _FLOAT)
        if target == types.uint16:
            return _to_bfloat16(builder, value)
        return builder.bitcast(builder.fptrunc(value, _HALF), _I16) if target == types.int16 else value

    return target(x, array), generate


def _to_bfloat16(builder: Any, value: Any) -> Any:
    """Adds half of the last kept bit, and 1 less where that bit is 0; a NaN stays one, made quiet."""

    def constant(number: int) -> Any:
        return ir.Constant(_I32, number)

    bits = builder.bitcast(value, _I32)
    last = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(last, constant(0x7FFF)))
    quiet = builder.or_(bits, constant(0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
    return builder.trunc(builder.lshr(kept, constant(16)), _I16)
