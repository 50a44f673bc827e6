from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine.shares import divide, fair_rows

names = st.sampled_from("abcdef")


@pytest.mark.parametrize(
    ("amount", "wanted", "given"),
    [
        (10, {}, {}),
        (0, {"a": 5}, {"a": 0}),
        (100, {"a": 5, "b": 7}, {"a": 5, "b": 7}),
        (10, {"a": 100, "b": 100}, {"a": 5, "b": 5}),
        (10, {"a": 100, "b": 2}, {"a": 8, "b": 2}),
        (3, {"a": 9, "b": 9}, {"a": 2, "b": 1}),
        (12, {"a": 100, "heavy": 100}, {"a": 3, "heavy": 9}),
    ],
)
def test_an_amount_is_divided_by_weight(amount: int, wanted: dict[str, int], given: dict[str, int]) -> None:
    assert divide(amount, wanted, lambda name: 3.0 if name == "heavy" else 1.0) == given


@given(
    amount=st.integers(0, 500),
    wanted=st.dictionaries(names, st.integers(1, 300)),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.01, 1.0, 5.0]) for name in "abcdef"}),
)
def test_nothing_is_left_unused_and_who_wants_more_has_a_fair_share(
    amount: int, wanted: dict[str, int], weights: dict[str, float]
) -> None:
    given = divide(amount, wanted, weights.__getitem__)
    assert sum(given.values()) == min(amount, sum(wanted.values()))
    assert all(0 <= given[name] <= wanted[name] for name in wanted)
    wanting = [name for name in wanted if given[name] < wanted[name]]
    for one in wanting:
        for other in wanted:
            # A rounding may cost each of the others one token in each round, of which there are fewer than names.
            assert given[other] / weights[other] <= (given[one] + len(wanted)) / weights[one] + 1 / weights[other]


def test_rows_are_shared_by_weight_and_everybody_may_have_one() -> None:
    assert [fair_rows(8, weight, 4.0) for weight in (1.0, 3.0)] == [2, 6]
    assert [fair_rows(8, weight, 4.001) for weight in (1.0, 3.0, 0.001)] == [1, 5, 1]
