"""Free and taken ranges of bytes in the arena. Knows numbers only."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGNMENT_BYTES = 64  # a cache line, and a multiple of 8 elements of any dtype, as the kernels ask


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The bytes from `begin` to `end`, both multiples of ALIGNMENT_BYTES."""

    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    def overlaps(self, other: Extent) -> bool:
        return self.begin < other.end and other.begin < self.end


class Extents:
    """Hands out ranges of `capacity_bytes`: the first hole that is large enough, from its beginning.

    Holes are kept in order and never touch each other, so a range that is given back grows its neighbours.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self._holes = [Extent(0, self.capacity_bytes)] if self.capacity_bytes > 0 else []

    @property
    def free_bytes(self) -> int:
        return sum(hole.num_bytes for hole in self._holes)

    @property
    def largest_hole_bytes(self) -> int:
        return max((hole.num_bytes for hole in self._holes), default=0)

    def take(self, num_bytes: int) -> Extent | None:
        """A range of at least `num_bytes` (at least 1), or None if no hole is large enough."""
        assert num_bytes > 0, f"expected at least one byte, found {num_bytes}"
        size = rounded(num_bytes)
        for at, hole in enumerate(self._holes):
            if hole.num_bytes >= size:
                extent = Extent(hole.begin, hole.begin + size)
                self._holes[at : at + 1] = [Extent(extent.end, hole.end)] if extent.end < hole.end else []
                return extent
        return None

    def take_all(self, sizes: Sequence[int]) -> list[Extent] | None:
        """`take` for each size in the same order, or nothing: None if one of them finds no hole.

        The largest is placed first, which leaves the small ones the holes that are too small for it.
        """
        before, found = list(self._holes), [Extent(0, 0)] * len(sizes)
        for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
            extent = self.take(sizes[at])
            if extent is None:
                self._holes = before
                return None
            found[at] = extent
        return found

    def take_at(self, extent: Extent) -> None:
        """Takes exactly this range, which must be free."""
        at = bisect.bisect(self._holes, extent.begin, key=lambda hole: hole.begin) - 1
        hole = self._holes[at] if at >= 0 else Extent(0, 0)
        assert hole.begin <= extent.begin, f"expected {extent} to be free"
        assert extent.end <= hole.end, f"expected {extent} to be free"
        rest = (Extent(hole.begin, extent.begin), Extent(extent.end, hole.end))
        self._holes[at : at + 1] = [part for part in rest if part.num_bytes > 0]

    def give_back(self, extent: Extent) -> None:
        at = bisect.bisect(self._holes, extent)
        begin, end, first, last = extent.begin, extent.end, at, at
        if at > 0 and self._holes[at - 1].end == begin:
            begin, first = self._holes[at - 1].begin, at - 1
        if at < len(self._holes) and self._holes[at].begin == end:
            end, last = self._holes[at].end, at + 1
        self._holes[first:last] = [Extent(begin, end)]

    def copy(self) -> Extents:
        """An independent copy, to try things on."""
        other = Extents(self.capacity_bytes)
        other._holes = list(self._holes)
        return other

    def check_integrity(self, taken: Iterable[Extent]) -> None:
        """Asserts that the holes and these ranges cover every byte once, and that no two holes touch."""
        position, before = 0, False
        for extent, is_hole in sorted([(hole, True) for hole in self._holes] + [(extent, False) for extent in taken]):
            assert extent.begin == position, f"expected a range from byte {position}, found one from {extent.begin}"
            assert extent.end > extent.begin, f"the range at byte {position} is empty"
            assert extent.begin % ALIGNMENT_BYTES == 0, f"the range at byte {position} is not aligned"
            assert not (is_hole and before), f"two holes touch at byte {position}"
            position, before = extent.end, is_hole
        assert position == self.capacity_bytes, f"the bytes from {position} on are neither free nor taken"


def rounded(num_bytes: int) -> int:
    """The bytes that a range of `num_bytes` takes."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
