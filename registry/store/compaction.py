"""Removing what nobody will ask for again: old events, and old answers to repeated requests.

A revision stays while it is among the newest or young enough. Each batch is one transaction that moves the head's
compacted revision and deletes the events up to it, so a watcher sees both or neither; an advisory lock lets one replica
work at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from registry.answers import Compacted
from registry.models import AuditRow, EventRow, RegistryHead, RequestRow
from registry.store.database import Database

# Any number that nothing else in the database locks; this one spells "compacts" in ASCII.
ADVISORY_LOCK = int.from_bytes(b"compacts", "big")
# Writers wait for a batch, so it must be short: about 50 ms for this many revisions.
BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Keep:
    """What stays: the newest revisions and, whichever is more, those that are young enough."""

    revisions: int
    age_s: float


class Compaction:
    """The compaction of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, keep: Keep) -> Compacted:
        """Removes events, a batch at a time. Raises StoreUnavailable; what was done until then stays done."""
        age = timedelta(seconds=keep.age_s)
        removed = 0
        async with self._database.edit() as session:
            await session.execute(delete(RequestRow).where(RequestRow.create_time < _ago(age)))
        while True:
            async with self._database.edit() as session:
                await session.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
                head = (await session.scalars(select(RegistryHead))).one()
                last = min(await _last_removable(session, head.revision, keep.revisions, age), head.revision)
                if last <= head.compacted_revision:
                    return Compacted(head.compacted_revision, head.revision, removed)
                up_to = min(last, head.compacted_revision + BATCH)
                await session.execute(update(RegistryHead).values(compacted_revision=up_to))
                connection = await session.connection()
                done = await connection.execute(delete(EventRow).where(EventRow.revision <= up_to))
                removed += done.rowcount


async def _last_removable(session: AsyncSession, revision: int, keep_revisions: int, age: timedelta) -> int:
    """The newest revision that neither limit covers; 0 when there is none."""
    # Read backwards by its key, so this looks at the revisions that stay and at one more.
    old = await session.scalar(
        select(AuditRow.revision).where(AuditRow.time < _ago(age)).order_by(AuditRow.revision.desc()).limit(1)
    )
    return max(0, min(old or 0, revision - keep_revisions))


def _ago(age: timedelta) -> ColumnElement[object]:
    return func.clock_timestamp() - age
