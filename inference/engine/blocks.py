"""Which blocks of the KV cache are free. Knows numbers only; the memory itself is in kv_cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class BlockPool:
    """`num_blocks` blocks of `block_size` positions, each with a count of its holders.

    Blocks are handed out last freed first, because their memory is the warmest.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"expected at least one block of one position, found {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed_for(self, num_positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-num_positions // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Hands out `count` blocks with one holder each; the caller has seen that they are free."""
        assert count <= len(self._free), f"expected {count} free blocks, found {len(self._free)}"
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free and cannot be shared"
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Takes a holder from each block; the last one frees it."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is released more often than held"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that the holders are exactly these block tables and that every other block is free, once."""
        held = Counter(block for table in tables for block in table)
        assert held == Counter({b: n for b, n in enumerate(self._holders) if n}), "holders differ from the block tables"
        assert len(self._free) == len(set(self._free)), "a block is free twice"
        assert set(self._free) == set(range(self.num_blocks)) - held.keys(), "a block is leaked, or free while held"
