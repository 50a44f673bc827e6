"""Who gets rows and blocks for the next step: turns, fair shares, and what is taken from whom. Moves nothing itself.

turn ──► awaits another's prompt? ──► room? ──► start
                 └─ pass                 └─ above its share: pass; below: make room, or nobody else goes first
"""

from __future__ import annotations

from collections import Counter

from inference.engine.places import Places
from inference.engine.sequence import Sequence
from inference.engine.shares import fair_rows
from inference.engine.tables import held
from inference.engine.tenants import Tenants


class Admission:
    """Lets sequences of one queue in; `max_rows` and `max_tokens` are those of a step."""

    def __init__(self, places: Places, tenants: Tenants, *, max_rows: int, max_tokens: int) -> None:
        self._places = places
        self._running, self._queue, self._tables = places.running, places.queue, places.tables
        self._blocks = places.tables.pool
        self._tenants = tenants
        self._max_rows = max_rows
        self._max_tokens = max_tokens

    def admit(self, now_s: float) -> None:
        """Gives rows and blocks to sequences whose turn it is, while tokens of the step are left for them.

        Tenants with fewer rows than their fair share come first; what they leave is anybody's.
        """
        if not self._queue:
            return
        total_weight = self._total_weight()
        prefilling: Counter[str] = Counter()
        budget = self._max_tokens
        passed: set[str] = set()  # tenants that cannot use their turn
        for running in self._running:
            budget -= running.remaining
            prefilling[running.request.tenant] += running.remaining > 1

        def may_run(sequence: Sequence) -> bool:
            tenant = sequence.request.tenant
            # Others' prompts may fill many steps; a tenant without one gets its share of this step all the same.
            return (
                tenant not in passed and (budget > 0 or not prefilling[tenant]) and self._running.is_allowed(sequence)
            )

        def may_claim(sequence: Sequence) -> bool:
            tenant = sequence.request.tenant
            return self._has_claim(tenant, total_weight) and may_run(sequence)

        for is_turn in (may_claim, may_run):
            while (sequence := self._queue.next(is_turn)) is not None:
                tenant = sequence.request.tenant
                cached = self._tables.cached(sequence)
                if self._tables.awaits(sequence, cached):
                    passed.add(tenant)
                elif self._has_room(sequence, cached) or self._make_room(sequence, cached, total_weight):
                    self._places.start(sequence, cached, now_s)
                    budget -= sequence.remaining
                    prefilling[tenant] += sequence.remaining > 1
                elif self._has_claim(tenant, total_weight):
                    return  # it has a claim, and whoever went first now would take what it waits for
                else:
                    passed.add(tenant)

    def _has_room(self, sequence: Sequence, cached: list[int]) -> bool:
        """Whether it has rows and blocks now, those that the paused need not keep included."""
        if not self._running.has_rows_for(sequence):
            return False
        while self._needed(sequence, cached) > self._blocks.num_free - self._blocks.num_kept_of(cached):
            victims = [one for one in self._places.parked if one is not sequence]
            if not victims:
                return False
            self._places.strip(victims[-1])
        return True

    def _make_room(self, sequence: Sequence, cached: list[int], total_weight: float) -> bool:
        """Preempts the newest sequences of tenants above their fair share, for one whose tenant is below its own."""
        tenant = sequence.request.tenant
        if not self._has_claim(tenant, total_weight):
            return False
        rows = {name: self._running.rows_of(name) for name in self._running.tenants}
        victims: list[Sequence] = []
        for victim in reversed(list(self._running)):
            name = victim.request.tenant
            if name == tenant or rows[name] - victim.rows < self._share(name, total_weight):
                continue
            rows[name] -= victim.rows
            victims.append(victim)
            if not self._running.has_rows_for(sequence, without=victims):
                continue
            if self._needed(sequence, cached) <= self._blocks.num_free_without(map(held, victims), cached):
                for one in victims:
                    self._places.preempt(one)
                return True
        return False

    def _needed(self, sequence: Sequence, cached: list[int]) -> int:
        """Blocks that must be free for it: its own, and one for each other answer, which would else soon preempt it."""
        spare = self._running.num_rows + sequence.rows - 1 if self._running else 0
        return self._tables.missing(sequence, cached) + spare

    def _has_claim(self, tenant: str, total_weight: float) -> bool:
        """Whether a tenant has fewer rows than its fair share."""
        return self._running.rows_of(tenant) < self._share(tenant, total_weight)

    def _share(self, tenant: str, total_weight: float) -> int:
        return fair_rows(self._max_rows, self._tenants.weight_of(tenant), total_weight)

    def _total_weight(self) -> float:
        """Of the tenants that run or wait."""
        running = [tenant for tenant in self._running.tenants if not self._queue.has(tenant)]
        return self._queue.total_weight + sum(map(self._tenants.weight_of, running))
