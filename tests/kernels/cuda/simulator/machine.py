"""The state of one launch: every thread of every block as a lane of numpy vectors, its registers and its memories.

Knows how operands are read and written; what instructions do, and in which order, is for others. `lanes` is the threads
at an instruction: all of them as a slice, or their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from tests.kernels.cuda.simulator.memory import WARP, Buffer, GlobalMemory, SharedMemory, Traffic
from tests.kernels.cuda.simulator.ptx import SIZES, TYPES, Entry, Instruction, PtxError
from tests.kernels.cuda.simulator.races import Threads

Lanes = slice | np.ndarray
EVERY = slice(None)

SHARED_BASE = (1 << 56) + 0x5A000000  # of generic addresses; its low half is not 0, so a truncated one is seen


class Machine:
    """One launch of one kernel; `now` is the instruction being executed."""

    def __init__(
        self,
        entry: Entry,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: dict[str, np.generic],
        buffers: Sequence[Buffer],
        dynamic_shared_bytes: int,
    ) -> None:
        self.entry, self.parameters = entry, parameters
        self.block_size, self.num_blocks = int(np.prod(block)), int(np.prod(grid))
        self.warps_per_block = -(-self.block_size // WARP)
        self.size = self.block_size * self.num_blocks
        number = np.arange(self.size)
        in_block, block_number = number % self.block_size, number // self.block_size
        self.warp = block_number * self.warps_per_block + in_block // WARP
        self.lane = in_block % WARP
        self.threads = Threads(
            block=block_number,
            warp=self.warp,
            in_block=in_block,
            block_epoch=np.zeros(self.num_blocks, np.int64),
            warp_epoch=np.zeros(self.num_blocks * self.warps_per_block, np.int64),
        )
        self.traffic = Traffic()
        self.now: Instruction = entry.code[0]
        shared = entry.static_shared_bytes
        if entry.has_dynamic_shared:
            shared = -(-shared // 16) * 16 + dynamic_shared_bytes
        self.shared = SharedMemory(shared, self.num_blocks, self.threads, self.traffic, self.fail)
        self.memory = GlobalMemory(buffers, self.threads, self.traffic, self.fail)
        self.copies: list[Copy] = []
        self.copy_group = np.zeros(self.size, np.int64)
        self._special = _special_registers(in_block, block_number, grid, block)
        self._registers = _garbage(entry, self.size)

    def indices(self, lanes: Lanes) -> np.ndarray:
        return np.arange(self.size) if isinstance(lanes, slice) else lanes

    def count(self, lanes: Lanes) -> int:
        return self.size if isinstance(lanes, slice) else len(lanes)

    def fail(self, message: str, thread: int | None = None) -> NoReturn:
        where = "" if thread is None else f" {self.threads.name(thread)}"
        raise PtxError(f"{self.entry.name}: {message}{where} (source line {self.now.line}: {self.now.text})")

    def read(self, operand: str, kind: str, lanes: Lanes) -> np.ndarray:
        """An operand's values, in numpy's type for `kind`."""
        wanted = np.dtype(TYPES[kind])
        if operand in self._registers:
            values = self._registers[operand][lanes]
            if values.dtype == wanted:
                return values
            if values.itemsize == wanted.itemsize:
                return values.view(wanted)
            if values.itemsize > wanted.itemsize:
                return values.view(f"u{values.itemsize}").astype(f"u{wanted.itemsize}").view(wanted)
            self.fail(f"operand {operand} is narrower than .{kind}")
        if operand in self._special:
            values = self._special[operand][lanes]
            return values if values.dtype == wanted else values.astype(f"u{wanted.itemsize}").view(wanted)
        return self._constant(operand, wanted, self.count(lanes))

    def write(self, register: str, values: np.ndarray, lanes: Lanes) -> None:
        if register == "_":
            return
        target = self._registers[register]
        if values.dtype != target.dtype:
            if values.itemsize == target.itemsize:
                values = np.ascontiguousarray(values).view(target.dtype)
            elif values.itemsize > target.itemsize:
                self.fail(f"the result is wider than {register}")
            elif values.dtype.kind == "f":
                self.fail(f"a float of another width than {register}")
            else:
                signed = "i" if values.dtype.kind == "i" else "u"
                values = values.astype(f"{signed}{target.itemsize}").view(target.dtype)
        target[lanes] = values

    def address(self, operand: str, lanes: Lanes) -> np.ndarray:
        """`[base + offset]`, where the base is a register of either width or a shared array."""
        match = re.fullmatch(r"\[\s*([%\w$@]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        assert match is not None, operand
        base, offset = match.group(1), int(match.group(2) or "0", 0)
        is_narrow = base in self.entry.shared or self.entry.registers.get(base) in ("b32", "u32", "s32")
        return self.read(base, "u32" if is_narrow else "u64", lanes).astype(np.int64) + offset

    def _constant(self, operand: str, wanted: np.dtype[np.generic], count: int) -> np.ndarray:
        if operand.startswith("0f"):
            return np.full(count, np.uint32(int(operand[2:], 16)).view(np.float32)).view(wanted)
        if operand.startswith("0d"):
            return np.full(count, np.uint64(int(operand[2:], 16)).view(np.float64)).view(wanted)
        known = {"WARP_SZ": WARP, **self.entry.shared}
        try:
            value = known[operand] if operand in known else int(operand.rstrip("U"), 0)
        except ValueError:
            self.fail(f"unknown operand {operand}")
        if wanted.kind in "fb":
            return np.full(count, value, wanted)
        return np.full(count, value & ((1 << (8 * wanted.itemsize)) - 1), f"u{wanted.itemsize}").view(wanted)


class Copy:
    """A cp.async under way: for each thread where to, where from, how many bytes are valid, and its group."""

    __slots__ = ("group", "num_bytes", "source", "target", "threads", "valid")

    def __init__(
        self,
        threads: np.ndarray,
        target: np.ndarray,
        source: np.ndarray,
        *,
        num_bytes: int,
        valid: np.ndarray,
        group: np.ndarray,
    ) -> None:
        self.threads, self.target, self.source = threads, target, source
        self.num_bytes, self.valid, self.group = num_bytes, valid, group

    def select(self, chosen: np.ndarray) -> Copy:
        return Copy(
            self.threads[chosen],
            self.target[chosen],
            self.source[chosen],
            num_bytes=self.num_bytes,
            valid=self.valid[chosen],
            group=self.group[chosen],
        )


def _special_registers(
    in_block: np.ndarray, block_number: np.ndarray, grid: tuple[int, int, int], block: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    special = {"%laneid": in_block % WARP, "%warpid": in_block // WARP}
    for prefix, number, extent in (("", in_block, block), ("cta", block_number, grid)):
        special[f"%{prefix or 't'}id.x"] = number % extent[0]
        special[f"%{prefix or 't'}id.y"] = number // extent[0] % extent[1]
        special[f"%{prefix or 't'}id.z"] = number // (extent[0] * extent[1])
        for axis, size in zip("xyz", extent, strict=True):
            special[f"%n{prefix or 't'}id.{axis}"] = np.full(len(in_block), size)
    return {name: values.astype(np.uint32) for name, values in special.items()}


def _garbage(entry: Entry, size: int) -> dict[str, np.ndarray]:
    """Registers before they are written: anything, as on a GPU."""
    widest = 8
    noise = np.random.default_rng(0).integers(0, 256, size * widest, dtype=np.uint8)
    registers = {}
    for name, kind in entry.registers.items():
        if kind == "pred":
            registers[name] = np.zeros(size, np.bool_)
        else:
            width = SIZES[kind]
            dtype = TYPES[kind] if kind in ("f32", "f64") else f"u{width}"
            registers[name] = noise[: size * width].view(dtype).copy()
    return registers
