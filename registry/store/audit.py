"""The audit log: one entry per committed write, read newest first.

What changes a resource is recorded with it, in one transaction (`registry.store.database`). What an operator removes
without changing any resource is recorded here, once it is gone.
"""

from __future__ import annotations

import json

from sqlalchemy import select

from registry.models import AuditRow
from registry.resources import AuditEntry
from registry.store.database import Call, Database, Write
from registry.store.paging import Page, PageRequest, make_page


class Audit:
    """The audit log of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, call: Call, *, resource: str, before: object, after: object) -> None:
        """Records what was done beside the resources, as a revision of its own with no event."""

        async def body(write: Write) -> None:
            revision = await write.advance()
            await write.record(revision, [], base_model="", resource=resource, before=before, after=after)

        await self._database.write(call, type(None), body)

    async def list(self, request: PageRequest, *, adapter: str = "", actor: str = "") -> Page[AuditEntry]:
        """Entries, newest first; of one adapter or one actor when they are given."""
        listing = f"audit of {adapter} by {actor}"
        before = request.after(listing, int)
        query = select(AuditRow).order_by(AuditRow.revision.desc()).limit(request.limit + 1)
        if adapter:
            query = query.where(AuditRow.adapter == adapter)
        if actor:
            query = query.where(AuditRow.actor == actor)
        if before is not None:
            query = query.where(AuditRow.revision < before)
        async with self._database.read() as session:
            found = [
                AuditEntry(
                    revision=row.revision,
                    time=row.time,
                    actor=row.actor,
                    action=row.action,
                    resource=row.resource,
                    request_id=row.request_id,
                    before="" if row.before is None else json.dumps(row.before),
                    after=json.dumps(row.after),
                    message=row.message,
                )
                for row in await session.scalars(query)
            ]
        return make_page(request, listing, found, lambda one: one.revision)
