"""The blocks of each sequence: which it finds, takes, shares, copies and gives back. Knows no rows and no turns.

    cached ──► take ──► (publish, grow)* ──► release        of one sequence
                 └──► fork: full blocks shared, the open one too until somebody writes to it

A block that is being computed for one sequence is worth waiting for: another that begins with the same tokens would
compute it a second time.
"""

from __future__ import annotations

from collections.abc import Iterable

from inference.engine.blocks import BlockPool
from inference.engine.prefixes import BlockKey
from inference.engine.sequence import Sequence


class BlockTables:
    """Gives sequences their blocks out of one pool. `is_prefix_cached`: whether one may begin with another's."""

    def __init__(self, pool: BlockPool, *, is_prefix_cached: bool) -> None:
        self.pool = pool
        self.is_prefix_cached = is_prefix_cached
        self._computing: dict[BlockKey, Sequence] = {}  # what will be published soon, and by whom

    def cached(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence without any; never its last token, whose logits are wanted, and
        none at all if those of its whole prompt are."""
        if sequence.blocks or _scores_prompt(sequence):
            return []
        return self.pool.find(self._keys(sequence, self._num_findable(sequence)))

    def awaits(self, sequence: Sequence, cached: list[int]) -> bool:
        """Whether the block after the cached ones is being computed for another sequence."""
        if sequence.blocks or not self.is_prefix_cached or _scores_prompt(sequence):
            return False
        count = self._num_findable(sequence)
        return len(cached) < count and self._keys(sequence, count)[len(cached)] in self._computing

    def missing(self, sequence: Sequence, cached: list[int]) -> int:
        """Blocks that all its known tokens need beside those that it has and the cached ones."""
        return self.pool.needed_for(len(sequence.tokens)) - len(sequence.blocks) - len(cached)

    def take(self, sequence: Sequence, cached: list[int]) -> None:
        """Gives it the cached blocks and the missing ones; the caller has seen that they are free."""
        if cached:
            self.pool.share(cached)
            sequence.blocks = list(cached)
            sequence.computed = len(cached) * self.pool.block_size
        sequence.blocks += self.pool.allocate(self.missing(sequence, []))
        if self.is_prefix_cached:
            first, end = sequence.computed // self.pool.block_size, self._num_findable(sequence)
            for key in self._keys(sequence, end)[first:]:
                self._computing.setdefault(key, sequence)

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """The other answers of its request, with a share in every block that is computed."""
        shared = sequence.blocks[: self.pool.needed_for(sequence.computed)]
        others = sequence.fork()
        for other in others:
            self.pool.share(shared)
            other.blocks, other.computed = list(shared), sequence.computed
        return others

    def grow(self, sequence: Sequence) -> bool:
        """Gives a decoding sequence the block of its next position as its own; False, and nothing, if none is free."""
        missing = self.missing(sequence, [])
        copies = not missing and sequence.copied is None and self.pool.is_shared(sequence.blocks[-1])
        if missing + copies > self.pool.num_free:
            return False
        if copies:
            sequence.copied = sequence.blocks.pop()  # held until the step has run, which a step that fails may not
        sequence.blocks += self.pool.allocate(missing + copies)
        return True

    def complete(self, sequence: Sequence, start: int) -> None:
        """Takes in a step that computed the sequence from `start`: lets others find the blocks that became full."""
        self._end_copy(sequence)
        if not self.is_prefix_cached:
            return
        first, end = start // self.pool.block_size, sequence.computed // self.pool.block_size
        if end > first:
            for block, key in list(zip(sequence.blocks, self._keys(sequence, end), strict=False))[first:]:
                self.pool.publish(block, key, digests=tuple(use.digest for use in sequence.request.uses))
                self._computing.pop(key, None)

    def release(self, sequence: Sequence) -> None:
        """Takes everything from a sequence but its tokens."""
        self._end_copy(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        sequence.is_mixed = False
        if not sequence.is_scored:
            sequence.prompt_scores.clear()
        self.disappoint(sequence)

    def disappoint(self, sequence: Sequence) -> None:
        """Nobody waits any more for what it would have computed."""
        for key in [key for key in sequence.known_keys if self._computing.get(key) is sequence]:
            del self._computing[key]

    def check_integrity(self, sequences: Iterable[Sequence], *, computing: Iterable[Sequence]) -> None:
        """Asserts that these sequences have exactly the blocks that they need, and that no block is lost or awaited but
        those that some of them are computing."""
        assert set(map(id, self._computing.values())) <= set(map(id, computing)), "a block is waited for in vain"
        size = self.pool.block_size
        for sequence in sequences:
            if not sequence.blocks:
                assert sequence.computed == 0, "a sequence has lost what it computed"
                continue
            assert self.pool.needed_for(len(sequence.tokens) - 1) <= len(sequence.blocks), "a block is missing"
            assert len(sequence.blocks) <= self.pool.needed_for(len(sequence.tokens)), "a block is too many"
            full = sequence.computed // size
            for block, key in zip(sequence.blocks, self._keys(sequence, full), strict=False):
                assert self.pool.key_of(block) in (None, key), "a block holds other tokens, or those of other weights"
            assert not any(map(self.pool.key_of, sequence.blocks[full:])), "a block was published before it is full"
        self.pool.check_integrity(held(sequence) for sequence in sequences)

    def _end_copy(self, sequence: Sequence) -> None:
        if sequence.copied is not None:
            self.pool.release([sequence.copied])
            sequence.copied = None

    def _num_findable(self, sequence: Sequence) -> int:
        return (len(sequence.tokens) - 1) // self.pool.block_size

    def _keys(self, sequence: Sequence, count: int) -> list[BlockKey]:
        if not self.is_prefix_cached or sequence.is_mixed:
            return []
        return sequence.block_keys(count, block_size=self.pool.block_size)


def held(sequence: Sequence) -> list[int]:
    """Every block that a sequence holds, the one under copy too."""
    return sequence.blocks if sequence.copied is None else [*sequence.blocks, sequence.copied]


def _scores_prompt(sequence: Sequence) -> bool:
    return sequence.request.sampling.prompt_logprobs is not None and not sequence.is_scored
