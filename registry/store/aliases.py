"""Aliases in the database: promote, roll back and their history."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, delete, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from adapter.splits import FULL_WEIGHT, add_canary
from registry.answers import MovedAlias
from registry.documents import decode, encode
from registry.errors import (
    AliasMoved,
    AliasNotFound,
    InvalidRequest,
    NoEarlierTarget,
    VersionRejected,
    VersionRetired,
)
from registry.models import AliasChangeRow, AliasRow, AliasTargetRow
from registry.resources import AdapterVersion, Alias, AliasChange, AliasChanged, AliasTarget, VersionState
from registry.store.adapters import get_adapter
from registry.store.database import Call, Database, Write
from registry.store.paging import Page, PageRequest, make_page
from registry.store.rows import aliases_of, select_aliases
from registry.store.signing import check_policy
from registry.store.versions import get_version


class Aliases:
    """The aliases of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def promote(
        self,
        call: Call,
        adapter: str,
        number: int,
        *,
        alias: str,
        weight: int = FULL_WEIGHT,
        expected_version: int | None = None,
        message: str = "",
        dry_run: bool = False,
    ) -> MovedAlias:
        """Moves an alias to a version, or with less than the full weight, that share of it.

        `expected_version` is the largest target: 0 means that the alias must not exist, None is no condition. With
        `dry_run` the alias comes as it would be, with revision 0.

        Raises AdapterNotFound, VersionNotFound, VersionRetired, VersionRejected, AliasMoved, and AliasNotFound or
        InvalidRequest for a share of an alias that points at nothing else.
        """

        async def body(write: Write) -> MovedAlias:
            head = write.head
            version = await get_version(write.session, adapter, number)
            check_promotable(version)
            current = await _find_alias(write.session, adapter, alias)
            write.call.grant.check_move(adapter, alias, protected=current is not None and current.protected)
            _check_expected(adapter, alias, current, expected_version)
            await check_policy(write.session, version, alias)
            targets = _targets_after(current, version, alias=alias, weight=weight)
            if current is not None and current.targets == targets:
                return MovedAlias(current, current.targets, head, changed=False)
            moved = await _move(write, current, targets, adapter=adapter, alias=alias, message=message)
            if dry_run:
                return MovedAlias(
                    Alias(adapter, alias, targets, moved.alias.protected), moved.before, head, changed=True
                )
            return moved

        return await self._database.write(call, MovedAlias, body, dry_run=dry_run)

    async def rollback(
        self, call: Call, adapter: str, *, alias: str, expected_version: int | None = None, message: str = ""
    ) -> MovedAlias:
        """Moves an alias back to the version that it pointed at as a whole before; a split ends.

        Raises AliasNotFound, AliasMoved, NoEarlierTarget and VersionRetired.
        """

        async def body(write: Write) -> MovedAlias:
            await get_adapter(write.session, adapter)
            current = await _find_alias(write.session, adapter, alias)
            if current is None:
                raise alias_not_found(adapter, alias)
            write.call.grant.check_move(adapter, alias, protected=current is not None and current.protected)
            _check_expected(adapter, alias, current, expected_version)
            earlier = await write.session.scalar(_select_earlier(current))
            if earlier is None:
                raise NoEarlierTarget(f"{adapter}@{alias} never pointed at anything but {_shown(current)}")
            (target,) = decode(tuple[AliasTarget, ...], earlier)
            version = await get_version(write.session, adapter, target.version)
            check_promotable(version)
            await check_policy(write.session, version, alias)
            return await _move(write, current, (target,), adapter=adapter, alias=alias, message=message)

        return await self._database.write(call, MovedAlias, body)

    async def history(self, adapter: str, alias: str, request: PageRequest) -> Page[AliasChange]:
        """An alias's changes, newest first. Raises AdapterNotFound and AliasNotFound."""
        listing = f"changes of {adapter}@{alias}"
        before = request.after(listing, int)
        query = (
            select(AliasChangeRow)
            .where(AliasChangeRow.adapter == adapter, AliasChangeRow.alias == alias)
            .order_by(AliasChangeRow.revision.desc())
            .limit(request.limit + 1)
        )
        if before is not None:
            query = query.where(AliasChangeRow.revision < before)
        async with self._database.read() as session:
            await get_adapter(session, adapter)
            if await session.get(AliasRow, (adapter, alias)) is None:
                raise alias_not_found(adapter, alias)
            found = [
                AliasChange(
                    revision=row.revision,
                    before=decode(tuple[AliasTarget, ...], row.before),
                    after=decode(tuple[AliasTarget, ...], row.after),
                    actor=row.actor,
                    time=row.time,
                    message=row.message,
                )
                for row in await session.scalars(query)
            ]
        return make_page(request, listing, found, lambda one: one.revision)


def check_promotable(version: AdapterVersion) -> None:
    """Raises VersionRetired or VersionRejected."""
    name = f"{version.adapter}:{version.number}"
    if version.state == VersionState.RETIRED:
        raise VersionRetired(f"{name} is retired", metadata={"version": name})
    if version.state == VersionState.REJECTED:
        raise VersionRejected(f"{name} was refused", reasons=version.rejection_reasons, metadata={"version": name})


def alias_not_found(adapter: str, alias: str) -> AliasNotFound:
    """The error that says how to get the alias."""
    return AliasNotFound(
        f"adapter {adapter!r} has no alias {alias!r}; promote a version to it first",
        metadata={"adapter": adapter, "alias": alias},
    )


async def _find_alias(session: AsyncSession, adapter: str, alias: str) -> Alias | None:
    rows = await session.execute(select_aliases().where(AliasRow.adapter == adapter, AliasRow.alias == alias))
    return next(iter(aliases_of(rows)), None)


def _check_expected(adapter: str, alias: str, current: Alias | None, expected: int | None) -> None:
    found = current.targets[0].version if current is not None else 0
    if expected is not None and found != expected:
        is_now = f"points at {_shown(current)}" if current is not None else "does not exist"
        wanted = f"to point at {expected}" if expected else "not to exist"
        raise AliasMoved(
            f"expected {adapter}@{alias} {wanted}, but it {is_now}",
            metadata={"expected_version": str(expected), "actual_version": str(found)},
        )


def _shown(alias: Alias) -> str:
    return ", ".join(str(target.version) for target in alias.targets)


def _targets_after(
    current: Alias | None, version: AdapterVersion, *, alias: str, weight: int
) -> tuple[AliasTarget, ...]:
    """What the alias is to point at, the largest target first. Raises AliasNotFound and InvalidRequest."""
    if weight == FULL_WEIGHT:
        return (AliasTarget(version.number, version.digest),)
    if current is None:
        raise alias_not_found(version.adapter, alias)
    digests = {target.version: target.digest for target in current.targets} | {version.number: version.digest}
    try:
        sides = add_canary([(one.version, one.weight) for one in current.targets], version.number, weight)
    except ValueError as error:
        raise InvalidRequest(
            f"{version.adapter}@{alias} points at {_shown(current)}: {error}", field="canary_weight"
        ) from error
    targets = (AliasTarget(number, digests[number], share) for number, share in sides)
    return tuple(sorted(targets, key=lambda target: (-target.weight, target.version)))


def _select_earlier(current: Alias) -> Select[Any]:
    """The targets of the newest time at which the alias pointed at one version, and not at the one it does now."""
    query = select(AliasChangeRow.before).where(
        AliasChangeRow.adapter == current.adapter,
        AliasChangeRow.alias == current.alias,
        func.jsonb_array_length(AliasChangeRow.before) == 1,
    )
    if len(current.targets) == 1:
        query = query.where(AliasChangeRow.before[0]["version"].as_integer() != current.targets[0].version)
    return query.order_by(AliasChangeRow.revision.desc()).limit(1)


async def _move(
    write: Write,
    current: Alias | None,
    after: tuple[AliasTarget, ...],
    *,
    adapter: str,
    alias: str,
    message: str,
) -> MovedAlias:
    """Points the alias at the targets, with its history, event and audit entry."""
    before = current.targets if current is not None else ()
    revision = await write.advance()
    key = {"adapter": adapter, "alias": alias}
    stamp = {"revision": revision.number, "update_time": revision.time}
    await write.session.execute(
        upsert(AliasRow).values(**key, **stamp).on_conflict_do_update(constraint="pk_aliases", set_=stamp)
    )
    await write.session.execute(
        delete(AliasTargetRow).where(AliasTargetRow.adapter == adapter, AliasTargetRow.alias == alias)
    )
    await write.session.execute(
        insert(AliasTargetRow),
        [{**key, "version": one.version, "weight": one.weight, "shadow": one.shadow} for one in after],
    )
    await write.session.execute(
        insert(AliasChangeRow).values(
            **key,
            revision=revision.number,
            before=encode(before),
            after=encode(after),
            actor=write.call.actor,
            time=revision.time,
            message=message,
        )
    )
    moved = await _find_alias(write.session, adapter, alias)
    assert moved is not None
    pointed_at = tuple([await get_version(write.session, adapter, target.version) for target in moved.targets])
    await write.record(
        revision,
        [AliasChanged(moved, pointed_at)],
        base_model=pointed_at[0].base_model,
        resource=f"{adapter}@{alias}",
        adapter=adapter,
        before=before or None,
        after=after,
        message=message,
    )
    return MovedAlias(moved, before, revision.number, changed=True)
