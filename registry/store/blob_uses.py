"""Which stored files are needed: by a version that was not rejected, or by someone who was told lately of them.

Whoever relies on a file notes that first, under a shared lock. What removes files holds the lock alone from looking to
removing, so a file is either gone before it is noted, and found to be missing, or stays.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy import Text, delete, exists, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert

from registry.models import BlobUseRow, VersionRow
from registry.store.database import Database

# Any number that nothing else in the database locks; this one spells "useblobs" in ASCII.
ADVISORY_LOCK = int.from_bytes(b"useblobs", "big")


class BlobUses:
    """The uses of stored files, by digest, in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, digests: Iterable[str]) -> None:
        """From now on the files stay for as long as a collection's grace."""
        rows = [{"digest": digest, "time": func.clock_timestamp()} for digest in sorted(set(digests))]
        if not rows:
            return
        statement = upsert(BlobUseRow).values(rows)
        async with self._database.edit() as session:
            await session.execute(select(func.pg_advisory_xact_lock_shared(ADVISORY_LOCK)))
            await session.execute(
                statement.on_conflict_do_update(constraint="pk_blob_uses", set_={"time": statement.excluded.time})
            )

    async def is_of(self, digest: str, adapters: frozenset[str]) -> bool:
        """Whether a version of one of the adapters has the file."""
        holds = func.jsonb_build_object(
            "files", func.jsonb_build_array(func.jsonb_build_object("digest", digest)), type_=JSONB
        )
        query = select(VersionRow.number).where(VersionRow.manifest.contains(holds), VersionRow.adapter.in_(adapters))
        return bool(await self._database.run(query.limit(1)))

    @asynccontextmanager
    async def unneeded(self, digests: list[str], *, grace_s: float) -> AsyncIterator[list[str]]:
        """Those of the digests that no version needs and nobody noted within the grace; so until the block ends."""
        since = func.clock_timestamp() - timedelta(seconds=grace_s)
        name = func.unnest(literal(digests, ARRAY(Text))).column_valued("given")
        file = func.jsonb_build_object("digest", name)
        holds = func.jsonb_build_object("files", func.jsonb_build_array(file), type_=JSONB)
        query = select(name).where(
            # What was rejected nobody can use, and it may be uploaded again.
            ~exists().where(VersionRow.manifest.contains(holds), VersionRow.rejection_reasons == literal([], JSONB)),
            ~exists().where(BlobUseRow.digest == name, BlobUseRow.time > since),
        )
        async with self._database.edit() as session:
            await session.execute(select(func.pg_advisory_xact_lock(ADVISORY_LOCK)))
            found = list(await session.scalars(query))
            yield found
            await session.execute(delete(BlobUseRow).where(BlobUseRow.time <= since))
