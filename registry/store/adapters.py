"""Adapters in the database: read and list. They come into being with their first version."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from registry.errors import AdapterNotFound
from registry.models import AdapterRow
from registry.resources import Adapter
from registry.store.database import Database
from registry.store.paging import Page, PageRequest, make_page
from registry.store.rows import load_adapters


class Adapters:
    """The adapters of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Adapter:
        """One adapter with its aliases. Raises AdapterNotFound."""
        async with self._database.read() as session:
            row = await get_adapter(session, name)
            return (await load_adapters(session, [row]))[0]

    async def list(
        self,
        request: PageRequest,
        *,
        base_model: str = "",
        name_prefix: str = "",
        names: frozenset[str] = frozenset(),
    ) -> Page[Adapter]:
        """Adapters by name, each with its aliases; of one base model when it is given, with names that begin so.

        `names` keeps these adapters, and all when it is empty.
        """
        listing = f"adapters of {base_model} {name_prefix}"
        after = request.after(listing, str)
        query = select(AdapterRow).order_by(AdapterRow.name).limit(request.limit + 1)
        if base_model:
            query = query.where(AdapterRow.base_model == base_model)
        if name_prefix:
            query = query.where(AdapterRow.name.startswith(name_prefix, autoescape=True))
        if names:
            query = query.where(AdapterRow.name.in_(names))
        if after is not None:
            query = query.where(AdapterRow.name > after)
        async with self._database.read() as session:
            found = await load_adapters(session, (await session.scalars(query)).all())
        return make_page(request, listing, found, lambda one: one.name)


async def get_adapter(session: AsyncSession, name: str) -> AdapterRow:
    """The adapter's row. Raises AdapterNotFound."""
    row = await session.get(AdapterRow, name)
    if row is None:
        raise AdapterNotFound(f"no adapter {name!r}", metadata={"adapter": name})
    return row
