"""What a thread does with memory: loads, stores, atomic additions, and copies that land when they are waited for."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.simulator.machine import SHARED_BASE, Copy, Lanes, Machine
from tests.kernels.cuda.simulator.ptx import SIZES, TYPES, Instruction

SPACES = ("global", "shared", "param", "local", "const")


def _ld(m: Machine, i: Instruction, lanes: Lanes) -> None:
    count, kind, space = _shape(i)
    if space == "param":
        name = re.fullmatch(r"\[([\w$]+)(?:\+0)?\]", i.operands[1])
        if name is None:
            m.fail("a parameter that is not a scalar")
        value = np.asarray(m.parameters[name.group(1)]).reshape(1).view(TYPES[kind])
        m.write(i.operands[0], np.repeat(value, m.count(lanes)), lanes)
        return
    addresses, space = _resolve(m, i.operands[1], space, lanes)
    memory = m.shared if space == "shared" else m.memory
    values = memory.load(addresses, SIZES[kind], count, m.indices(lanes))
    for k, register in enumerate(_list(i.operands[0])):
        m.write(register, np.ascontiguousarray(values[:, k]).view(TYPES[kind]), lanes)


def _st(m: Machine, i: Instruction, lanes: Lanes) -> None:
    _, kind, space = _shape(i)
    values = np.stack([m.read(o, kind, lanes).view(f"u{SIZES[kind]}") for o in _list(i.operands[1])], axis=1)
    addresses, space = _resolve(m, i.operands[0], space, lanes)
    if space == "shared":
        m.shared.store(addresses, values, m.indices(lanes))
    else:
        m.memory.store(addresses, values, SIZES[kind], m.indices(lanes))


def _atom(m: Machine, i: Instruction, lanes: Lanes) -> None:
    target, address, value = (None, *i.operands) if i.base == "red" else i.operands
    if "global" not in i.modifiers or "add" not in i.modifiers or i.type not in ("f32", "u32", "s32"):
        m.fail("an atomic that the simulator does not know")
    old = m.memory.add(m.address(address, lanes), m.read(value, i.type, lanes), m.indices(lanes))
    if target is not None:
        m.write(target, old, lanes)


def _cp(m: Machine, i: Instruction, lanes: Lanes) -> None:
    if i.modifiers[0] != "async":
        m.fail("a copy that the simulator does not know")
    threads = m.indices(lanes)
    if "commit_group" in i.modifiers:
        m.copy_group[threads] += 1
    elif "wait_group" in i.modifiers:
        _wait(m, threads, int(i.operands[0]))
    elif "wait_all" in i.modifiers:
        m.copy_group[threads] += 1
        _wait(m, threads, 0)
    else:
        _begin_copy(m, i, lanes)


def _begin_copy(m: Machine, i: Instruction, lanes: Lanes) -> None:
    threads, num_bytes = m.indices(lanes), int(i.operands[2], 0)
    if num_bytes not in (4, 8, 16) or ("cg" in i.modifiers and num_bytes != 16):
        m.fail(f"cp.async cannot copy {num_bytes} bytes so")
    valid = np.full(len(threads), num_bytes)
    if len(i.operands) > 3:
        valid = m.read(i.operands[3], "u32", lanes).astype(np.int64)
    source = m.address(i.operands[1], lanes)
    if (source % num_bytes).any():
        m.fail(f"cp.async: misaligned {num_bytes}-byte source", int(threads[int(np.argmax(source % num_bytes != 0))]))
    target = m.address(i.operands[0], lanes)
    m.shared.begin_copy(target, num_bytes, threads)
    group = m.copy_group[threads].copy()
    m.copies.append(Copy(threads.copy(), target, source, num_bytes=num_bytes, valid=valid, group=group))


def _wait(m: Machine, threads: np.ndarray, keep: int) -> None:
    """Lands all but the newest `keep` groups of each thread that waits."""
    waits = np.zeros(m.size, bool)
    waits[threads] = True
    left = []
    for copy in m.copies:
        is_due = waits[copy.threads] & (copy.group < m.copy_group[copy.threads] - keep)
        if is_due.any():
            _land(m, copy.select(is_due))
        if not is_due.all():
            left.append(copy.select(~is_due))
    m.copies = left


def _land(m: Machine, copy: Copy) -> None:
    """Bytes past the valid ones are zeros, and nothing is read for them."""
    values = np.zeros((len(copy.threads), copy.num_bytes), np.uint8)
    for valid in np.unique(copy.valid).tolist():
        chosen = copy.valid == valid
        if valid:
            words = m.memory.load(copy.source[chosen], 4, valid // 4, copy.threads[chosen])
            values[chosen, :valid] = np.ascontiguousarray(words).view(np.uint8).reshape(int(chosen.sum()), -1)
    m.shared.land(copy.target, values, copy.threads)


def _shape(i: Instruction) -> tuple[int, str, str]:
    """(elements, their type, the space) of a load or store."""
    count = next((int(word[1:]) for word in i.modifiers if word in ("v2", "v4", "v8")), 1)
    kind = next(word for word in reversed(i.modifiers) if word in TYPES)
    return count, kind, next((word for word in i.modifiers if word in SPACES), "generic")


def _resolve(m: Machine, operand: str, space: str, lanes: Lanes) -> tuple[np.ndarray, str]:
    if space in ("local", "const", "param"):
        m.fail(f".{space} memory is not simulated: a kernel here should not need it")
    addresses = m.address(operand, lanes)
    if space == "generic" and (addresses >= SHARED_BASE).all():
        return addresses - SHARED_BASE, "shared"
    return addresses, space


def _list(operand: str) -> list[str]:
    return [register.strip() for register in operand.strip("{} ").split(",")]


def _fence(m: Machine, i: Instruction, lanes: Lanes) -> None:
    """Orders nothing here: races are judged by barriers alone."""


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction, Lanes], None]] = {
    "ld": _ld,
    "st": _st,
    "atom": _atom,
    "red": _atom,
    "cp": _cp,
    "membar": _fence,
    "fence": _fence,
}
