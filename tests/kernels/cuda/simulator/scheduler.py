"""Runs a kernel: the threads at the lowest instruction go on together until they meet, branch or wait.

So threads reconverge where their paths do. Barriers, shuffles and matrix instructions wait for the threads that they
name; who waits for ever, or at different barriers, is reported.
"""

from __future__ import annotations

import numpy as np

from tests.kernels.cuda.simulator import access, arithmetic, collectives
from tests.kernels.cuda.simulator.machine import EVERY, Lanes, Machine
from tests.kernels.cuda.simulator.memory import WARP, Traffic
from tests.kernels.cuda.simulator.ptx import Instruction

INSTRUCTIONS = {**arithmetic.INSTRUCTIONS, **access.INSTRUCTIONS}

FREE, AT_BLOCK_BARRIER, AT_COLLECTIVE = 0, 1, 2
NOWHERE = 1 << 60


class Scheduler:
    """Where each thread of a machine is and what it waits for."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._code = machine.entry.code
        self._at = np.zeros(machine.size, np.int64)
        self._is_alive = np.ones(machine.size, bool)
        self._waits = np.full(machine.size, FREE, np.int8)

    def run(self) -> Traffic:
        machine = self._machine
        with np.errstate(all="ignore"):
            while self._is_alive.any():
                can_go = self._is_alive & (self._waits == FREE)
                if not can_go.any():
                    self._deadlock()
                first = int(self._at[can_go].min())
                together = can_go & (self._at == first)
                others = can_go & ~together
                stop = int(self._at[others].min()) if others.any() else NOWHERE
                self._advance(first, stop, EVERY if together.all() else np.flatnonzero(together))
        if machine.copies:
            machine.fail("the kernel ended with cp.async copies that no thread waited for")
        machine.memory.finish()
        return machine.traffic

    def _advance(self, at: int, stop: int, lanes: Lanes) -> None:
        """From `at` on, up to where other threads wait to join, or where these part or wait."""
        machine = self._machine
        while at < stop:
            if at >= len(self._code):
                self._exit(machine.indices(lanes))
                return
            instruction = machine.now = self._code[at]
            machine.traffic.instructions += 1
            active, is_active = self._guarded(instruction, lanes)
            if instruction.base == "bra":
                target = machine.entry.labels[instruction.operands[0]]
                self._at[lanes] = target if is_active is None else np.where(is_active, target, at + 1)
                return
            if machine.count(active):
                if instruction.base in ("ret", "exit"):
                    self._at[lanes] = at + 1
                    self._exit(machine.indices(active))
                    return
                if collectives.is_collective(instruction):
                    if machine.count(active) != machine.count(lanes):
                        machine.fail("predicated-off threads at a collective instruction")
                    self._at[lanes] = at
                    self._meet(instruction, at, machine.indices(lanes))
                    return
                if instruction.base not in INSTRUCTIONS:
                    machine.fail("an instruction that the simulator does not know")
                INSTRUCTIONS[instruction.base](machine, instruction, active)
            at += 1
        self._at[lanes] = at

    def _guarded(self, instruction: Instruction, lanes: Lanes) -> tuple[Lanes, np.ndarray | None]:
        if instruction.guard is None:
            return lanes, None
        is_active = self._machine.read(instruction.guard, "pred", lanes) ^ instruction.is_negated
        if is_active.all():
            return lanes, is_active
        return self._machine.indices(lanes)[is_active], is_active

    def _exit(self, threads: np.ndarray) -> None:
        self._is_alive[threads] = False
        self._waits[threads] = FREE
        self._release(np.unique(self._machine.threads.block[threads]))

    def _release(self, blocks: np.ndarray) -> None:
        """Lets go every block whose living threads all wait at a block barrier."""
        machine = self._machine
        is_alive, waits, at = (
            values.reshape(machine.num_blocks, machine.block_size)[blocks]
            for values in (self._is_alive, self._waits, self._at)
        )
        ready = is_alive.any(axis=1) & (~is_alive | (waits == AT_BLOCK_BARRIER)).all(axis=1)
        if not ready.any():
            return
        blocks, is_alive, at = blocks[ready], is_alive[ready], at[ready]
        if not is_alive.all():  # whose writes no barrier orders
            machine.fail("divergent __syncthreads: threads of the block have left before it")
        last, first = np.where(is_alive, at, -1).max(axis=1), np.where(is_alive, at, NOWHERE).min(axis=1)
        if (last != first).any():
            j = int(np.argmax(last != first))
            lines = ", ".join(f"line {self._code[place].line}" for place in (first[j], last[j]))
            machine.fail(f"divergent __syncthreads: threads of block {blocks[j]} wait at different barriers ({lines})")
        numbers = blocks[:, None] * machine.block_size + np.arange(machine.block_size)[None, :]
        freed = numbers[is_alive]
        self._at[freed] += 1
        self._waits[freed] = FREE
        machine.threads.block_epoch[blocks] += 1
        machine.traffic.barriers += len(blocks)

    def _meet(self, instruction: Instruction, at: int, threads: np.ndarray) -> None:
        """Threads arrive at a barrier or a warp's instruction, which is done when all that it names have."""
        machine = self._machine
        if collectives.is_block_barrier(instruction):
            if instruction.operands != ["0"]:
                machine.fail("only bar.sync 0 is known")
            self._waits[threads] = AT_BLOCK_BARRIER
            self._release(np.unique(machine.threads.block[threads]))
            return
        self._waits[threads] = AT_COLLECTIVE
        is_concerned = np.zeros(machine.num_blocks * machine.warps_per_block, bool)
        is_concerned[machine.warp[threads]] = True
        waiting = self._is_alive & (self._waits == AT_COLLECTIVE) & (self._at == at) & is_concerned[machine.warp]
        ready = self._complete(instruction, np.flatnonzero(waiting))
        if len(ready) == 0:
            return
        collectives.COLLECTIVES[instruction.base](machine, instruction, ready)
        self._waits[ready] = FREE
        self._at[ready] = at + 1

    def _complete(self, instruction: Instruction, waiting: np.ndarray) -> np.ndarray:
        """Those of the waiting threads whose warps have everyone that the mask names."""
        machine = self._machine
        mask = collectives.mask(machine, instruction, waiting)
        bit = np.uint32(1) << machine.lane[waiting].astype(np.uint32)
        if not ((mask & bit) != 0).all():
            machine.fail("a thread is not in its own *_sync mask", int(waiting[int(np.argmin((mask & bit) != 0))]))
        warps, start, counts = np.unique(machine.warp[waiting], return_index=True, return_counts=True)
        named = mask[start]
        differs = mask != np.repeat(named, counts)
        if differs.any():
            machine.fail("different *_sync masks meet", int(waiting[int(np.argmax(differs))]))
        present = np.bitwise_or.reduceat(bit, start)
        sizes = np.minimum(WARP, machine.block_size - warps % machine.warps_per_block * WARP)
        whole = ((np.int64(1) << sizes) - 1).astype(np.uint32)
        beyond = (named & ~whole) != 0
        if instruction.base != "bar" and beyond.any():
            machine.fail("*_sync mask names lanes the warp does not have", int(waiting[start[int(np.argmax(beyond))]]))
        is_ready = (present & named & whole) == (named & whole)
        return waiting[np.repeat(is_ready, counts)]

    def _deadlock(self) -> None:
        left = np.flatnonzero(self._is_alive)
        self._machine.now = self._code[self._at[left[0]]]
        places = sorted({f"line {self._code[at].line}: {self._code[at].text}" for at in self._at[left]})
        exited = "" if self._is_alive.all() else " (threads named there have exited)"
        waits = "; ".join(places)[:300]
        self._machine.fail(f"deadlock: {len(left)} threads wait for ever{exited}: {waits};", int(left[0]))
