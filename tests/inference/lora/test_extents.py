from __future__ import annotations

import random

import pytest

from inference.lora.extents import ALIGNMENT_BYTES, Extent, Extents


def test_the_first_hole_that_is_large_enough_is_taken() -> None:
    extents = Extents(10 * ALIGNMENT_BYTES)
    a, b, c = (extents.take(n * ALIGNMENT_BYTES) for n in (2, 3, 4))
    assert a is not None
    assert b is not None
    assert c is not None
    extents.give_back(a)
    extents.give_back(c)
    extents.check_integrity([b])
    assert extents.take(ALIGNMENT_BYTES + 1) == a
    assert extents.take(6 * ALIGNMENT_BYTES) is None
    assert extents.largest_hole_bytes == extents.free_bytes == 5 * ALIGNMENT_BYTES


def test_everything_given_back_is_one_hole_again() -> None:
    rng = random.Random(0)
    extents = Extents(1 << 16)
    taken: list[Extent] = []
    for _ in range(3000):
        if taken and rng.random() < 0.5:
            extents.give_back(taken.pop(rng.randrange(len(taken))))
        elif extent := extents.take(rng.randint(1, 5000)):
            taken.append(extent)
        extents.check_integrity(taken)
    for extent in taken:
        extents.give_back(extent)
    assert extents.take(1 << 16) == Extent(0, 1 << 16)


def test_an_overlap_and_a_lost_byte_are_found() -> None:
    extents = Extents(1 << 10)
    extent = extents.take(128)
    assert extent is not None
    with pytest.raises(AssertionError, match="found one from 128"):
        extents.check_integrity([])
    with pytest.raises(AssertionError, match="expected a range from byte 128, found one from 64"):
        extents.check_integrity([extent, Extent(64, 192)])


def test_a_capacity_that_is_not_aligned_is_rounded_down() -> None:
    assert Extents(ALIGNMENT_BYTES - 1).take(1) is None
    assert Extents(2 * ALIGNMENT_BYTES - 1).capacity_bytes == ALIGNMENT_BYTES
