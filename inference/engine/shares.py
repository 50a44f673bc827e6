"""Fair shares of what a step has: its tokens and its rows. Pure functions over numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def divide(amount: int, wanted: Mapping[str, int], weight_of: Callable[[str], float]) -> dict[str, int]:
    """Who gets how much of an amount that all want more of: fair by weight, whole numbers, nothing left unused.

    Nobody gets more than is wanted. Whoever gets less has, but for one, at least its weight's share of what those who
    got all they wanted have left: max-min fairness (Bertsekas and Gallager, Data Networks, 6.5.2). What whole numbers
    leave over goes, one by one, to the first that still want more.
    """
    given = dict.fromkeys(wanted, 0)
    left = min(amount, sum(wanted.values()))
    while left > 0:
        wanting = [name for name in wanted if given[name] < wanted[name]]
        total = sum(map(weight_of, wanting))
        before = left
        for name in wanting:
            more = min(wanted[name] - given[name], int(before * weight_of(name) / total))
            given[name] += more
            left -= more
        if left == before:
            for name in wanting[:left]:
                given[name] += 1
                left -= 1
    return given


def fair_rows(rows: int, weight: float, total_weight: float) -> int:
    """The rows that a tenant may claim when others want them too: its part of the weight of all, and at least one."""
    return max(1, int(rows * weight / total_weight))
