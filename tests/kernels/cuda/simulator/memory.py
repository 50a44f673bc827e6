"""Global and shared memory as kernels see them: every access is checked, done and counted.

Refused: outside every buffer, misaligned, shared memory that nothing has written, data races. Knows addresses and
threads; knows no instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from tests.kernels.cuda.simulator.races import Shadow, Threads

SECTOR = 32  # bytes, what DRAM and L2 move at once
WARP = 32
NUM_BANKS, BANK_BYTES = 32, 4

Fail = Callable[[str, int], NoReturn]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes of the host that a kernel may touch, at their own address."""

    name: str
    address: int
    data: np.ndarray

    @property
    def end(self) -> int:
        return self.address + self.data.size


@dataclass(slots=True)
class Traffic:
    """What a launch moved. Sectors are counted per warp and instruction; touched bytes once per launch and buffer."""

    instructions: int = 0
    barriers: int = 0
    mma: int = 0
    shuffles: int = 0
    global_requests: int = 0
    global_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    sectors_read: dict[str, int] = field(default_factory=dict)
    bytes_read: dict[str, int] = field(default_factory=dict)
    bytes_written: dict[str, int] = field(default_factory=dict)


class GlobalMemory:
    """The buffers of one launch. Those that overlap, as views of one tensor may, become one."""

    def __init__(self, buffers: Sequence[Buffer], threads: Threads, traffic: Traffic, fail: Fail) -> None:
        self._buffers = _merge(buffers)
        self._starts = np.array([buffer.address for buffer in self._buffers], np.int64)
        self._threads, self._traffic, self._fail = threads, traffic, fail
        self._shadows: dict[int, Shadow] = {}
        self._reads: list[tuple[int, np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._touched = [np.zeros((2, b.data.size // SECTOR + 2), bool) for b in self._buffers]

    def load(self, addresses: np.ndarray, size: int, count: int, threads: np.ndarray) -> np.ndarray:
        """`count` elements of `size` bytes for each thread: unsigned [threads, count]."""
        out = np.zeros((len(threads), count), f"u{size}")
        num_bytes = size * count
        for index, chosen, offsets in self._find(addresses, num_bytes, threads, "read"):
            who = threads[chosen]
            at = offsets[:, None] + np.arange(num_bytes)[None, :]
            out[chosen] = self._buffers[index].data[at].view(f"u{size}")
            self._touch(index, offsets, num_bytes, is_write=0)
            self._count(index, addresses[chosen], who, is_read=True)
            if index in self._shadows:
                self._check(self._shadows[index].access(offsets, num_bytes, who, writes=False))
            else:
                epochs = self._threads.block_epoch[self._threads.block[who]].copy()
                warps = self._threads.warp_epoch[self._threads.warp[who]].copy()
                self._reads.append((index, offsets, num_bytes, who, epochs, warps))
        return out

    def store(self, addresses: np.ndarray, values: np.ndarray, size: int, threads: np.ndarray) -> None:
        num_bytes = size * values.shape[1]
        for index, chosen, offsets in self._find(addresses, num_bytes, threads, "write"):
            who = threads[chosen]
            self._check(self._shadow(index).access(offsets, num_bytes, who, writes=True))
            at = offsets[:, None] + np.arange(num_bytes)[None, :]
            self._buffers[index].data[at] = np.ascontiguousarray(values[chosen]).view(np.uint8).reshape(len(who), -1)
            self._touch(index, offsets, num_bytes, is_write=1)
            self._count(index, addresses[chosen], who, is_read=False)

    def add(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Atomic addition of one 4-byte element for each thread, in order of threads; returns what was there."""
        old = np.zeros_like(values)
        for index, chosen, offsets in self._find(addresses, values.itemsize, threads, "write"):
            data = self._buffers[index].data
            for j, offset in zip(np.flatnonzero(chosen), offsets, strict=True):
                cell = data[offset : offset + values.itemsize].view(values.dtype)
                old[j] = cell[0]
                cell[0] += values[j]
            self._touch(index, offsets, values.itemsize, is_write=1)
            self._count(index, addresses[chosen], threads[chosen], is_read=False)
        return old

    def finish(self) -> None:
        """Fills in what was touched, buffer by buffer."""
        for buffer, touched in zip(self._buffers, self._touched, strict=True):
            self._traffic.bytes_read[buffer.name] = int(touched[0].sum()) * SECTOR
            self._traffic.bytes_written[buffer.name] = int(touched[1].sum()) * SECTOR

    def _find(
        self, addresses: np.ndarray, num_bytes: int, threads: np.ndarray, what: str
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(buffer, which of the threads, their offsets in it) for each buffer that an access meets."""
        is_odd = addresses % num_bytes != 0
        if is_odd.any():
            j = int(np.argmax(is_odd))
            self._fail(f"misaligned {num_bytes}-byte {what} at {int(addresses[j]):#x}", int(threads[j]))
        places = np.searchsorted(self._starts, addresses, side="right") - 1
        for index in np.unique(places).tolist():
            chosen = places == index
            buffer = self._buffers[max(index, 0)]
            bad = chosen & ((addresses < buffer.address) | (addresses + num_bytes > buffer.end))
            if bad.any():
                j = int(np.argmax(bad))
                offset = int(addresses[j]) - buffer.address
                size = f"{buffer.name}, which has {buffer.data.size} bytes"
                self._fail(
                    f"{what} of {num_bytes} bytes outside every buffer (offset {offset} of {size})", int(threads[j])
                )
            yield index, chosen, addresses[chosen] - buffer.address

    def _shadow(self, index: int) -> Shadow:
        """The shadow of a buffer, kept from its first write on; it is told of the reads before."""
        if index not in self._shadows:
            buffer = self._buffers[index]
            shadow = self._shadows[index] = Shadow(buffer.data.size, f"global {buffer.name}", self._threads)
            now = self._threads.block_epoch, self._threads.warp_epoch
            for at, offsets, num_bytes, who, blocks, warps in self._reads:
                if at == index:
                    self._threads.block_epoch, self._threads.warp_epoch = now[0].copy(), now[1].copy()
                    self._threads.block_epoch[self._threads.block[who]] = blocks
                    self._threads.warp_epoch[self._threads.warp[who]] = warps
                    shadow.access(offsets, num_bytes, who, writes=False)
            self._threads.block_epoch, self._threads.warp_epoch = now
            self._reads = [read for read in self._reads if read[0] != index]
        return self._shadows[index]

    def _check(self, raced: tuple[str, int] | None) -> None:
        if raced is not None:
            self._fail(*raced)

    def _touch(self, index: int, offsets: np.ndarray, num_bytes: int, *, is_write: int) -> None:
        first = offsets + self._buffers[index].address % SECTOR
        self._touched[index][is_write, first // SECTOR] = True
        self._touched[index][is_write, (first + num_bytes - 1) // SECTOR] = True

    def _count(self, index: int, addresses: np.ndarray, threads: np.ndarray, *, is_read: bool) -> None:
        warps = self._threads.warp[threads]
        sectors = len(np.unique((warps << 44) ^ (addresses // SECTOR & ((1 << 44) - 1))))
        self._traffic.global_requests += len(np.unique(warps))
        self._traffic.global_sectors += sectors
        if is_read:
            name = self._buffers[index].name
            self._traffic.sectors_read[name] = self._traffic.sectors_read.get(name, 0) + sectors


class SharedMemory:
    """All blocks' shared memory, one after the other, with which bytes were written and which copies are under way."""

    def __init__(self, bytes_per_block: int, num_blocks: int, threads: Threads, traffic: Traffic, fail: Fail) -> None:
        self._limit = bytes_per_block
        self._stride = max(16, -(-bytes_per_block // 16) * 16)
        self._threads, self._traffic, self._fail = threads, traffic, fail
        self._data = np.full(num_blocks * self._stride, 0xFF, np.uint8)
        self._is_written = np.zeros(self._data.size, bool)
        self._shadow = Shadow(self._data.size, "shared memory", threads)

    def load(self, addresses: np.ndarray, size: int, count: int, threads: np.ndarray) -> np.ndarray:
        """`count` elements of `size` bytes for each thread: unsigned [threads, count]."""
        num_bytes = size * count
        offsets = self._offsets(addresses, num_bytes, threads, "read")
        at = offsets[:, None] + np.arange(num_bytes)[None, :]
        is_written = self._is_written[at].all(axis=1)
        if not is_written.all():
            j = int(np.argmin(is_written))
            where = f"shared memory at {int(addresses[j])}"
            self._fail(f"read of {where} that nothing has written (or a cp.async not waited for)", int(threads[j]))
        self._check(self._shadow.access(offsets, num_bytes, threads, writes=False))
        self._count(addresses, num_bytes, threads)
        return self._data[at].view(f"u{size}")

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        num_bytes = values.itemsize * values.shape[1]
        offsets = self._offsets(addresses, num_bytes, threads, "write")
        self._check(self._shadow.access(offsets, num_bytes, threads, writes=True))
        self._count(addresses, num_bytes, threads)
        self._fill(offsets, values, num_bytes)

    def begin_copy(self, addresses: np.ndarray, num_bytes: int, threads: np.ndarray) -> None:
        """A cp.async starts: until it lands, the bytes count as unwritten."""
        offsets = self._offsets(addresses, num_bytes, threads, "write")
        self._is_written[offsets[:, None] + np.arange(num_bytes)[None, :]] = False
        self._check(self._shadow.access(offsets, num_bytes, threads, writes=True))

    def land(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """The bytes of a cp.async arrive, as the thread that started it sees by its wait."""
        num_bytes = values.shape[1]
        offsets = self._offsets(addresses, num_bytes, threads, "write")
        self._check(self._shadow.access(offsets, num_bytes, threads, writes=True))
        self._fill(offsets, values, num_bytes)

    def _fill(self, offsets: np.ndarray, values: np.ndarray, num_bytes: int) -> None:
        at = offsets[:, None] + np.arange(num_bytes)[None, :]
        self._data[at] = np.ascontiguousarray(values).view(np.uint8).reshape(len(offsets), -1)
        self._is_written[at] = True

    def _offsets(self, addresses: np.ndarray, num_bytes: int, threads: np.ndarray, what: str) -> np.ndarray:
        bad = (addresses < 0) | (addresses + num_bytes > self._limit)
        if bad.any():
            j = int(np.argmax(bad))
            where = f"{int(addresses[j])}..{int(addresses[j]) + num_bytes}"
            self._fail(f"shared memory {what} at {where} outside the block's {self._limit} bytes", int(threads[j]))
        is_odd = addresses % num_bytes != 0
        if is_odd.any():
            j = int(np.argmax(is_odd))
            self._fail(f"misaligned {num_bytes}-byte shared {what} at {int(addresses[j])}", int(threads[j]))
        return self._threads.block[threads] * self._stride + addresses

    def _check(self, raced: tuple[str, int] | None) -> None:
        if raced is not None:
            self._fail(*raced)

    def _count(self, addresses: np.ndarray, num_bytes: int, threads: np.ndarray) -> None:
        """Wavefronts: how often the fullest bank is asked for another word, per warp and 128 bytes of it."""
        warps = self._threads.warp[threads]
        phases = warps * 8 + self._threads.in_block[threads] % WARP * max(num_bytes, BANK_BYTES) // (
            NUM_BANKS * BANK_BYTES
        )
        words = addresses // BANK_BYTES
        asked = np.unique(((phases * NUM_BANKS + words % NUM_BANKS) << 30) + words // NUM_BANKS) >> 30
        banks, counts = np.unique(asked, return_counts=True)
        per_phase = banks // NUM_BANKS
        heads = np.flatnonzero(np.r_[True, per_phase[1:] != per_phase[:-1]])
        self._traffic.shared_requests += len(np.unique(warps))
        self._traffic.shared_wavefronts += int(np.maximum.reduceat(counts, heads).sum())


def _merge(buffers: Sequence[Buffer]) -> list[Buffer]:
    merged: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (b.address, b.end)):
        if not merged or buffer.address >= merged[-1].end:
            merged.append(buffer)
            continue
        last = merged.pop()
        if buffer.end <= last.end:
            data = last.data
        else:  # two views of one allocation: numpy gives the bytes between their ends back as one array
            data = np.lib.stride_tricks.as_strided(last.data, (buffer.end - last.address,), (1,))
        merged.append(Buffer(f"{last.name}+{buffer.name}", last.address, data))
    return merged
