"""Which blocks of the KV cache are free, and which hold what. Knows numbers and keys; the memory is in kv_cache.

    free ──allocate──► held ──release──► free        a block without a key: nobody can ask for what it holds
     ▲                 ▲  │
     │             find│  │release
     └────allocate── kept                            a block with a key: its contents may be wanted again

A held block gets its key from `publish`, once it is full. Kept blocks are as good as free ones: when those run out, the
block that was released the longest time ago is handed out, and its key is forgotten.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from inference.engine.prefixes import BlockKey


class BlockPool:
    """`num_blocks` blocks of `block_size` positions, each with a count of its holders.

    Free blocks are handed out last freed first, because their memory is the warmest.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"expected at least one block of one position, found {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # the one released the longest time ago first
        self._holders = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._digests: list[tuple[str, ...]] = [()] * num_blocks  # of the adapters that computed what a key names
        self._by_key: dict[BlockKey, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, kept ones too."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody holds and whose contents can still be found."""
        return len(self._kept)

    def needed_for(self, num_positions: int) -> int:
        """Blocks that hold so many positions."""
        return -(-num_positions // self.block_size)

    def key_of(self, block: int) -> BlockKey | None:
        """What the block holds, or None if it was never published."""
        return self._keys[block]

    def allocate(self, count: int) -> list[int]:
        """Hands out `count` blocks with one holder each; the caller has seen that they are free."""
        assert count <= self.num_free, f"expected {count} free blocks, found {self.num_free}"
        blocks = [self._free.pop() if self._free else self._forget_oldest() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """The blocks of the first keys, up to the first that is not here. They are not held yet."""
        blocks = []
        for key in keys:
            if (block := self._by_key.get(key)) is None:
                break
            blocks.append(block)
        return blocks

    def num_kept_of(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds: sharing them leaves so many fewer to hand out."""
        return sum(not self._holders[block] for block in blocks)

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence holds it, so that none may write to it."""
        return self._holders[block] > 1

    def num_free_without(self, tables: Iterable[Iterable[int]], wanted: Iterable[int]) -> int:
        """Blocks that `allocate` could hand out if these tables were released and the `wanted` blocks were shared."""
        released = Counter(block for table in tables for block in table)
        freed = sum(self._holders[block] == count for block, count in released.items())
        return self.num_free + freed - sum(self._holders[block] == released[block] for block in wanted)

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each block, which is held already or kept."""
        for block in blocks:
            if self._holders[block] == 0:
                assert block in self._kept, f"block {block} is free and cannot be shared"
                del self._kept[block]
            self._holders[block] += 1

    def publish(self, block: int, key: BlockKey, *, digests: tuple[str, ...] = ()) -> None:
        """Says what a held block holds, for good, and with which adapters it was computed.

        If another block holds the same, only that one is found.
        """
        assert self._holders[block] > 0, f"block {block} is free and cannot be published"
        assert self._keys[block] in (None, key), f"block {block} holds something else"
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key
            self._digests[block] = digests

    def forget(self, digest: str) -> None:
        """Lets nobody find what an adapter computed, alone or in a sum; what is only kept is free."""
        for block in [block for block, digests in enumerate(self._digests) if digest in digests]:
            self._unpublish(block)
            if block in self._kept:
                del self._kept[block]
                self._free.append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a holder from each block of a sequence; the last one frees it, or keeps it if it has a key.

        The end of a sequence is forgotten before its beginning, without which it could not be found.
        """
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is released more often than held"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._keys[block] is None:
                    self._free.append(block)
                else:
                    self._kept[block] = None

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Asserts that the holders are exactly these block tables and that every other block is free or kept, once."""
        held = Counter(block for table in tables for block in table)
        assert held == Counter({b: n for b, n in enumerate(self._holders) if n}), "holders differ from the block tables"
        rest = [*self._free, *self._kept]
        assert len(rest) == len(set(rest)), "a block is free twice"
        assert set(rest) == set(range(self.num_blocks)) - held.keys(), "a block is leaked, or free while held"
        assert self._by_key == {key: b for b, key in enumerate(self._keys) if key is not None}, "keys and blocks differ"
        assert all(self._keys[block] is None for block in self._free), "a free block can be found"
        assert not any(digests and key is None for digests, key in zip(self._digests, self._keys, strict=True)), (
            "a block without a key is somebody's"
        )
        assert all(self._keys[block] is not None for block in self._kept), "a kept block cannot be found"

    def _forget_oldest(self) -> int:
        block, _ = self._kept.popitem(last=False)
        self._unpublish(block)
        return block

    def _unpublish(self, block: int) -> None:
        key, self._keys[block], self._digests[block] = self._keys[block], None, ()
        assert key is not None, f"block {block} has no key"
        del self._by_key[key]
