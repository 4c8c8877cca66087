"""Kernels over a range that torch's threads share, without Python between a thread and its work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from torch import Tensor

from ._compile import as_array, intrinsic, kernel
from ._threads import Division, parallel

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_WORK = ir.FunctionType(ir.VoidType(), [_POINTER])
_PARALLEL = ir.FunctionType(ir.VoidType(), [_WORK.as_pointer(), _POINTER, _I32, _I32])
_NEXT, _FAILED, _COUNT = range(3)  # what threads share; count, size and the arguments follow

binding.add_symbol("evenkeel_parallel", ctypes.cast(parallel(), ctypes.c_void_p).value)


class Spread:
    """A kernel (start, stop, ...) for part of a range, called on all of it: spread(division, ...)."""

    def __init__(self, function: Callable[..., None], name: str) -> None:
        function.__qualname__ += f".{name}" if name else ""
        part = numba.njit(function, nogil=True, error_model="numpy")

        def run(length, size, threads, *arguments):
            return _spread_out(part, length, size, threads, arguments)

        run.__module__, run.__qualname__ = function.__module__, f"{function.__qualname__}.run"
        self.compiled = kernel(run)

    def __call__(self, division: Division, *arguments: Any) -> None:
        """Tensors among the arguments go in as arrays."""
        self.on_arrays(division, *[as_array(item) if isinstance(item, Tensor) else item for item in arguments])

    def on_arrays(self, division: Division, *arguments: Any) -> None:
        """The same without a look at the arguments. Kernels raise nothing: one that fails had no memory."""
        if self.compiled(*division, *arguments):
            raise MemoryError("a kernel found no memory to work in; give it fewer rows at a time")


def spread(function: Callable[..., None] | None = None, *, name: str = "") -> Any:
    """A kernel whose first two arguments are a part's start and stop.

    name: what tells closures of one function apart: kernels of one name from two processes would be one to the linker.
    """
    if function is None:
        return lambda function: spread(function, name=name)
    return Spread(function, name)


@intrinsic
def _spread_out(typing: Any, part: Any, count: Any, size: Any, threads: Any, arguments: Any) -> Any:
    """Call part(start, stop, *arguments) until the range is done, on each thread; whether any call failed."""
    inner = part.get_call_type(typing, (types.int64, types.int64, *arguments), {})

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        items = [ir.Constant(_I64, 0), ir.Constant(_I64, 0), *values[1:3]]
        items += cgutils.unpack_tuple(builder, values[4], len(arguments))
        kind = ir.LiteralStructType([item.type for item in items])
        shared = cgutils.alloca_once(builder, kind)
        for place, item in enumerate(items):
            builder.store(item, _at(builder, shared, place))
        compiled = part.dispatcher.get_compile_result(inner)
        context.active_code_library.add_linking_library(compiled.library)

        def call(builder: Any, start: Any, stop: Any, rest: list[Any]) -> Any:
            values = [start, stop, *rest]
            return context.call_internal_no_propagate(builder, compiled.fndesc, inner, values)[0].is_error

        work = _worker(builder, kind, call)
        pointer = builder.bitcast(shared, _POINTER)
        many = builder.icmp_signed(">", values[3], ir.Constant(_I64, 1))
        with builder.if_else(many) as (on_many, on_one):
            with on_many:
                run = cgutils.get_or_insert_function(builder.module, _PARALLEL, "evenkeel_parallel")
                builder.call(run, [work, pointer, builder.trunc(values[3], _I32), ir.Constant(_I32, 0)])
            with on_one:
                builder.call(work, [pointer])
        return builder.load(_at(builder, shared, _FAILED))

    return types.int64(part, types.int64, types.int64, types.int64, arguments), generate


def _worker(builder: Any, kind: Any, call: Callable[..., Any]) -> Any:
    """The function that a thread runs: it takes part after part, as other threads do."""
    work = ir.Function(builder.module, _WORK, f"{builder.function.name}.work")
    work.linkage = "internal"
    inner = ir.IRBuilder(work.append_basic_block("entry"))
    shared = inner.bitcast(work.args[0], kind.as_pointer())
    count, size, *rest = (inner.load(_at(inner, shared, place)) for place in range(_COUNT, len(kind.elements)))
    take, do, done = (work.append_basic_block(name) for name in ("take", "do", "done"))
    inner.branch(take)
    inner.position_at_end(take)
    start = inner.atomic_rmw("add", _at(inner, shared, _NEXT), size, "monotonic")
    inner.cbranch(inner.icmp_signed("<", start, count), do, done)
    inner.position_at_end(do)
    stop = inner.add(start, size)
    failed = call(inner, start, inner.select(inner.icmp_signed("<", stop, count), stop, count), rest)
    inner.atomic_rmw("or", _at(inner, shared, _FAILED), inner.zext(failed, _I64), "monotonic")
    inner.branch(take)
    inner.position_at_end(done)
    inner.ret_void()
    return work


def _at(builder: Any, shared: Any, place: int) -> Any:
    return cgutils.gep_inbounds(builder, shared, 0, place)
