"""The event log as watchers read it: where the store is, whole revisions by range, and a snapshot.

Revisions are dense, so a range of revisions is a page of whole revisions, and its length bounds its memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Row, and_, exists, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from registry.documents import decode
from registry.models import AdapterRow, AliasRow, AliasTargetRow, BaseModelRow, EventRow, RegistryHead, VersionRow
from registry.resources import Change, Event, SnapshotItem, Status
from registry.store.database import Database
from registry.store.rows import aliases_of, load_base_models, select_aliases, select_versions, version_of

# Revisions or things read at once for one watcher; an event with its manifest is about 2 KiB.
PAGE = 128

_HEAD = select(RegistryHead.store_id, RegistryHead.revision, RegistryHead.compacted_revision)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Base models, then versions that an alias points at, then aliases; all as they were at the status's revision."""

    status: Status
    items: AsyncIterator[SnapshotItem]


class Changes:
    """The events of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def status(self) -> Status:
        """The store's identity and revision."""
        (row,) = await self._database.run(_HEAD)
        return _status_of(row)

    async def page(self, after: int, up_to: int, *, base_model: str = "") -> tuple[Status, tuple[Change, ...]]:
        """The changes in (after, up_to], and the store as the same statement saw it.

        Revisions with no event of `base_model` are left out. The caller compares the status: when its compacted
        revision is past `after`, the page has holes.
        """
        wanted = and_(EventRow.revision > after, EventRow.revision <= up_to)
        if base_model:
            wanted = and_(wanted, EventRow.base_model == base_model)
        query = (
            _HEAD.add_columns(EventRow.revision.label("event_revision"), EventRow.document)
            .outerjoin(EventRow, wanted)
            .order_by(EventRow.revision, EventRow.ordinal)
        )
        rows = await self._database.run(query)
        events = [(row.event_revision, row.document) for row in rows if row.event_revision is not None]
        changes = tuple(
            Change(revision, tuple(decode(Event, document) for _, document in group))
            for revision, group in groupby(events, key=lambda event: event[0])
        )
        return _status_of(rows[0]), changes

    @asynccontextmanager
    async def snapshot(
        self, *, base_model: str = "", adapters: frozenset[str] = frozenset()
    ) -> AsyncIterator[Snapshot]:
        """What exists at one revision, of these adapters if any are given.

        The transaction is open until the block ends, so it must not take long.
        """
        async with self._database.read() as session:
            head = (await session.execute(_HEAD)).one()
            yield Snapshot(_status_of(head), _items(session, base_model, adapters))


def _status_of(row: Row[*tuple[Any, ...]]) -> Status:
    return Status(row.store_id, row.revision, row.compacted_revision)


async def _items(session: AsyncSession, base_model: str, adapters: frozenset[str]) -> AsyncIterator[SnapshotItem]:
    async for item in _base_models(session, base_model):
        yield item
    for read in (_versions, _aliases):
        async for item in read(session, base_model, adapters):
            yield item


async def _base_models(session: AsyncSession, base_model: str) -> AsyncIterator[SnapshotItem]:
    after = ""
    while True:
        query = select(BaseModelRow).where(BaseModelRow.name > after).order_by(BaseModelRow.name).limit(PAGE)
        if base_model:
            query = query.where(BaseModelRow.name == base_model)
        rows = (await session.scalars(query)).all()
        for found in await load_base_models(session, rows):
            yield SnapshotItem(found)
        if len(rows) < PAGE:
            return
        after = rows[-1].name


async def _versions(session: AsyncSession, base_model: str, adapters: frozenset[str]) -> AsyncIterator[SnapshotItem]:
    """Versions that an alias points at, each once."""
    is_pointed_at = exists().where(
        AliasTargetRow.adapter == VersionRow.adapter, AliasTargetRow.version == VersionRow.number
    )
    after = ("", 0)
    while True:
        query = (
            select_versions()
            .where(is_pointed_at, tuple_(VersionRow.adapter, VersionRow.number) > after)
            .order_by(VersionRow.adapter, VersionRow.number)
            .limit(PAGE)
        )
        if base_model:
            query = query.where(AdapterRow.base_model == base_model)
        if adapters:
            query = query.where(VersionRow.adapter.in_(adapters))
        versions = [version_of(row) for row in await session.execute(query)]
        for version in versions:
            yield SnapshotItem(version)
        if len(versions) < PAGE:
            return
        after = (versions[-1].adapter, versions[-1].number)


async def _aliases(session: AsyncSession, base_model: str, adapters: frozenset[str]) -> AsyncIterator[SnapshotItem]:
    """Aliases, paged by their keys, so that a page never cuts an alias's targets apart."""
    after = ("", "")
    while True:
        keys = (
            select(AliasRow.adapter, AliasRow.alias)
            .where(tuple_(AliasRow.adapter, AliasRow.alias) > after)
            .order_by(AliasRow.adapter, AliasRow.alias)
            .limit(PAGE)
        )
        if base_model:
            keys = keys.join(AdapterRow, AdapterRow.name == AliasRow.adapter).where(AdapterRow.base_model == base_model)
        if adapters:
            keys = keys.where(AliasRow.adapter.in_(adapters))
        page = keys.subquery()
        query = select_aliases().join(page, (page.c.adapter == AliasRow.adapter) & (page.c.alias == AliasRow.alias))
        aliases = aliases_of(await session.execute(query))
        for alias in aliases:
            yield SnapshotItem(alias)
        if len(aliases) < PAGE:
            return
        after = (aliases[-1].adapter, aliases[-1].alias)
