"""Data races: two accesses of the same two bytes, one of them a write, with no barrier between.

One schedule is run, but order is judged by barriers alone, so a race is seen whichever way it happens to go. Knows
threads and barriers by number; memory and instructions are for others.
Source: happens-before as in FastTrack (Flanagan and Freund 2009), with two clocks per thread: block and warp barriers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRANULE = 2  # bytes, the smallest element of our kernels
NOBODY, SEVERAL = -1, -2


@dataclass(slots=True)
class Threads:
    """Where each thread is, and how many barriers its block and its warp have passed."""

    block: np.ndarray
    warp: np.ndarray
    in_block: np.ndarray
    block_epoch: np.ndarray
    warp_epoch: np.ndarray

    def name(self, thread: int) -> str:
        return f"block {int(self.block[thread])} thread {int(self.in_block[thread])}"


class Shadow:
    """For each granule of a memory, who wrote and who read last, and at which barriers."""

    def __init__(self, num_bytes: int, where: str, threads: Threads) -> None:
        count = num_bytes // GRANULE + 1
        self._where, self._threads = where, threads
        self._writer, self._reader = (np.full(count, NOBODY, np.int32) for _ in range(2))
        self._write_block, self._write_warp = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._read_block, self._read_warp = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def access(
        self, offsets: np.ndarray, num_bytes: int, threads: np.ndarray, *, writes: bool
    ) -> tuple[str, int] | None:
        """Notes an access of `num_bytes` at each offset; returns what raced and the thread that did it, or None."""
        count = max(1, num_bytes // GRANULE)
        granules = (offsets[:, None] // GRANULE + np.arange(count)[None, :]).ravel()
        who = np.repeat(threads, count).astype(np.int32)
        at_block = self._threads.block_epoch[self._threads.block[who]]
        at_warp = self._threads.warp_epoch[self._threads.warp[who]]
        raced = self._after_write(granules, who, at_block, at_warp, writes)
        if writes and raced is None:
            raced = self._after_read(granules, who, at_block, at_warp) or self._twice(granules, who)
            self._writer[granules], self._write_block[granules], self._write_warp[granules] = who, at_block, at_warp
        elif raced is None:
            old = self._reader[granules]
            is_alone = (old == who) | (old == NOBODY) | (self._read_block[granules] < at_block)
            self._reader[granules] = np.where(is_alone, who, SEVERAL)
            self._read_block[granules], self._read_warp[granules] = at_block, at_warp
        return raced

    def _after_write(
        self, granules: np.ndarray, who: np.ndarray, at_block: np.ndarray, at_warp: np.ndarray, writes: bool
    ) -> tuple[str, int] | None:
        writer = self._writer[granules]
        is_other = (writer >= 0) & (writer != who)
        if not is_other.any():
            return None
        ordered = self._ordered(writer, self._write_block[granules], self._write_warp[granules], who, at_block, at_warp)
        bad = is_other & ~ordered
        if not bad.any():
            return None
        j, what = int(np.argmax(bad)), "write" if writes else "read"
        by = self._threads.name(int(writer[j]))
        return f"data race on {self._where}: {what} after an unordered write by {by};", int(who[j])

    def _after_read(
        self, granules: np.ndarray, who: np.ndarray, at_block: np.ndarray, at_warp: np.ndarray
    ) -> tuple[str, int] | None:
        reader = self._reader[granules]
        read_block = self._read_block[granules]
        ordered = self._ordered(reader, read_block, self._read_warp[granules], who, at_block, at_warp)
        bad = ((reader >= 0) & (reader != who) & ~ordered) | ((reader == SEVERAL) & (read_block >= at_block))
        if not bad.any():
            return None
        j = int(np.argmax(bad))
        by = "several threads" if reader[j] == SEVERAL else self._threads.name(int(reader[j]))
        return f"data race on {self._where}: write after an unordered read by {by};", int(who[j])

    def _twice(self, granules: np.ndarray, who: np.ndarray) -> tuple[str, int] | None:
        order = np.argsort(granules, kind="stable")
        granules, who = granules[order], who[order]
        is_twice = (granules[1:] == granules[:-1]) & (who[1:] != who[:-1])
        if not is_twice.any():
            return None
        what = f"data race on {self._where}: two threads write the same bytes in one instruction;"
        return what, int(who[1:][int(np.argmax(is_twice))])

    def _ordered(
        self,
        first: np.ndarray,
        first_block: np.ndarray,
        first_warp: np.ndarray,
        then: np.ndarray,
        then_block: np.ndarray,
        then_warp: np.ndarray,
    ) -> np.ndarray:
        """Whether a barrier of the block, or of the warp where both are in it, lies between."""
        threads, first = self._threads, np.maximum(first, 0)
        in_warp = (threads.warp[first] == threads.warp[then]) & (first_warp < then_warp)
        return (threads.block[first] == threads.block[then]) & ((first_block < then_block) | in_warp)
