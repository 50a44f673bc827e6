"""Sixteen floats as one value in compiled code: what numba lacks to say how a loop uses the vector registers.

A `Vector` is an LLVM <16 x float>: one AVX-512 register, or as many narrower ones as the machine needs. The operations
below are all there are on it, each a few instructions. A *tile* is a tuple of vectors that stays in registers. Memory
is named by an address (an int64) turned into a typed pointer: `bf16_at` or `f32_at`. bfloat16 exists in memory only: it
is the upper half of a float32, so a load shifts it up and a store rounds to nearest even.

Knows nothing of tensors. The public names are for use inside numba-compiled functions only.
"""

# ruff: noqa: PLR0917  # compiled code takes vectors and pointers, by position

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

# numba declares itself typed, but these of its modules are not.
_types: Any = types
_cgutils: Any = cgutils

LANES = 16  # floats in 64 bytes: an AVX-512 register, and a cache line

_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_BITS = ir.VectorType(_I32, LANES)
_HALVES = ir.VectorType(_I16, LANES)


class VectorType(types.Type):
    """numba's name for sixteen floats."""

    def __init__(self) -> None:
        super().__init__(name="Vector16xFloat32")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend: Any) -> None:
        super().__init__(manager, frontend, _VECTOR)  # type: ignore[no-untyped-call]  # numba's


def _pointer_to(kind: Any) -> Any:
    return _types.CPointer(kind)


def _tile_of(count: int) -> Any:
    return _types.UniTuple(_VECTOR_KIND, count)


_VECTOR_KIND: Any = VectorType()


def _operation(signature: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A function for compiled code: `signature` maps its arguments' types to numba's signature, the decorated function
    emits its code from a builder and the arguments' LLVM values, and answers with the result, or None.
    """

    def decorate(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            result = emit(builder, *args)
            return context.get_dummy_value() if result is None else result

        def define(_typing: Any, *kinds: Any) -> Any:
            return signature(*kinds), generate

        # numba takes the number of arguments from here: those of emit, whose builder stands for the typing context.
        define.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # a function may have one
        define.__name__, define.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(define)

    return decorate


def _alike(kind: Any, *others: Any) -> Any:
    """The signature of an operation from vectors to a vector."""
    return kind(kind, *others)


# Memory.


@_operation(lambda _: _pointer_to(types.uint16)(types.int64))
def bf16_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to bfloat16."""
    return builder.inttoptr(address, _I16.as_pointer())


@_operation(lambda _: _pointer_to(types.float32)(types.int64))
def f32_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to float32, which can also be indexed."""
    return builder.inttoptr(address, _F32.as_pointer())


@_operation(lambda _: _pointer_to(types.float64)(types.int64))
def f64_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to float64, which can be indexed."""
    return builder.inttoptr(address, _F64.as_pointer())


@_operation(lambda _: _pointer_to(types.int32)(types.int64))
def i32_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to int32, which can be indexed."""
    return builder.inttoptr(address, _I32.as_pointer())


@_operation(lambda _: _pointer_to(types.int64)(types.int64))
def i64_at(builder: Any, address: Any) -> Any:
    """An address as a pointer to int64, which can be indexed."""
    return builder.inttoptr(address, _I64.as_pointer())


@_operation(lambda _: types.int64(types.int64))
def claim(builder: Any, address: Any) -> Any:
    """Takes the next number from the int64 counter that all threads share: its value before one is added."""
    return builder.atomic_rmw("add", builder.inttoptr(address, _I64.as_pointer()), ir.Constant(_I64, 1), "monotonic")


@_operation(lambda pointer, _: _VECTOR_KIND(pointer, types.int64))
def load(builder: Any, pointer: Any, index: Any) -> Any:
    """pointer[index : index + 16]."""
    return _load(builder, pointer, index)


@_operation(lambda pointer, _, vector: types.void(pointer, types.int64, vector))
def store(builder: Any, pointer: Any, index: Any, vector: Any) -> None:
    """pointer[index : index + 16] = vector, rounded to what the memory holds."""
    _store(builder, pointer, index, vector)


@_operation(lambda pointer, _: types.float32(pointer, types.int64))
def load_one(builder: Any, pointer: Any, index: Any) -> Any:
    """pointer[index] as a float32."""
    value = builder.load(builder.gep(pointer, [index]))
    if _is_bf16(pointer):
        return builder.bitcast(builder.shl(builder.zext(value, _I32), _i32(16)), _F32)
    return value


@_operation(lambda pointer, _, __: types.void(pointer, types.int64, types.float32))
def store_one(builder: Any, pointer: Any, index: Any, value: Any) -> None:
    """pointer[index] = value, rounded to what the memory holds."""
    if _is_bf16(pointer):
        bits = builder.extract_element(_nearest(builder, _spread(builder, value)), _i32(0))
        value = builder.trunc(builder.lshr(bits, _i32(16)), _I16)
    builder.store(value, builder.gep(pointer, [index]))


# Arithmetic.


@_operation(lambda _: _VECTOR_KIND(types.float32))
def splat(builder: Any, value: Any) -> Any:
    """One float in all lanes."""
    return _spread(builder, value)


@_operation(_alike)
def add(builder: Any, a: Any, b: Any) -> Any:
    """a + b."""
    return builder.fadd(a, b)


@_operation(_alike)
def multiply(builder: Any, a: Any, b: Any) -> Any:
    """a · b."""
    return builder.fmul(a, b)


@_operation(_alike)
def divide(builder: Any, a: Any, b: Any) -> Any:
    """a / b."""
    return builder.fdiv(a, b)


@_operation(_alike)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    return _fma(builder, a, b, c)


@_operation(_alike)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane."""
    return _call(builder, "llvm.maxnum", a, b)


@_operation(lambda pointer, vector: vector(pointer, vector))
def rounded(builder: Any, pointer: Any, vector: Any) -> Any:
    """The vector as it would come back from memory of the pointer's kind."""
    if not _is_bf16(pointer):
        return vector
    return builder.bitcast(builder.and_(_nearest(builder, vector), _bits(0xFFFF0000)), _VECTOR)


@_operation(_alike)
def exp(builder: Any, x: Any) -> Any:
    """e to the x, to 2 units in the last place; below -87.3 (the least normal result) it is 0.

    2ⁿ · eʳ with n = round(x / ln 2) and the Taylor polynomial of degree 7 in |r| <= ln 2 / 2; ln 2 in two parts keeps
    r exact (Cody and Waite). Above 88.3 the result is that of 88.3: callers subtract the maximum or divide by it.
    """
    is_normal = builder.fcmp_unordered(">=", x, _floats(-87.3))
    clamped = builder.select(builder.fcmp_unordered("<=", x, _floats(88.3)), x, _floats(88.3))
    clamped = builder.select(is_normal, clamped, _floats(-87.3))
    n = _call(builder, "llvm.rint", builder.fmul(clamped, _floats(1.4426950408889634)))
    r = _fma(builder, n, _floats(-0.693359375), clamped)
    r = _fma(builder, n, _floats(2.12194440e-4), r)
    y = _floats(1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = _fma(builder, y, r, _floats(factor))
    exponent = builder.shl(builder.add(builder.fptosi(n, _BITS), _bits(127)), _bits(23))
    y = builder.fmul(y, builder.bitcast(exponent, _VECTOR))
    return builder.select(is_normal, y, _floats(0.0))


@_operation(types.float32)
def first(builder: Any, vector: Any) -> Any:
    """The first lane."""
    return builder.extract_element(vector, _i32(0))


@_operation(types.float32)
def highest(builder: Any, vector: Any) -> Any:
    """The largest lane."""
    return _call(builder, "llvm.vector.reduce.fmax", vector, result=_F32)


@_operation(types.float32)
def total(builder: Any, vector: Any) -> Any:
    """The sum of the lanes, in the fixed order of halving."""
    width = LANES
    while width > 1:
        width //= 2
        low = _shuffle(builder, vector, vector, list(range(width)))
        high = _shuffle(builder, vector, vector, list(range(width, 2 * width)))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, _i32(0))


# Tiles.


@_operation(_tile_of(4))
def zeros_4(builder: Any) -> Any:
    """A tile of 4 zero vectors."""
    return _packed(builder, [_floats(0.0)] * 4)


@_operation(_tile_of(16))
def zeros_16(builder: Any) -> Any:
    """A tile of 16 zero vectors."""
    return _packed(builder, [_floats(0.0)] * 16)


@_operation(lambda pointer, _: _tile_of(4)(pointer, types.int64))
def load_4(builder: Any, pointer: Any, index: Any) -> Any:
    """A tile of pointer[index : index + 64]."""
    return _packed(builder, [_load(builder, pointer, builder.add(index, _i64(LANES * i))) for i in range(4)])


@_operation(lambda pointer, _, tile: types.void(pointer, types.int64, tile))
def store_4(builder: Any, pointer: Any, index: Any, tile: Any) -> None:
    """pointer[index : index + 64] = tile, rounded to what the memory holds."""
    for i, vector in enumerate(_unpacked(builder, tile)):
        _store(builder, pointer, builder.add(index, _i64(LANES * i)), vector)


@_operation(_alike)
def add_4(builder: Any, a: Any, b: Any) -> Any:
    """a[i] + b[i], for each i."""
    pairs = zip(_unpacked(builder, a), _unpacked(builder, b), strict=True)
    return _packed(builder, [builder.fadd(*pair) for pair in pairs])


@_operation(lambda tile, vector: tile(tile, vector))
def scale_4(builder: Any, tile: Any, vector: Any) -> Any:
    """tile[i] · vector, for each i."""
    return _packed(builder, [builder.fmul(part, vector) for part in _unpacked(builder, tile)])


@_operation(lambda tile, vector, pointer, _, __: tile(tile, vector, pointer, types.int64, types.int64))
def fma_rows(builder: Any, tile: Any, vector: Any, pointer: Any, index: Any, stride: Any) -> Any:
    """tile[i] + vector · pointer[index + i · stride : ... + 16], for each i."""
    parts = []
    for i, part in enumerate(_unpacked(builder, tile)):
        place = builder.add(index, builder.mul(stride, _i64(i)))
        parts.append(_fma(builder, vector, _load(builder, pointer, place), part))
    return _packed(builder, parts)


@_operation(_VECTOR_KIND)
def totals(builder: Any, tile: Any) -> Any:
    """The sums of the lanes of 16 vectors, as one vector: lane i is total(tile[i]), to the bit.

    A transposing tree: each level adds the halves of neighbours, 30 shuffles instead of 16 times 4 and as many merges.
    """
    vectors = _unpacked(builder, tile)
    width = LANES  # lanes that are left of each sum
    while width > 1:
        low = [lane for lane in range(2 * LANES) if lane % width < width // 2]
        high = [lane for lane in range(2 * LANES) if lane % width >= width // 2]
        vectors = [
            builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
            for a, b in zip(vectors[0::2], vectors[1::2], strict=True)
        ]
        width //= 2
    return vectors[0]


# What the above are made of.


def _i32(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


def _i64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _bits(value: int) -> ir.Constant:
    return ir.Constant(_BITS, [value] * LANES)


def _floats(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(_F32, value)] * LANES)


def _is_bf16(pointer: Any) -> bool:
    return bool(pointer.type == _I16.as_pointer())


def _call(builder: Any, name: str, *args: Any, result: Any = _VECTOR) -> Any:
    kind = ir.FunctionType(result, [_VECTOR] * len(args))
    return builder.call(_cgutils.get_or_insert_function(builder.module, kind, f"{name}.v16f32"), args)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return _call(builder, "llvm.fma", a, b, c)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), [_i32(i) for i in lanes]))


def _spread(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, value, _i32(0)), undefined, [0] * LANES)


def _nearest(builder: Any, vector: Any) -> Any:
    """The bits of the floats, so that the upper 16 are the nearest even bfloat16; a NaN stays one."""
    bits = builder.bitcast(vector, _BITS)
    is_odd = builder.and_(builder.lshr(bits, _bits(16)), _bits(1))
    nearest = builder.add(bits, builder.add(is_odd, _bits(0x7FFF)))
    return builder.select(builder.fcmp_unordered("uno", vector, vector), _bits(0x7FC00000), nearest)


def _load(builder: Any, pointer: Any, index: Any) -> Any:
    place = builder.gep(pointer, [index])
    if _is_bf16(pointer):
        halves = builder.load(builder.bitcast(place, _HALVES.as_pointer()), align=2)
        return builder.bitcast(builder.shl(builder.zext(halves, _BITS), _bits(16)), _VECTOR)
    return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=4)


def _store(builder: Any, pointer: Any, index: Any, vector: Any) -> None:
    value, align = vector, 4
    if _is_bf16(pointer):
        value, align = builder.trunc(builder.lshr(_nearest(builder, vector), _bits(16)), _HALVES), 2
    builder.store(value, builder.bitcast(builder.gep(pointer, [index]), value.type.as_pointer()), align=align)


def _packed(builder: Any, vectors: list[Any]) -> Any:
    return _cgutils.pack_array(builder, vectors)


def _unpacked(builder: Any, tile: Any) -> list[Any]:
    return [builder.extract_value(tile, i) for i in range(tile.type.count)]
