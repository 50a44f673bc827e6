"""The side of a split: stable, in proportion, and never the worse for a growing canary."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adapter.splits import FULL_WEIGHT, add_canary, choose_side

KEYS = [f"user-{number}" for number in range(4000)]


def side(key: str, *sides: tuple[int, int], alias: str = "production") -> int:
    return choose_side("sql", alias, sides, key)


def test_a_key_takes_the_side_that_the_docstring_says() -> None:
    """sha256("sql@production\\0user-0") begins with 8ed388689ead8fcc."""
    point = 0x8ED388689EAD8FCC % FULL_WEIGHT
    assert side("user-0", (1, FULL_WEIGHT - point), (2, point)) == 1
    assert side("user-0", (1, FULL_WEIGHT - point - 1), (2, point + 1)) == 2


def test_sides_get_their_share_of_the_keys() -> None:
    share = sum(side(key, (1, 9000), (2, 1000)) == 2 for key in KEYS) / len(KEYS)
    assert share == pytest.approx(0.1, abs=0.02)


def test_a_growing_canary_takes_keys_and_gives_none_back() -> None:
    for canary, other in ((2, 1), (1, 2)):  # the canary may also be the older version
        before = {key for key in KEYS if side(key, (other, 9000), (canary, 1000)) == canary}
        after = {key for key in KEYS if side(key, (other, 7500), (canary, 2500)) == canary}
        assert before < after


def test_two_aliases_split_the_keys_independently() -> None:
    sides = (1, 5000), (2, 5000)
    both = sum(side(key, *sides) == 2 == side(key, *sides, alias="beta") for key in KEYS) / len(KEYS)
    assert both == pytest.approx(0.25, abs=0.03)


def test_without_a_key_the_largest_side_answers() -> None:
    assert side("", (1, 9000), (2, 1000)) == 1
    assert side("", (2, 5000), (1, 5000)) == 1


@given(st.dictionaries(st.integers(1, 99), st.integers(1, 10**4), min_size=1, max_size=8), st.integers(1, 9999))
def test_a_canary_leaves_weights_that_sum_up_and_none_without_any(weights: dict[int, int], weight: int) -> None:
    total = sum(weights.values())
    sides = [(number, max(1, found * (FULL_WEIGHT - 8) // total)) for number, found in weights.items()]
    sides[0] = (sides[0][0], sides[0][1] + FULL_WEIGHT - sum(found for _, found in sides))
    assume(weight <= FULL_WEIGHT - len(sides))
    after = dict(add_canary(sides, 100, weight))
    assert after[100] == weight
    assert sum(after.values()) == FULL_WEIGHT
    assert min(after.values()) >= 1
    assert set(after) == {*weights, 100}


def test_a_canary_keeps_the_proportions_of_the_others() -> None:
    assert dict(add_canary([(1, 9000), (2, 1000)], 3, 1000)) == {1: 8100, 2: 900, 3: 1000}
    assert dict(add_canary([(1, 9000), (2, 1000)], 2, 2500)) == {1: 7500, 2: 2500}


def test_a_canary_of_the_only_version_has_nobody_to_share_with() -> None:
    with pytest.raises(ValueError, match="expected another version to keep 90 %, found only 1"):
        add_canary([(1, FULL_WEIGHT)], 1, 1000)
