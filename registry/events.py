"""Where the event log ends now. One connection per process listens; every watch waits here instead of asking Postgres.

    LISTEN ──> read the head ──> wait for a NOTIFY, or poll_s ──┐
                     ^                                          │
                     └──────────────────────────────────────────┘

It listens before it reads, so no commit falls between the two; and it reads whether or not it was notified, so a
NOTIFY that is lost costs poll_s and never an event. A connection that breaks is made again.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from registry.errors import RegistryError, StoreUnavailable
from registry.resources import Status
from registry.store.database import CHANNEL, RETRY_AFTER_S, connection_string

log = logging.getLogger(__name__)

# A head that takes longer than this to read comes over a connection that is broken without saying so.
READ_TIMEOUT_S = 10.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.1, 5.0
# A watch stays open over an outage of this length: Postgres starts again in a second or two.
OUTAGE_S = 10.0


class Listener:
    """The newest status of the store, and a way to wait for the next one."""

    def __init__(self, url: str, *, poll_s: float) -> None:
        self._connection_string = connection_string(url)
        self._poll_s = poll_s
        self._status: Status | None = None
        self._lost_at: float | None = None
        self._end: RegistryError | None = None
        self._moved = asyncio.Event()

    @property
    def status(self) -> Status | None:
        """The newest that is known; None before anything is."""
        return self._status

    async def run(self) -> None:
        """Listens until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._connection_string, autocommit=True, connect_timeout=5
                )
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    while True:
                        self.observe(await _read_status(connection))
                        self._lost_at, backoff_s = None, FIRST_BACKOFF_S
                        async for _ in connection.notifies(timeout=self._poll_s, stop_after=1):
                            pass
            except (psycopg.Error, TimeoutError) as error:
                log.warning("the listener lost Postgres: %s", str(error).strip() or type(error).__name__)
                if self._lost_at is None:
                    self._lost_at = asyncio.get_running_loop().time()
                self._wake()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    def observe(self, status: Status) -> None:
        """Takes notice of a status that anyone read. An older one of the same store is late news."""
        known = self._status
        if known is None or known.store_id != status.store_id or status.revision > known.revision:
            self._status = status
            self._wake()

    def close(self, error: RegistryError) -> None:
        """Ends every wait, now and later, with the error."""
        self._end = error
        self._wake()

    def check(self) -> None:
        """Raises what `close` was given, and StoreUnavailable when Postgres has been away for OUTAGE_S."""
        if self._end is not None:
            raise self._end
        if self._lost_at is not None and asyncio.get_running_loop().time() - self._lost_at > OUTAGE_S:
            raise StoreUnavailable(retry_after_s=RETRY_AFTER_S)

    async def wait_past(self, store_id: str, revision: int, *, timeout_s: float) -> bool:
        """True once the store is past the revision, or is another one; False after `timeout_s`. Raises like `check`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._is_past(store_id, revision):
                    await self._moved.wait()
        except TimeoutError:
            return self._is_past(store_id, revision)
        return True

    def _is_past(self, store_id: str, revision: int) -> bool:
        self.check()
        known = self._status
        return known is not None and (known.store_id != store_id or known.revision > revision)

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


async def _read_status(connection: psycopg.AsyncConnection) -> Status:
    async with asyncio.timeout(READ_TIMEOUT_S):
        cursor = await connection.execute("SELECT store_id, revision, compacted_revision FROM registry_head")
        row = await cursor.fetchone()
    assert row is not None, "the migration that makes the table also makes its row"
    return Status(*row)
