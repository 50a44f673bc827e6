"""Sliding ranges together: the cheapest way to a hole, nobody's bytes lost, and no answer changed."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import AdapterMemoryFull
from inference.lora.compaction import Slide, find_slides
from inference.lora.extents import ALIGNMENT_BYTES, Extent
from inference.lora.slots import Slots

CELLS = 12


def extent(begin: int, end: int) -> Extent:
    return Extent(begin * ALIGNMENT_BYTES, end * ALIGNMENT_BYTES)


def cost(slides: list[Slide]) -> int:
    return sum(slide.source.num_bytes for slide in slides)


def largest_hole(taken: list[Extent], capacity_bytes: int) -> int:
    edges = [Extent(0, 0), *sorted(taken), Extent(capacity_bytes, capacity_bytes)]
    return max(after.begin - before.end for before, after in pairwise(edges))


def cheapest_by_trying_all(taken: list[Extent], capacity_bytes: int, num_bytes: int, fixed: set[Extent]) -> int | None:
    """The bytes to move if any neighbours may slide to the end of the range before them."""
    ordered, best = sorted(taken), None
    for first, end in combinations(range(len(ordered) + 1), 2):
        if any(one in fixed for one in ordered[first:end]):
            continue
        begin = ordered[first - 1].end if first else 0
        limit = ordered[end].begin if end < len(ordered) else capacity_bytes
        moved = sum(one.num_bytes for one in ordered[first:end])
        if limit - begin - moved >= num_bytes and (best is None or moved < best):
            best = moved
    return best


def test_only_what_lies_between_two_holes_slides() -> None:
    taken = [extent(0, 4), extent(6, 8), extent(11, 12), extent(13, 17)]
    slides = [Slide(extent(6, 8), extent(4, 6)), Slide(extent(11, 12), extent(6, 7))]
    assert find_slides(taken, 17 * ALIGNMENT_BYTES, 5 * ALIGNMENT_BYTES) == slides[:1]
    assert find_slides(taken, 17 * ALIGNMENT_BYTES, 6 * ALIGNMENT_BYTES) == slides
    assert find_slides(taken, 17 * ALIGNMENT_BYTES, 7 * ALIGNMENT_BYTES) is None


ranges = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=7)


@settings(max_examples=300, deadline=None)
@given(ranges, st.integers(0, 3), st.integers(1, 8))
def test_the_slides_are_the_cheapest_and_make_the_hole(drawn, rest, wanted) -> None:
    taken, fixed, end = [], set(), 0
    for hole, size, is_fixed in drawn:
        taken.append(extent(end + hole, end + hole + size))
        end += hole + size
        if is_fixed:
            fixed.add(taken[-1])
    capacity_bytes, num_bytes = (end + rest) * ALIGNMENT_BYTES, wanted * ALIGNMENT_BYTES
    if largest_hole(taken, capacity_bytes) >= num_bytes:
        return
    slides = find_slides(taken, capacity_bytes, num_bytes, fixed=fixed)
    expected = cheapest_by_trying_all(taken, capacity_bytes, num_bytes, fixed)
    assert (None if slides is None else cost(slides)) == expected
    if slides is not None:
        assert not fixed & {slide.source for slide in slides}
        after = [one for one in taken if one not in {slide.source for slide in slides}]
        assert largest_hole(after + [slide.target for slide in slides], capacity_bytes) >= num_bytes


actions = st.one_of(
    st.tuples(st.just("load"), st.integers(0, 9), st.integers(1, 5)),
    st.tuples(
        st.sampled_from(["release", "lease", "retire", "publish", "compact"]), st.integers(0, 9), st.integers(1, 8)
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(actions, max_size=40))
def test_moved_slots_keep_their_contents_and_every_byte_has_one_owner(drawn) -> None:
    """A model of the arena in cells, each with the digest that was written there."""
    slots, cells = Slots(CELLS * ALIGNMENT_BYTES), np.full(CELLS, None, dtype=object)

    def place(one: Extent) -> slice:
        return slice(one.begin // ALIGNMENT_BYTES, one.end // ALIGNMENT_BYTES)

    for action, number, size in drawn:
        digest = f"d{number}"
        slot = slots.find(digest)
        if action == "load" and slot is None:
            try:
                (new,), _ = slots.reserve({digest: size * ALIGNMENT_BYTES})
            except AdapterMemoryFull:
                continue
            cells[place(new.extent)] = digest
        elif action == "publish" and slot is not None and not slot.is_loaded:
            slots.publish(slot)
        elif action == "lease" and slot is not None and slot.is_loaded:
            slots.lease(slot)
        elif action == "release" and slot is not None and slot.is_loaded and slot.leases:
            slots.release(slot)
        elif action == "retire" and slot is not None and slot.is_loaded:
            slots.retire(slot)
        elif action == "compact":
            leased = {one.digest for one in slots if not one.is_evictable}
            found = slots.begin_compaction({"new": size * ALIGNMENT_BYTES})
            if found is not None:
                moves, _ = found
                for move in moves:
                    contents = cells[place(move.slot.extent)].copy()
                    cells[place(move.slot.extent)] = None
                    cells[place(move.target)] = contents
                    slots.retire(move.slot)  # one that is moving is not freed before its end
                freed = slots.end_compaction(moves)
                assert not {one.digest for one in freed} & leased
                assert slots.largest_hole_bytes >= size * ALIGNMENT_BYTES
        slots.check_integrity()
        for one in slots:
            assert (cells[place(one.extent)] == one.digest).all()
