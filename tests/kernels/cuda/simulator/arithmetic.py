"""What a thread does alone with its registers: moves, arithmetic, comparisons, conversions.

Floats are computed in float64 and rounded once to their type, which is exact for + - * and within half a unit of the
last place for the rest. Flushing of denormals is not simulated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.simulator import numbers
from tests.kernels.cuda.simulator.machine import SHARED_BASE, Lanes, Machine
from tests.kernels.cuda.simulator.ptx import SIZES, TYPES, Instruction

Operation = Callable[..., np.ndarray]

ROUND: dict[str, Operation] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}

COMPARE: dict[str, Operation] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    # The rest also hold when either is not a number.
    "neu": np.not_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
LOGIC: dict[str, Operation] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


def _floats(m: Machine, i: Instruction, lanes: Lanes, operation: Operation) -> None:
    kind = i.type
    inputs = [m.read(operand, kind, lanes) for operand in i.operands[1:]]
    if kind in ("f32", "f64"):
        result = operation(*[values.astype(np.float64) for values in inputs]).astype(TYPES[kind])
    elif kind in ("bf16", "f16"):
        result = numbers.to_bits(operation(*[_wide(numbers.to_values(v, kind)) for v in inputs]), kind)
    else:
        single = kind.removesuffix("x2")
        low, high = (
            numbers.to_bits(operation(*[_wide(numbers.half_of(v, single, half)) for v in inputs]), single)
            for half in (0, 1)
        )
        result = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
    m.write(i.operands[0], result, lanes)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)


def _integers(m: Machine, i: Instruction, lanes: Lanes, operation: Operation) -> None:
    inputs = [m.read(operand, i.type, lanes) for operand in i.operands[1:]]
    m.write(i.operands[0], operation(*inputs).astype(TYPES[i.type]), lanes)


def _either(
    operation: Operation, of_integers: Operation | None = None
) -> Callable[[Machine, Instruction, Lanes], None]:
    def run(m: Machine, i: Instruction, lanes: Lanes) -> None:
        if _is_float(i.type):
            _floats(m, i, lanes, operation)
        else:
            _integers(m, i, lanes, of_integers or operation)

    return run


def _only_integers(operation: Operation) -> Callable[[Machine, Instruction, Lanes], None]:
    return lambda m, i, lanes: _integers(m, i, lanes, operation)


def _mov(m: Machine, i: Instruction, lanes: Lanes) -> None:
    target, source = i.operands
    if source.startswith("{"):
        parts = [part.strip() for part in source.strip("{} ").split(",")]
        width = SIZES[i.type] // len(parts)
        whole = np.zeros(m.count(lanes), f"u{SIZES[i.type]}")
        for k, part in enumerate(parts):
            values = m.read(part, f"b{8 * width}", lanes).astype(whole.dtype)
            whole |= values << np.array(8 * width * k, whole.dtype)
        m.write(target, whole, lanes)
    elif target.startswith("{"):
        parts = [part.strip() for part in target.strip("{} ").split(",")]
        width = SIZES[i.type] // len(parts)
        whole = m.read(source, i.type, lanes).view(f"u{SIZES[i.type]}").copy()
        for k, part in enumerate(parts):
            m.write(part, (whole >> np.array(8 * width * k, whole.dtype)).astype(f"u{width}"), lanes)
    else:
        m.write(target, m.read(source, i.type, lanes), lanes)


def _mul(m: Machine, i: Instruction, lanes: Lanes) -> None:
    if _is_float(i.type):
        _floats(m, i, lanes, np.multiply)
    else:
        m.write(i.operands[0], _product(m, i, lanes), lanes)


def _mad(m: Machine, i: Instruction, lanes: Lanes) -> None:
    product = _product(m, i, lanes)
    kind = i.type[0] + str(8 * product.itemsize)
    m.write(i.operands[0], product + m.read(i.operands[3], kind, lanes), lanes)


def _product(m: Machine, i: Instruction, lanes: Lanes) -> np.ndarray:
    """The low half of a product of integers, its high half, or all of it."""
    a, b = (m.read(operand, i.type, lanes) for operand in i.operands[1:3])
    if i.modifiers[0] not in ("wide", "hi"):
        return a * b
    if a.itemsize == 8:
        high = [(int(p) * int(q)) >> 64 for p, q in zip(a, b, strict=True)]
        return np.array(high, object).astype(a.dtype)
    double = f"{a.dtype.kind}{2 * a.itemsize}"
    whole = a.astype(double) * b.astype(double)
    return whole if i.modifiers[0] == "wide" else (whole >> np.array(8 * a.itemsize, double)).astype(a.dtype)


def _div(m: Machine, i: Instruction, lanes: Lanes) -> None:
    if _is_float(i.type):
        _floats(m, i, lanes, np.divide)
        return
    a, b = (m.read(operand, i.type, lanes).astype(np.int64) for operand in i.operands[1:3])
    if (b == 0).any():
        m.fail("integer division by zero")
    m.write(i.operands[0], (abs(a) // abs(b) * np.sign(a) * np.sign(b)).astype(TYPES[i.type]), lanes)


def _shift(operation: Operation) -> Callable[[Machine, Instruction, Lanes], None]:
    def run(m: Machine, i: Instruction, lanes: Lanes) -> None:
        a = m.read(i.operands[1], i.type, lanes)
        by, width = m.read(i.operands[2], "u32", lanes).astype(np.int64), 8 * a.itemsize
        shifted = operation(a, np.minimum(by, width - 1).astype(a.dtype))
        keeps_sign = i.base == "shr" and i.type[0] == "s"
        beyond = a >> np.array(width - 1, a.dtype) if keeps_sign else np.zeros_like(a)
        m.write(i.operands[0], np.where(by >= width, beyond, shifted), lanes)

    return run


def _selp(m: Machine, i: Instruction, lanes: Lanes) -> None:
    a, b = (m.read(operand, i.type, lanes) for operand in i.operands[1:3])
    m.write(i.operands[0], np.where(m.read(i.operands[3], "pred", lanes), a, b), lanes)


def _popc(m: Machine, i: Instruction, lanes: Lanes) -> None:
    m.write(i.operands[0], np.bitwise_count(m.read(i.operands[1], i.type, lanes)).astype(np.uint32), lanes)


def _prmt(m: Machine, i: Instruction, lanes: Lanes) -> None:
    low, high, selector = (m.read(operand, "b32", lanes).astype(np.uint64) for operand in i.operands[1:4])
    both, result = low | high << np.uint64(32), np.zeros_like(low)
    for k in range(4):
        byte = (selector >> np.uint64(4 * k)) & np.uint64(7)
        result |= ((both >> (byte * np.uint64(8))) & np.uint64(0xFF)) << np.uint64(8 * k)
    m.write(i.operands[0], result.astype(np.uint32), lanes)


def _bfi(m: Machine, i: Instruction, lanes: Lanes) -> None:
    """The low bits of a, as many as the last operand says, put into b from a position on."""
    a, b = (m.read(operand, "b32", lanes).astype(np.uint64) for operand in i.operands[1:3])
    position, length = (
        m.read(operand, "u32", lanes).astype(np.uint64) & np.uint64(0xFF) for operand in i.operands[3:5]
    )
    position, length = np.minimum(position, 32), np.minimum(length, 32)
    field = ((np.uint64(1) << length) - np.uint64(1)) << position
    m.write(i.operands[0], ((b & ~field) | ((a << position) & field)).astype(np.uint32), lanes)


def _setp(m: Machine, i: Instruction, lanes: Lanes) -> None:
    a, b = (m.read(operand, i.type, lanes) for operand in i.operands[1:3])
    if i.type in ("bf16", "f16"):
        a, b = numbers.to_values(a, i.type), numbers.to_values(b, i.type)
    result = COMPARE[i.modifiers[0]](a, b)
    for word in i.modifiers[1:-1]:
        if word in LOGIC:
            result = LOGIC[word](result, m.read(i.operands[3], "pred", lanes))
    target, _, opposite = i.operands[0].partition("|")
    m.write(target, result, lanes)
    if opposite:
        m.write(opposite, ~result, lanes)


def _cvt(m: Machine, i: Instruction, lanes: Lanes) -> None:
    kinds = [word for word in i.modifiers if word in TYPES]
    to, source = kinds[0], kinds[-1]
    if to in ("bf16x2", "f16x2"):
        single = to.removesuffix("x2")
        high, low = (numbers.to_bits(m.read(o, source, lanes), single).astype(np.uint32) for o in i.operands[1:3])
        m.write(i.operands[0], low | high << np.uint32(16), lanes)
        return
    values = m.read(i.operands[1], source, lanes)
    if source in ("bf16", "f16"):
        values = numbers.to_values(values, source)
    rounding = next((ROUND[word] for word in i.modifiers if word in ROUND), None)
    if to in ("bf16", "f16"):
        result = numbers.to_bits(values.astype(np.float32), to)
    elif values.dtype.kind == "f" and not _is_float(to):
        bounds = np.iinfo(TYPES[to])
        whole = (rounding or np.trunc)(values.astype(np.float64))
        result = np.clip(np.nan_to_num(whole, nan=0.0), bounds.min, bounds.max).astype(TYPES[to])
    else:
        result = (rounding(values) if rounding else values).astype(TYPES[to])
    m.write(i.operands[0], result, lanes)


def _cvta(m: Machine, i: Instruction, lanes: Lanes) -> None:
    values = m.read(i.operands[1], i.type, lanes)
    if "shared" in i.modifiers:
        base = np.array(SHARED_BASE, values.dtype)
        values = values - base if "to" in i.modifiers else values + base
    m.write(i.operands[0], values, lanes)


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction, Lanes], None]] = {
    "mov": _mov,
    "add": _either(np.add),
    "sub": _either(np.subtract),
    "min": _either(np.fmin, np.minimum),
    "max": _either(np.fmax, np.maximum),
    "neg": _either(np.negative),
    "abs": _either(np.abs),
    "fma": _either(lambda a, b, c: a * b + c),
    "mul": _mul,
    "mad": _mad,
    "div": _div,
    "rem": _only_integers(np.fmod),
    "rcp": _either(lambda a: 1 / a),
    "sqrt": _either(np.sqrt),
    "rsqrt": _either(lambda a: 1 / np.sqrt(a)),
    "ex2": _either(np.exp2),
    "lg2": _either(np.log2),
    "and": _only_integers(np.bitwise_and),
    "or": _only_integers(np.bitwise_or),
    "xor": _only_integers(np.bitwise_xor),
    "not": _only_integers(np.invert),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "selp": _selp,
    "popc": _popc,
    "prmt": _prmt,
    "bfi": _bfi,
    "setp": _setp,
    "cvt": _cvt,
    "cvta": _cvta,
}
