"""Which aliases are protected. Where an alias points is decided in `registry.store.aliases`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import update

from registry.models import AliasRow
from registry.resources import Alias, AliasChanged
from registry.store.adapters import get_adapter
from registry.store.aliases import alias_not_found
from registry.store.database import Call, Database, Write
from registry.store.rows import aliases_of, select_aliases
from registry.store.versions import get_version


@dataclass(frozen=True, slots=True)
class ProtectedAlias:
    """The alias after a call."""

    alias: Alias
    revision: int


class Protection:
    """The protection of the aliases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set(self, call: Call, adapter: str, alias: str, *, protected: bool, message: str = "") -> ProtectedAlias:
        """Protects an alias or lifts that. It is no entry of the alias's history, which says where it pointed.

        Raises AdapterNotFound and AliasNotFound.
        """

        async def body(write: Write) -> ProtectedAlias:
            row = await get_adapter(write.session, adapter)
            rows = await write.session.execute(
                select_aliases().where(AliasRow.adapter == adapter, AliasRow.alias == alias)
            )
            current = next(iter(aliases_of(rows)), None)
            if current is None:
                raise alias_not_found(adapter, alias)
            if current.protected == protected:
                return ProtectedAlias(current, write.head)
            revision = await write.advance()
            changed = replace(current, protected=protected, revision=revision.number, update_time=revision.time)
            await write.session.execute(
                update(AliasRow)
                .where(AliasRow.adapter == adapter, AliasRow.alias == alias)
                .values(protected=protected, revision=revision.number, update_time=revision.time)
            )
            versions = tuple([await get_version(write.session, adapter, one.version) for one in changed.targets])
            await write.record(
                revision,
                [AliasChanged(changed, versions)],
                base_model=row.base_model,
                resource=f"{adapter}@{alias}",
                adapter=adapter,
                before=current,
                after=changed,
                message=message,
            )
            return ProtectedAlias(changed, revision.number)

        return await self._database.write(call, ProtectedAlias, body)
