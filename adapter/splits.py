"""Which side of a split alias a request takes. The registry and the workers ask here, so they always agree.

    point = first 8 bytes of SHA-256("NAME@ALIAS\\0KEY"), big-endian, mod 10000
    0        weight of the newest          …          10000
    ├──── newest version ────┼──── next ────┼──── oldest ───┤      the side is the one that the point falls into

The same key takes the same side until the weights change, and a growing canary only takes keys from the others: no
request that was on the canary leaves it. The alias is part of the hash, so a key's sides under two aliases are
independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

# Weights are in hundredths of a percent and sum to this.
FULL_WEIGHT = 10_000


def choose_side(adapter: str, alias: str, sides: Sequence[tuple[int, int]], key: str) -> int:
    """The version number out of (number, weight) pairs that a key takes; without a key the one of most weight.

    Of equal weights the lower number is the main one.
    """
    assert sum(weight for _, weight in sides) == FULL_WEIGHT, f"{adapter}@{alias}: the weights are {sides}"
    if not key:
        return min(sides, key=lambda side: (-side[1], side[0]))[0]
    digest = hashlib.sha256(f"{adapter}@{alias}\0{key}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") % FULL_WEIGHT
    for number, weight in sorted(sides, reverse=True):
        point -= weight
        if point < 0:
            return number
    raise AssertionError("the sides cover every point")


def add_canary(sides: Sequence[tuple[int, int]], number: int, weight: int) -> list[tuple[int, int]]:
    """The sides after `number` was given `weight`, less than all; the others keep their proportions.

    Nobody's weight falls below one hundredth of a percent. Raises ValueError when there is no room for that.
    """
    assert 0 < weight < FULL_WEIGHT, weight
    others = [side for side in sides if side[0] != number]
    room, total = FULL_WEIGHT - weight, sum(before for _, before in others)
    if not others:
        raise ValueError(f"expected another version to keep {room / 100:g} %, found only {number}, which has all")
    if room < len(others):
        raise ValueError(f"{room / 100:g} % cannot be split over {len(others)} other versions")
    scaled = {other: max(1, before * room // total) for other, before in others}
    # What rounding left over, or took too much, is the largest one's.
    scaled[max(others, key=lambda side: side[1])[0]] += room - sum(scaled.values())
    return [*scaled.items(), (number, weight)]
