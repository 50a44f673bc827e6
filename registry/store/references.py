"""What a reference means now: one statement, and one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, bindparam, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from adapter.names import Reference
from adapter.splits import FULL_WEIGHT, choose_side
from registry.answers import ResolvedVersion
from registry.errors import VersionNotFound, WrongBaseModel
from registry.models import AliasTargetRow, RegistryHead, VersionRow
from registry.resources import VersionState
from registry.store.adapters import get_adapter
from registry.store.aliases import alias_not_found, check_promotable
from registry.store.database import Database
from registry.store.rows import select_versions, version_of


class References:
    """The references that one database can resolve."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(
        self, reference: Reference, *, base_model_digest: str = "", request_key: str = ""
    ) -> ResolvedVersion:
        """The version that a reference means now, for the caller's base model when its digest is given.

        `request_key` chooses the side of a split, as `adapter.splits` says.

        Raises AdapterNotFound, AliasNotFound, VersionNotFound, VersionRetired, VersionRejected and WrongBaseModel.
        """
        rows = await self._find(reference)
        if not rows:
            async with self._database.read() as session:
                raise await _explain_nothing(session, reference)
        revision: int = rows[0].head
        if reference.alias is not None:
            rows = [_choose(reference, rows, request_key)]
        # A digest may be registered under several names, and for base models that share their shapes.
        found = [version_of(row) for row in rows]
        served = [one for one in found if base_model_digest in ("", one.base_model_digest)]
        if not served:
            raise WrongBaseModel(
                f"{reference} is for base model {found[0].base_model!r} with digest {found[0].base_model_digest}, "
                f"not {base_model_digest}",
                metadata={"base_model": found[0].base_model, "base_model_digest": found[0].base_model_digest},
            )
        version = next((one for one in served if one.state == VersionState.VALIDATED), served[0])
        check_promotable(version)
        return ResolvedVersion(version, revision)

    async def _find(self, reference: Reference) -> Sequence[Row[Any]]:
        """The versions that it may mean, each with the store's revision and its weight; of one digest by age."""
        if reference.digest is not None:
            return await self._database.run(_BY_DIGEST, {"digest": reference.digest})
        if reference.alias is not None:
            return await self._database.run(_BY_ALIAS, {"adapter": reference.name, "alias": reference.alias})
        return await self._database.run(_BY_NUMBER, {"adapter": reference.name, "number": reference.number})


def _select_meant() -> Select[Any]:
    return select_versions().add_columns(select(RegistryHead.revision).scalar_subquery().label("head"))


_BY_ALIAS = (
    _select_meant()
    .add_columns(AliasTargetRow.weight)
    .join(
        AliasTargetRow,
        (AliasTargetRow.adapter == VersionRow.adapter) & (AliasTargetRow.version == VersionRow.number),
    )
    .where(
        VersionRow.adapter == bindparam("adapter"),
        AliasTargetRow.alias == bindparam("alias"),
        AliasTargetRow.shadow.is_(False),
    )
)
_BY_DIGEST = (
    _select_meant()
    .add_columns(literal(FULL_WEIGHT).label("weight"))
    .where(VersionRow.digest == bindparam("digest"))
    .order_by(VersionRow.revision)
)
_BY_NUMBER = (
    _select_meant()
    .add_columns(literal(FULL_WEIGHT).label("weight"))
    .where(VersionRow.adapter == bindparam("adapter"), VersionRow.number == bindparam("number"))
)


def _choose(reference: Reference, rows: Sequence[Row[Any]], request_key: str) -> Row[Any]:
    """The row of the side that the key takes."""
    assert reference.name is not None
    assert reference.alias is not None
    by_number = {row.number: row for row in rows}
    sides = [(number, row.weight) for number, row in by_number.items()]
    return by_number[choose_side(reference.name, reference.alias, sides, request_key)]


async def _explain_nothing(session: AsyncSession, reference: Reference) -> Exception:
    """Why a reference means nothing. Raises AdapterNotFound when there is not even the adapter."""
    if reference.digest is not None:
        return VersionNotFound(f"no version with digest {reference.digest}")
    assert reference.name is not None
    row = await get_adapter(session, reference.name)
    if reference.alias is not None:
        return alias_not_found(reference.name, reference.alias)
    return VersionNotFound(
        f"no version {reference}; the newest is {row.name}:{row.latest_version}",
        metadata={"adapter": row.name, "version": str(reference.number)},
    )
