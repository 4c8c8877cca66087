"""Comparing many elements at once: bits that say which lie between two bounds, and keys that order like floats."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from ._compile import intrinsic

LANES = 32
_BITS, _I32, _I64 = ir.IntType(LANES), ir.IntType(32), ir.IntType(64)
_ELEMENTS = {
    types.uint16: ir.IntType(16),
    types.int16: ir.HalfType(),
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
}


@intrinsic
def between(typing: Any, array: Any, start: Any, low: Any, high: Any) -> Any:
    """Bit j tells whether low < array[start + j] < high, for LANES elements, as an int64; elements as of `widen`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = _loaded(context, builder, array, *values[:2])
        above = builder.fcmp_ordered(">", loaded, _repeated(builder, values[2]))
        below = builder.fcmp_ordered("<", loaded, _repeated(builder, values[3]))
        return builder.zext(builder.bitcast(builder.and_(above, below), _BITS), _I64)

    bound = _wide(array)
    return types.int64(array, types.int64, bound, bound), generate


@intrinsic
def equal(typing: Any, array: Any, start: Any, number: Any) -> Any:
    """Bit j tells whether array[start + j] == number, as `between` does."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = _loaded(context, builder, array, *values[:2])
        same = builder.fcmp_ordered("==", loaded, _repeated(builder, values[2]))
        return builder.zext(builder.bitcast(same, _BITS), _I64)

    return types.int64(array, types.int64, _wide(array)), generate


def _wide(array: Any) -> Any:
    return types.float64 if array.dtype == types.float64 else types.float32


def _loaded(context: Any, builder: Any, array: Any, values: Any, start: Any) -> Any:
    first = builder.gep(context.make_array(array)(context, builder, values).data, [start])
    address = builder.bitcast(first, ir.VectorType(_ELEMENTS[array.dtype], LANES).as_pointer())
    loaded = builder.load(address, align=array.dtype.bitwidth // 8)
    if array.dtype == types.uint16:
        wide = builder.zext(loaded, ir.VectorType(_I32, LANES))
        raised = builder.shl(wide, ir.Constant(ir.VectorType(_I32, LANES), [16] * LANES))
        return builder.bitcast(raised, ir.VectorType(ir.FloatType(), LANES))
    if array.dtype == types.int16:
        return builder.fpext(loaded, ir.VectorType(ir.FloatType(), LANES))
    return loaded


def _repeated(builder: Any, value: Any) -> Any:
    single = builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, _I64(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


@intrinsic
def lowest_bit(typing: Any, bits: Any) -> Any:
    """The place of the lowest set bit of an int64 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def bits_set(typing: Any, bits: Any) -> Any:
    """How many bits of an int64 are set."""
    return types.int64(types.int64), lambda context, builder, signature, values: builder.ctpop(values[0])


@intrinsic
def key_of(typing: Any, x: Any) -> Any:
    """An unsigned integer that orders as float32 or float64 do; 0.0 and -0.0 share one."""
    bits = _I32 if x == types.float32 else _I64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        raw = builder.bitcast(builder.fadd(values[0], ir.Constant(values[0].type, 0.0)), bits)
        negative = builder.ashr(raw, ir.Constant(bits, bits.width - 1))
        return builder.xor(raw, builder.or_(negative, ir.Constant(bits, 1 << (bits.width - 1))))

    return (types.uint32 if x == types.float32 else types.uint64)(x), generate


@intrinsic
def number_of(typing: Any, key: Any) -> Any:
    """The float32 or float64 whose key it is."""
    bits, number = (_I32, ir.FloatType()) if key == types.uint32 else (_I64, ir.DoubleType())

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        top = ir.Constant(bits, 1 << (bits.width - 1))
        negative = builder.ashr(builder.xor(values[0], top), ir.Constant(bits, bits.width - 1))
        return builder.bitcast(builder.xor(values[0], builder.or_(negative, top)), number)

    return (types.float32 if key == types.uint32 else types.float64)(key), generate


@intrinsic
def past(typing: Any, key: Any, other: Any) -> Any:
    """How far a key lies past another, in their own width: negative distances wrap, and are larger than any other."""
    return key(key, key), lambda context, builder, signature, values: builder.sub(*values)


@intrinsic
def moved(typing: Any, key: Any, distance: Any) -> Any:
    """A key so far past another, in their own width."""
    return key(key, key), lambda context, builder, signature, values: builder.add(*values)


@intrinsic
def up_one(typing: Any, key: Any) -> Any:
    """The key after one."""
    return key(key), lambda context, builder, signature, values: builder.add(*values, ir.Constant(values[0].type, 1))


@intrinsic
def midway(typing: Any, low: Any, high: Any) -> Any:
    """The key halfway between two, rounded down."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        half = builder.lshr(builder.sub(values[1], values[0]), ir.Constant(values[0].type, 1))
        return builder.add(values[0], half)

    return low(low, low), generate
