"""The sequences that have rows in the next step, and who has how many. Knows limits; no blocks, no queue."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from inference.engine.sequence import Sequence
from inference.engine.tenants import Tenants

BY_AGE = attrgetter("age")


@dataclass(frozen=True, slots=True)
class RowLimits:
    """rows: answers in a step. adapters: distinct adapters in a step; None for any number."""

    rows: int
    adapters: int | None


class Running:
    """Sequences, oldest first, none above a limit."""

    def __init__(self, limits: RowLimits, tenants: Tenants) -> None:
        self._limits = limits
        self._tenants = tenants
        self._sequences: list[Sequence] = []
        self.num_rows = 0
        """Answers under way; a sequence that has not forked counts for all of its request."""
        self._by_tenant: Counter[str] = Counter()
        self._by_digest: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        """By age: 0 is the oldest, -1 the newest."""
        return self._sequences[index]

    @property
    def tenants(self) -> list[str]:
        """Those that have rows."""
        return list(self._by_tenant)

    def rows_of(self, tenant: str) -> int:
        return self._by_tenant[tenant]

    def is_allowed(self, sequence: Sequence) -> bool:
        """Whether its tenant may have its rows too, should there be any."""
        most = self._tenants.of(sequence.request.tenant).max_rows
        return most is None or self._by_tenant[sequence.request.tenant] + sequence.rows <= most

    def has_rows_for(self, sequence: Sequence, *, without: Iterable[Sequence] = ()) -> bool:
        """Whether the step has rows for it, and a place for its adapters, if some that run were gone."""
        gone = list(without)
        if self.num_rows - sum(one.rows for one in gone) + sequence.rows > self._limits.rows:
            return False
        if self._limits.adapters is None:
            return True
        digests = self._by_digest.copy()
        for one in gone:
            for use in one.request.uses:
                digests[use.digest] -= one.rows
        used = {digest for digest, rows in digests.items() if rows}
        return len(used | {use.digest for use in sequence.request.uses}) <= self._limits.adapters

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self._sequences, sequence, key=BY_AGE)
        self._count(sequence, sequence.rows)

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)
        self._count(sequence, -sequence.rows)

    def check_integrity(self) -> None:
        """Asserts that nobody is above a limit and everybody is counted once."""
        assert self._sequences == sorted(self._sequences, key=BY_AGE), "sequences are not in the order of their age"
        again = Running(self._limits, self._tenants)
        for sequence in self._sequences:
            assert again.is_allowed(sequence), "a tenant has more rows than it may"
            assert again.has_rows_for(sequence), "there are too many rows or adapters"
            again.add(sequence)
        assert again.num_rows == self.num_rows <= self._limits.rows, "more answers run than are allowed"
        assert again._by_tenant == self._by_tenant, "the rows of a tenant are miscounted"
        assert again._by_digest == self._by_digest, "the adapters are miscounted"

    def _count(self, sequence: Sequence, rows: int) -> None:
        request = sequence.request
        self.num_rows += rows
        _change(self._by_tenant, request.tenant, rows)
        for use in request.uses:
            _change(self._by_digest, use.digest, rows)


def _change(counter: Counter[str], key: str, change: int) -> None:
    counter[key] += change
    if not counter[key]:
        del counter[key]
