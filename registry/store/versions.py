"""Versions in the database: register, read, list, retire and bring back. The artifact was checked before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sqlalchemy import false, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from adapter.manifest import Manifest
from adapter.names import MAX_NUMBER, Reference
from registry.answers import RegisteredVersion
from registry.documents import encode
from registry.errors import (
    BaseModelNotFound,
    VersionInUse,
    VersionNotFound,
    WrongBaseModel,
)
from registry.models import AdapterRow, AliasRow, BaseModelRow, VersionRow
from registry.resources import (
    AdapterVersion,
    LineageKey,
    LineageKind,
    Provenance,
    VersionRegistered,
    VersionRetired,
    VersionState,
    VersionUnretired,
)
from registry.states import check_transition
from registry.store.adapters import get_adapter
from registry.store.database import Call, Database, Revision, Write
from registry.store.lineage import refuse_cycle
from registry.store.paging import Page, PageRequest, make_page
from registry.store.rows import select_versions, version_of


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A checked artifact that is to become a version: a rejected one when there are reasons, and then of no rank."""

    adapter: str
    base_model: str
    manifest: Manifest
    rank: int = 0
    alpha: float = 0.0
    target_modules: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    parent: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    rejection_reasons: tuple[str, ...] = ()

    @property
    def state(self) -> VersionState:
        """Where the check leaves it."""
        return VersionState.REJECTED if self.rejection_reasons else VersionState.VALIDATED


@dataclass(frozen=True, slots=True)
class ChangedVersion:
    """The version after a change of its state."""

    version: AdapterVersion
    revision: int


class Versions:
    """The versions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, call: Call, new: NewVersion, *, dry_run: bool = False) -> RegisteredVersion:
        """Commits the next version, or returns the one with the same digest, which is validated if it was rejected
        and this check passed. With `dry_run` as it would be, number 0 if it is new.

        Raises BaseModelNotFound, WrongBaseModel, VersionNotFound for the parent, and LineageCycle.
        """

        async def body(write: Write) -> RegisteredVersion:
            before = write.head
            if await write.session.get(BaseModelRow, new.base_model) is None:
                raise BaseModelNotFound(f"no base model {new.base_model!r}; add it first")
            adapter = await write.session.get(AdapterRow, new.adapter)
            if adapter is not None:
                check_base_model(adapter, new.base_model)
                kept = await write.session.scalar(
                    select(VersionRow.number).where(
                        VersionRow.adapter == new.adapter, VersionRow.digest == new.manifest.digest
                    )
                )
                if kept is not None:
                    return await _register_again(write, await get_version(write.session, new.adapter, kept), new)
            revision = await write.advance()
            number = await _next_number(write.session, new, revision)
            key = LineageKey(LineageKind.ADAPTER_VERSION, f"{new.adapter}:{number}")
            await refuse_cycle(write.session, key, [LineageKey(LineageKind.BASE_MODEL, new.base_model)])
            await _insert_version(write.session, new, number, revision)
            version = await get_version(write.session, new.adapter, number)
            await write.record(
                revision,
                [VersionRegistered(version)],
                base_model=new.base_model,
                resource=f"{new.adapter}:{number}",
                adapter=new.adapter,
                before=None,
                after=version,
            )
            if dry_run:
                return RegisteredVersion(replace(version, number=0, revision=0, create_time=None), before, created=True)
            return RegisteredVersion(version, revision.number, created=True)

        return await self._database.write(call, RegisteredVersion, body, dry_run=dry_run)

    async def find(self, adapter: str, base_model: str, digest: str) -> AdapterVersion | None:
        """The adapter's version with a digest, if there is one. Raises WrongBaseModel."""
        async with self._database.read() as session:
            row = await session.get(AdapterRow, adapter)
            if row is None:
                return None
            check_base_model(row, base_model)
            found = (
                await session.execute(
                    select_versions().where(VersionRow.adapter == adapter, VersionRow.digest == digest)
                )
            ).one_or_none()
            return None if found is None else version_of(found)

    async def get(self, adapter: str, number: int) -> AdapterVersion:
        """One version. Raises AdapterNotFound and VersionNotFound."""
        async with self._database.read() as session:
            return await get_version(session, adapter, number)

    async def list(self, adapter: str, request: PageRequest) -> Page[AdapterVersion]:
        """An adapter's versions, newest first. Raises AdapterNotFound."""
        listing = f"versions of {adapter}"
        before = request.after(listing, int)
        query = (
            select_versions()
            .where(VersionRow.adapter == adapter)
            .order_by(VersionRow.number.desc())
            .limit(request.limit + 1)
        )
        if before is not None:
            query = query.where(VersionRow.number < before)
        async with self._database.read() as session:
            await get_adapter(session, adapter)
            found = [version_of(row) for row in await session.execute(query)]
        return make_page(request, listing, found, lambda one: one.number)

    async def retire(
        self, call: Call, adapter: str, number: int, *, force: bool = False, message: str = ""
    ) -> ChangedVersion:
        """Withdraws a version; harmless when it is. Raises VersionInUse unless `force`, and what `get` raises."""

        async def body(write: Write) -> ChangedVersion:
            version = await get_version(write.session, adapter, number)
            if version.state == VersionState.RETIRED:
                return ChangedVersion(version, write.head)
            await _check_moves(write, version)
            if version.aliases and not force:
                raise VersionInUse(
                    f"{adapter}:{number} is what {_join(adapter, version.aliases)} points at; promote another version "
                    "there first, or force it: the alias then resolves to an error",
                    metadata={"aliases": ",".join(version.aliases)},
                )
            check_transition(version, VersionState.RETIRED)
            retired = await _change_state(write, version, VersionState.RETIRED, message)
            return ChangedVersion(retired, write.head)

        return await self._database.write(call, ChangedVersion, body)

    async def unretire(self, call: Call, adapter: str, number: int) -> ChangedVersion:
        """Makes a retired version promotable again. Raises VersionNotRetired, and what `get` raises."""

        async def body(write: Write) -> ChangedVersion:
            version = await get_version(write.session, adapter, number)
            check_transition(version, VersionState.VALIDATED)
            back = await _change_state(write, version, VersionState.VALIDATED, "")
            return ChangedVersion(back, write.head)

        return await self._database.write(call, ChangedVersion, body)


def check_base_model(adapter: AdapterRow, base_model: str) -> None:
    """Raises WrongBaseModel when the adapter belongs to another base model."""
    if adapter.base_model != base_model:
        raise WrongBaseModel(
            f"adapter {adapter.name!r} is for base model {adapter.base_model!r}, not {base_model!r}; "
            "register the version under another name",
            metadata={"adapter": adapter.name, "base_model": adapter.base_model},
        )


async def get_version(session: AsyncSession, adapter: str, number: int) -> AdapterVersion:
    """One version as it is in this transaction. Raises AdapterNotFound and VersionNotFound."""
    # No version has a number that the column cannot hold, and Postgres would refuse to compare it.
    is_number = VersionRow.number == number if number <= MAX_NUMBER else false()
    found = (await session.execute(select_versions().where(VersionRow.adapter == adapter, is_number))).one_or_none()
    if found is None:
        row = await get_adapter(session, adapter)
        raise VersionNotFound(
            f"no version {adapter}:{number}; the newest of {row.latest_version} is {adapter}:{row.latest_version}",
            metadata={"adapter": adapter, "version": str(number)},
        )
    return version_of(found)


async def _next_number(session: AsyncSession, new: NewVersion, revision: Revision) -> int:
    number = await session.scalar(
        update(AdapterRow)
        .where(AdapterRow.name == new.adapter)
        .values(latest_version=AdapterRow.latest_version + 1)
        .returning(AdapterRow.latest_version)
    )
    if number is None:
        number = 1
        await session.execute(
            insert(AdapterRow).values(
                name=new.adapter, base_model=new.base_model, latest_version=number, create_time=revision.time
            )
        )
    return number


async def _insert_version(session: AsyncSession, new: NewVersion, number: int, revision: Revision) -> None:
    parent = Reference.parse(new.parent) if new.parent else Reference()
    if parent.name is not None and await session.get(VersionRow, (parent.name, parent.number)) is None:
        raise VersionNotFound(f"no version {new.parent}, which was given as the parent", field="parent")
    await session.execute(
        insert(VersionRow).values(
            adapter=new.adapter,
            number=number,
            digest=new.manifest.digest,
            manifest=encode(new.manifest),
            rank=new.rank,
            alpha=new.alpha,
            target_modules=list(new.target_modules),
            features=list(new.features),
            state=new.state.value,
            rejection_reasons=list(new.rejection_reasons),
            parent_adapter=parent.name,
            parent_number=parent.number,
            provenance=encode(new.provenance),
            size_bytes=new.manifest.size_bytes,
            create_time=revision.time,
            revision=revision.number,
        )
    )


async def _register_again(write: Write, version: AdapterVersion, new: NewVersion) -> RegisteredVersion:
    """What is there; validated when only its check stood in the way, and now does not."""
    if version.state != VersionState.REJECTED or new.state == VersionState.REJECTED:
        return RegisteredVersion(version, write.head, created=False)
    validated = replace(
        version,
        state=new.state,
        rank=new.rank,
        alpha=new.alpha,
        target_modules=new.target_modules,
        features=new.features,
        rejection_reasons=(),
    )
    revision = await write.advance()
    await write.session.execute(
        update(VersionRow)
        .where(VersionRow.adapter == version.adapter, VersionRow.number == version.number)
        .values(
            state=validated.state.value,
            rank=validated.rank,
            alpha=validated.alpha,
            target_modules=list(validated.target_modules),
            features=list(validated.features),
            rejection_reasons=[],
        )
    )
    await write.record(
        revision,
        [VersionRegistered(validated)],
        base_model=version.base_model,
        resource=f"{version.adapter}:{version.number}",
        adapter=version.adapter,
        before=version,
        after=validated,
    )
    return RegisteredVersion(validated, revision.number, created=False)


async def _change_state(write: Write, version: AdapterVersion, state: VersionState, message: str) -> AdapterVersion:
    revision = await write.advance()
    await write.session.execute(
        update(VersionRow)
        .where(VersionRow.adapter == version.adapter, VersionRow.number == version.number)
        .values(state=state.value)
    )
    changed = replace(version, state=state)
    happening = VersionRetired(changed) if state == VersionState.RETIRED else VersionUnretired(changed)
    await write.record(
        revision,
        [happening],
        base_model=version.base_model,
        resource=f"{version.adapter}:{version.number}",
        adapter=version.adapter,
        before=version,
        after=changed,
        message=message,
    )
    return changed


async def _check_moves(write: Write, version: AdapterVersion) -> None:
    """To retire what an alias points at is to move it. Raises PermissionDenied."""
    rows = await write.session.execute(
        select(AliasRow.alias, AliasRow.protected).where(
            AliasRow.adapter == version.adapter, AliasRow.alias.in_(version.aliases)
        )
    )
    for alias, is_protected in rows:
        write.call.grant.check_move(version.adapter, alias, protected=is_protected)


def _join(adapter: str, aliases: tuple[str, ...]) -> str:
    return ", ".join(f"{adapter}@{alias}" for alias in aliases)
