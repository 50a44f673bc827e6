"""Where every sequence is: in a row, in the queue, or paused; and the blocks that it holds there.

    queue ──start──► running ──preempt──► queue      blocks given back
                        └──────park─────► paused or queue, parked: its blocks are kept until `strip`

Moves sequences and decides nothing, but for who loses blocks when none is free: the parked, then the newest that runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from inference.engine.blocks import BlockPool
from inference.engine.fair_queue import FairQueue
from inference.engine.running import BY_AGE, RowLimits, Running
from inference.engine.sequence import Sequence
from inference.engine.tables import BlockTables
from inference.engine.tenants import Tenants


class Places:
    """The sequences with rows and those that wait, and one pool of blocks for both."""

    def __init__(self, pool: BlockPool, rows: RowLimits, tenants: Tenants, *, is_prefix_cached: bool) -> None:
        self.tables = BlockTables(pool, is_prefix_cached=is_prefix_cached)
        self.running = Running(rows, tenants)
        self.queue = FairQueue(tenants.weight_of)
        self.parked: list[Sequence] = []
        """Those without a row, paused or in the queue, that hold blocks; oldest first."""
        self.num_preemptions = 0
        """Times that a sequence lost its blocks."""

    def start(self, sequence: Sequence, cached: list[int], now_s: float) -> None:
        """Gives rows and blocks to the sequence whose turn it is; there are enough of both."""
        self.queue.pop(sequence)
        if sequence.blocks:
            self.parked.remove(sequence)
        self.tables.take(sequence, cached)
        if sequence.started_s is None:
            sequence.started_s = now_s
            sequence.cached_tokens = sequence.computed
        self.running.add(sequence)

    def grow(self, sequence: Sequence) -> bool:
        """Gives a decoding sequence its next block; False if it was itself the newest and had to go."""
        while not self.tables.grow(sequence):
            if self.parked:
                self.strip(self.parked[-1])
                continue
            victim = self.running[-1]
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Takes the row and the blocks of a sequence, which goes on at its line's next turn for nothing."""
        self.running.remove(sequence)
        self.tables.release(sequence)
        self.queue.push(sequence, cost=0)
        self.num_preemptions += 1

    def strip(self, sequence: Sequence) -> None:
        """Takes the blocks of a sequence that has no row."""
        self.parked.remove(sequence)
        self.tables.release(sequence)
        self.num_preemptions += 1

    def begin_anew(self, sequence: Sequence) -> None:
        """Takes the blocks of a sequence that has no row and of which its owner knows nothing."""
        if sequence in self.parked:
            self.parked.remove(sequence)
        self.tables.release(sequence)
        sequence.started_s = None

    def park(self, sequence: Sequence) -> None:
        """Takes the row of a running sequence and leaves its blocks until others need them."""
        self.running.remove(sequence)
        self.tables.disappoint(sequence)
        if sequence.blocks:
            bisect.insort(self.parked, sequence, key=BY_AGE)

    def unpark(self, sequence: Sequence) -> None:
        """Gives a parked sequence its row back, with what it holds."""
        self.parked.remove(sequence)
        self.running.add(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Takes the blocks of a sequence that ends and is in no row any more."""
        if sequence in self.parked:
            self.parked.remove(sequence)
        self.tables.release(sequence)

    def check_integrity(self, paused: Iterable[Sequence]) -> None:
        """Asserts that rows, turns and blocks are where they should be."""
        self.running.check_integrity()
        self.queue.check_integrity()
        waiting = [*self.queue, *paused]
        idle = sorted((sequence for sequence in waiting if sequence.blocks), key=BY_AGE)
        assert self.parked == idle, "a sequence without a row has blocks that nobody can take back"
        self.tables.check_integrity([*self.running, *waiting], computing=list(self.running))
