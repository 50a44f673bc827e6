from __future__ import annotations

import pytest

from inference.engine.blocks import BlockPool


def test_blocks_are_free_again_when_their_last_holder_lets_go() -> None:
    pool = BlockPool(num_blocks=4, block_size=8)
    blocks = pool.allocate(3)
    pool.share(blocks[:1])
    pool.check_integrity([blocks, blocks[:1]])
    pool.release(blocks)
    assert pool.num_free == 3
    pool.release(blocks[:1])
    assert pool.num_free == 4
    pool.check_integrity([])


def test_positions_are_rounded_up_to_blocks() -> None:
    pool = BlockPool(num_blocks=4, block_size=8)
    assert [pool.needed_for(n) for n in (0, 1, 8, 9)] == [0, 1, 1, 2]


def test_a_leak_a_double_release_and_too_many_are_found() -> None:
    pool = BlockPool(num_blocks=4, block_size=8)
    blocks = pool.allocate(2)
    with pytest.raises(AssertionError, match="holders differ"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match="expected 3 free blocks, found 2"):
        pool.allocate(3)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.share(blocks)
