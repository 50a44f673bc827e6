"""What threads of a warp do together: shuffles, votes, ldmatrix, mma, warp barriers.

Source: the PTX ISA 9.0 manual, "Warp-level matrix instructions" for the fragments; tests hold them to CUTLASS' layouts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.kernels.cuda.simulator import numbers
from tests.kernels.cuda.simulator.machine import SHARED_BASE, Machine
from tests.kernels.cuda.simulator.memory import WARP
from tests.kernels.cuda.simulator.ptx import Instruction

LANE = np.arange(WARP)


def is_block_barrier(instruction: Instruction) -> bool:
    return instruction.base in ("bar", "barrier") and instruction.modifiers[0] != "warp"


def is_collective(instruction: Instruction) -> bool:
    return instruction.base in ("bar", "barrier", "shfl", "vote", "ldmatrix", "mma", "match", "redux")


def mask(machine: Machine, instruction: Instruction, threads: np.ndarray) -> np.ndarray:
    """The lanes that the instruction waits for, as each thread names them."""
    if instruction.base in ("shfl", "vote"):
        return machine.read(instruction.operands[-1], "u32", threads)
    if instruction.base == "bar":
        return machine.read(instruction.operands[0], "u32", threads)
    return np.full(len(threads), 0xFFFFFFFF, np.uint32)


def _warp_barrier(machine: Machine, instruction: Instruction, threads: np.ndarray) -> None:
    """Of the instructions here only this one orders memory."""
    machine.threads.warp_epoch[np.unique(machine.warp[threads])] += 1


def _shuffle(machine: Machine, instruction: Instruction, threads: np.ndarray) -> None:
    mode = instruction.modifiers[1]
    target, _, is_inside = instruction.operands[0].partition("|")
    values = machine.read(instruction.operands[1], "b32", threads)
    by, clamp = (machine.read(instruction.operands[i], "u32", threads).astype(np.int64) for i in (2, 3))
    named = machine.read(instruction.operands[4], "u32", threads)
    lane = machine.lane[threads]
    segment, clamp = (clamp >> 8) & 31, clamp & 31
    last, first = (lane & segment) | (clamp & ~segment), lane & segment
    source = {
        "bfly": lambda: lane ^ by,
        "idx": lambda: first | (by & ~segment & 31),
        "down": lambda: lane + by,
        "up": lambda: lane - by,
    }[mode]()
    inside = source >= last if mode == "up" else source <= last
    source = np.where(inside, source, lane)
    if not ((named >> source.astype(np.uint32)) & 1).all():
        machine.fail("shuffle reads a lane outside its mask", int(threads[0]))
    place = np.full(machine.num_blocks * machine.warps_per_block * WARP, -1, np.int64)
    place[machine.warp[threads] * WARP + lane] = np.arange(len(threads))
    machine.write(target, values[place[machine.warp[threads] * WARP + source]], threads)
    if is_inside:
        machine.write(is_inside, inside, threads)
    machine.traffic.shuffles += len(np.unique(machine.warp[threads]))


def _vote(machine: Machine, instruction: Instruction, threads: np.ndarray) -> None:
    says = machine.read(instruction.operands[1], "pred", threads)
    warps, index = np.unique(machine.warp[threads], return_inverse=True)
    ballots = np.zeros(len(warps), np.uint32)
    np.bitwise_or.at(ballots, index, says.astype(np.uint32) << machine.lane[threads].astype(np.uint32))
    ballot, named = ballots[index], machine.read(instruction.operands[2], "u32", threads)
    result = {"ballot": ballot, "any": ballot != 0, "all": ballot == named}[instruction.modifiers[1]]
    machine.write(instruction.operands[0], result, threads)


def _ldmatrix(machine: Machine, instruction: Instruction, threads: np.ndarray) -> None:
    count = {"x1": 1, "x2": 2, "x4": 4}[instruction.modifiers[3]]
    addresses = machine.address(instruction.operands[1], threads)
    addresses = np.where(addresses >= SHARED_BASE, addresses - SHARED_BASE, addresses)
    _need_whole_warps(machine, threads)
    row_addresses = addresses.reshape(-1, WARP)[:, : 8 * count]
    readers = threads.reshape(-1, WARP)[:, : 8 * count]
    rows = machine.shared.load(row_addresses.ravel(), 2, 8, readers.ravel()).reshape(-1, count, 8, 8)
    if "trans" in instruction.modifiers:
        rows = rows.transpose(0, 1, 3, 2)
    for matrix, register in enumerate(_list(instruction.operands[0])):
        low = rows[:, matrix, LANE // 4, 2 * (LANE % 4)].astype(np.uint32)
        high = rows[:, matrix, LANE // 4, 2 * (LANE % 4) + 1].astype(np.uint32)
        machine.write(register, (low | high << np.uint32(16)).ravel(), threads)


def _mma(machine: Machine, instruction: Instruction, threads: np.ndarray) -> None:
    """D = A · B + C with A 16 x 16, B 16 x 8: products exact, summed in float64, rounded once."""
    shape, kinds = instruction.modifiers[2:5], instruction.modifiers[5:]
    if shape != ["m16n8k16", "row", "col"] or kinds not in (["f32", h, h, "f32"] for h in ("bf16", "f16")):
        machine.fail("an mma that the simulator does not know")
    _need_whole_warps(machine, threads)

    def fragments(operand: str, kind: str) -> list[np.ndarray]:
        return [machine.read(register, kind, threads).reshape(-1, WARP) for register in _list(operand)]

    a_bits, b_bits = (fragments(instruction.operands[i], "b32") for i in (1, 2))
    c_values = fragments(instruction.operands[3], "f32")
    count, group, member = len(threads) // WARP, LANE // 4, LANE % 4
    a, b = np.zeros((count, 16, 16)), np.zeros((count, 16, 8))
    c = np.zeros((count, 16, 8), np.float32)
    for half in range(2):
        for i in range(4):
            values = numbers.half_of(a_bits[i], kinds[1], half)
            a[:, group + 8 * (i & 1), 2 * member + half + 8 * (i >> 1)] = values
        for i in range(2):
            b[:, 2 * member + half + 8 * i, group] = numbers.half_of(b_bits[i], kinds[1], half)
    for i in range(4):
        c[:, group + 8 * (i >> 1), 2 * member + (i & 1)] = c_values[i]
    d = (a @ b + c).astype(np.float32)
    for i, register in enumerate(_list(instruction.operands[0])):
        machine.write(register, d[:, group + 8 * (i >> 1), 2 * member + (i & 1)].ravel(), threads)
    machine.traffic.mma += count


def _need_whole_warps(machine: Machine, threads: np.ndarray) -> None:
    if len(threads) % WARP:
        machine.fail(f"{machine.now.base} needs whole warps", int(threads[0]))


def _list(operand: str) -> list[str]:
    return [register.strip() for register in operand.strip("{} ").split(",")]


COLLECTIVES: dict[str, Callable[[Machine, Instruction, np.ndarray], None]] = {
    "bar": _warp_barrier,
    "shfl": _shuffle,
    "vote": _vote,
    "ldmatrix": _ldmatrix,
    "mma": _mma,
}
