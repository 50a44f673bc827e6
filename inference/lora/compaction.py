"""Which ranges of the arena to slide together so that a large enough hole appears. Knows numbers only.

before   |AAAA..BB...C.DD|     a hole of 5 is wanted: B slides, and nothing else has to
after    |AAAABB.....C.DD|
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from inference.lora.extents import Extent


@dataclass(frozen=True, slots=True)
class Slide:
    """A range and where it goes, which is nearer to the arena's beginning; the two may overlap."""

    source: Extent
    target: Extent


def find_slides(
    taken: Sequence[Extent], capacity_bytes: int, num_bytes: int, *, fixed: Collection[Extent] = ()
) -> list[Slide] | None:
    """The slides, in the order to do them, that move the fewest bytes and leave a hole of `num_bytes`.

    `taken` are all ranges in use; those that are also `fixed` stay. None if no slides make such a hole.
    """
    end = Extent(capacity_bytes, capacity_bytes)
    fences = [Extent(0, 0), *sorted(fixed), end]
    best: list[Slide] | None = None
    for before, after in pairwise(fences):
        between = sorted(
            one for one in taken if before.end <= one.begin and one.end <= after.begin and one not in fixed
        )
        found = _cheapest([before, *between, after], num_bytes)
        if found is not None and (best is None or _cost(found) < _cost(best)):
            best = found
    return best


def _cheapest(ranges: Sequence[Extent], num_bytes: int) -> list[Slide] | None:
    """As find_slides, where the first and the last range stay and all others may slide."""
    best: list[Slide] | None = None
    last = 1  # of the ranges that stay, the one behind those that slide
    for first in range(len(ranges) - 1):
        last = max(last, first + 1)
        while _free(ranges, first, last) < num_bytes:
            last += 1
            if last == len(ranges):
                return best
        slides = _slide(ranges[first].end, ranges[first + 1 : last])
        if best is None or _cost(slides) < _cost(best):
            best = slides
    return best


def _free(ranges: Sequence[Extent], first: int, last: int) -> int:
    """The free bytes between two ranges. Those in between are few, since the first that suffice are taken."""
    inside = sum(one.num_bytes for one in ranges[first + 1 : last])
    return ranges[last].begin - ranges[first].end - inside


def _slide(begin: int, ranges: Sequence[Extent]) -> list[Slide]:
    slides = []
    for source in ranges:
        slides.append(Slide(source, Extent(begin, begin + source.num_bytes)))
        begin += source.num_bytes
    return slides


def _cost(slides: Sequence[Slide]) -> int:
    return sum(slide.source.num_bytes for slide in slides)
