"""Who waits for adapters, what they need, and for how long memory was what they lacked.

Knows slots only as digests, and decides nothing: see `loader`. Its clock runs while the first who could be placed finds
no room, so neither slow reads nor those before count as waiting for memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from inference.lora.host_cache import HostSlab
from inference.lora.reading import AdapterFiles
from inference.lora.slots import Slot

PATIENCE = 0.5  # of the time that a load waits for memory, before newcomers may not pass by any more


@dataclass(slots=True, eq=False)
class Claim:
    """A request in the line: the adapters that it needs, and what is staged of them."""

    files: dict[str, AdapterFiles]
    granted: asyncio.Future[list[Slot]]
    """Gets the slots, leased, in the order of `files`; some may still be written."""
    blocked_before_s: float
    """For how long the line had waited for memory when this came."""
    slabs: dict[str, HostSlab] = field(default_factory=dict)
    staging: asyncio.Task[None] | None = None
    is_waiting: bool = True


class Line:
    """Claims in the order of arrival. Used from one event loop.

    `wait_s` is how long one may wait for memory; `look_again` is called when the first has waited long or too long.
    """

    def __init__(self, wait_s: float, look_again: Callable[[], None]) -> None:
        self._wait_s = wait_s
        self._look_again = look_again
        self._claims: list[Claim] = []
        self.awaited: Counter[str] = Counter()
        """Digests by how many claims need them."""
        self._blocked_s = 0.0  # for how long the line has waited for memory, until `_blocked_since`
        self._blocked_since: float | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Claim]:
        """Those in the line now; it may change meanwhile."""
        return iter(list(self._claims))

    def join(self, files: dict[str, AdapterFiles]) -> Claim:
        """A new claim at the end."""
        claim = Claim(files, asyncio.get_running_loop().create_future(), self._total_blocked_s())
        self._claims.append(claim)
        self.awaited.update(files.keys())
        return claim

    def leave(self, claim: Claim) -> bool:
        """Takes a claim out; whether it was in the line. What it staged is its owner's to give back."""
        if not claim.is_waiting:
            return False
        claim.is_waiting = False
        self._claims.remove(claim)
        self.awaited -= Counter(claim.files.keys())
        if claim.staging is not None:
            claim.staging.cancel()
        return True

    def has_waited_long(self, claim: Claim) -> bool:
        return self._waited_s(claim) >= PATIENCE * self._wait_s

    def has_waited_too_long(self, claim: Claim) -> bool:
        return self._waited_s(claim) >= self._wait_s

    def note_blocked(self, claim: Claim | None) -> None:
        """Starts or ends the clock; `claim` is the first that waits for memory, None if nobody does."""
        self._blocked_s = self._total_blocked_s()
        self._blocked_since = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if claim is not None:
            loop = asyncio.get_running_loop()
            self._blocked_since = loop.time()
            next_s = self._wait_s if self.has_waited_long(claim) else PATIENCE * self._wait_s
            self._alarm = loop.call_later(max(0.0, next_s - self._waited_s(claim)), self._look_again)

    def _waited_s(self, claim: Claim) -> float:
        return self._total_blocked_s() - claim.blocked_before_s

    def _total_blocked_s(self) -> float:
        """For how long the line has waited for memory, all times together."""
        if self._blocked_since is None:
            return self._blocked_s
        return self._blocked_s + asyncio.get_running_loop().time() - self._blocked_since
