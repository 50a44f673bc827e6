"""Whose turn it is among waiting requests. Knows sequences and what they cost; no blocks, no budgets.

Deficit round robin over tenants (Shreedhar and Varghese 1996): one line for each tenant, and a turn that goes round.

    turn ──► line: deficit += QUANTUM · weight ──► serve its first while deficit ≥ cost, deficit -= cost ──► next line

Costs are tokens. While two lines i and j wait, with no cost above c, what was served of each differs by at most

    |served(i) / weight(i) - served(j) / weight(j)|  ≤  QUANTUM + c / weight(i) + c / weight(j)

and the first of a line i, of cost c(i), is served after at most n = ⌈c(i) / (QUANTUM · weight(i))⌉ turns of its line,
in which every other line j was served at most n · QUANTUM · weight(j) + c: so nothing waits for ever.

Within a line the order is that of arrival_s - AGING_S · priority. All wait at the same pace, so that order never
changes: a request is overtaken by those of higher priority that come at most AGING_S · (the difference) later, at most
200 · AGING_S, and by no other. A priority is worth nothing against other tenants.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from inference.engine.sequence import Sequence

QUANTUM = 512  # tokens, about a usual request: smaller turns are fairer within a second, larger ones need fewer rounds
AGING_S = 1.0  # of waiting are worth one step of priority

_RANK = attrgetter("rank")


@dataclass(frozen=True, slots=True)
class _Entry:
    sequence: Sequence
    cost: int
    rank: tuple[float, tuple[int, int]]


@dataclass(slots=True)
class _Line:
    entries: list[_Entry] = field(default_factory=list)  # by rank
    deficit: float = 0.0
    is_served: bool = False  # it is its turn, and it had its quantum
    num_tokens: int = 0


class FairQueue:
    """The lines of all tenants with waiting requests."""

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # the one whose turn it is first
        self._length = 0
        self.num_tokens = 0
        """Of all sequences in the queue."""
        self.total_weight = 0.0
        """Of the tenants that wait."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            for entry in line.entries:
                yield entry.sequence

    def has(self, tenant: str) -> bool:
        """Whether requests of the tenant wait."""
        return tenant in self._lines

    def waiting_of(self, tenant: str) -> tuple[int, int]:
        """How many requests of a tenant wait, and with how many tokens."""
        line = self._lines.get(tenant)
        return (len(line.entries), line.num_tokens) if line else (0, 0)

    def push(self, sequence: Sequence, *, cost: int) -> None:
        """Adds a sequence; one that was served before and has to wait again costs nothing."""
        request = sequence.request
        entry = _Entry(sequence, cost, (request.arrival_s - AGING_S * request.priority, sequence.age))
        line = self._lines.get(request.tenant)
        if line is None:
            line = self._lines[request.tenant] = _Line()
            self.total_weight += self._weight_of(request.tenant)
        bisect.insort(line.entries, entry, key=_RANK)
        self._count(line, sequence, 1)

    def next(self, may_run: Callable[[Sequence], bool]) -> Sequence | None:
        """The sequence whose turn it is; the same again until it is popped. A line whose first may not run is passed.

        None when no line's first may run.
        """
        while True:
            runnable = []
            for _ in range(len(self._lines)):
                tenant, line = next(iter(self._lines.items()))
                first = line.entries[0]
                if may_run(first.sequence):
                    if not line.is_served and line.deficit < first.cost:
                        line.deficit += QUANTUM * self._weight_of(tenant)
                    line.is_served = True
                    if line.deficit >= first.cost:
                        return first.sequence
                    runnable.append(tenant)
                line.is_served = False
                self._lines.move_to_end(tenant)
            if not runnable:
                return None
            self._skip_rounds(runnable)

    def pop(self, sequence: Sequence) -> None:
        """Takes out what `next` returned, at its line's cost."""
        line = self._lines[sequence.request.tenant]
        entry = line.entries[0]
        assert entry.sequence is sequence, "expected the first of its line"
        line.deficit -= entry.cost
        self._take_out(line, 0)

    def remove(self, sequence: Sequence) -> None:
        """Takes out one sequence; the turns of the others stay as they are."""
        line = self._lines[sequence.request.tenant]
        self._take_out(line, next(i for i, entry in enumerate(line.entries) if entry.sequence is sequence))

    def __contains__(self, sequence: Sequence) -> bool:
        line = self._lines.get(sequence.request.tenant)
        return line is not None and any(entry.sequence is sequence for entry in line.entries)

    def check_integrity(self) -> None:
        """Asserts that the queue counts itself right and that no line is out of order or in debt."""
        assert self._length == sum(len(line.entries) for line in self._lines.values()), "the queue miscounts itself"
        assert math.isclose(self.total_weight, sum(map(self._weight_of, self._lines))), "it misweighs its tenants"
        assert self.num_tokens == sum(len(sequence.tokens) for sequence in self), "it miscounts tokens"
        for line in self._lines.values():
            assert line.entries == sorted(line.entries, key=_RANK), "a line is out of order"
            assert line.num_tokens == sum(len(entry.sequence.tokens) for entry in line.entries), "a line miscounts"
            assert line.deficit >= 0, "a line was served more than its turns allow"

    def _skip_rounds(self, runnable: list[str]) -> None:
        """Gives these lines the quanta of all rounds but the last in which none of them could have been served."""
        rounds = min(self._rounds(tenant) for tenant in runnable) - 1
        if rounds > 0:
            for tenant in runnable:
                self._lines[tenant].deficit += rounds * QUANTUM * self._weight_of(tenant)

    def _rounds(self, tenant: str) -> int:
        line = self._lines[tenant]
        return math.ceil((line.entries[0].cost - line.deficit) / (QUANTUM * self._weight_of(tenant)))

    def _take_out(self, line: _Line, index: int) -> None:
        sequence = line.entries.pop(index).sequence
        self._count(line, sequence, -1)
        if not line.entries:
            del self._lines[sequence.request.tenant]
            # Sums of floats drift, and an empty queue is where nobody minds.
            self.total_weight = self.total_weight - self._weight_of(sequence.request.tenant) if self._lines else 0.0

    def _count(self, line: _Line, sequence: Sequence, change: int) -> None:
        self._length += change
        self.num_tokens += change * len(sequence.tokens)
        line.num_tokens += change * len(sequence.tokens)
