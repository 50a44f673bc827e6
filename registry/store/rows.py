"""Rows to resources, and the selects that bring everything a resource needs in one round trip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from adapter.manifest import Manifest
from registry.documents import decode
from registry.models import (
    AdapterRow,
    AliasRow,
    AliasTargetRow,
    BaseModelParentRow,
    BaseModelRow,
    VersionRow,
)
from registry.resources import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasTarget,
    BaseModel,
    BaseModelParent,
    BaseModelRelation,
    ModuleShape,
    Provenance,
    Signature,
    VersionState,
)


def select_versions() -> Select[Any]:
    """Versions with their base model, its digest and the aliases that point at them, as plain columns."""
    aliases = (
        select(func.array_agg(aggregate_order_by(AliasTargetRow.alias, AliasTargetRow.alias)))
        .where(AliasTargetRow.adapter == VersionRow.adapter, AliasTargetRow.version == VersionRow.number)
        .correlate(VersionRow)
        .scalar_subquery()
    )
    return (
        select(
            *VersionRow.__table__.columns,
            AdapterRow.base_model,
            BaseModelRow.digest.label("base_model_digest"),
            aliases.label("aliases"),
        )
        .select_from(VersionRow)
        .join(AdapterRow, AdapterRow.name == VersionRow.adapter)
        .join(BaseModelRow, BaseModelRow.name == AdapterRow.base_model)
    )


def version_of(row: Row[Any]) -> AdapterVersion:
    """The version of a row of `select_versions`."""
    return AdapterVersion(
        adapter=row.adapter,
        number=row.number,
        digest=row.digest,
        base_model=row.base_model,
        base_model_digest=row.base_model_digest,
        manifest=decode(Manifest, row.manifest),
        rank=row.rank,
        alpha=row.alpha,
        target_modules=tuple(row.target_modules),
        features=tuple(row.features),
        state=VersionState(row.state),
        size_bytes=row.size_bytes,
        rejection_reasons=tuple(row.rejection_reasons),
        parent=f"{row.parent_adapter}:{row.parent_number}" if row.parent_adapter else "",
        provenance=decode(Provenance, row.provenance),
        aliases=tuple(row.aliases or ()),
        create_time=row.create_time,
        revision=row.revision,
        signature=decode(Signature, row.signature) if row.signature else None,
    )


def select_aliases() -> Select[Any]:
    """Aliases, one row per target, in the order of (adapter, alias); an alias's largest target first."""
    return (
        select(
            *AliasRow.__table__.columns,
            AliasTargetRow.version,
            VersionRow.digest,
            AliasTargetRow.weight,
            AliasTargetRow.shadow,
        )
        .select_from(AliasRow)
        .join(
            AliasTargetRow,
            (AliasTargetRow.adapter == AliasRow.adapter) & (AliasTargetRow.alias == AliasRow.alias),
        )
        .join(
            VersionRow,
            (VersionRow.adapter == AliasTargetRow.adapter) & (VersionRow.number == AliasTargetRow.version),
        )
        .order_by(
            AliasRow.adapter,
            AliasRow.alias,
            AliasTargetRow.shadow,
            AliasTargetRow.weight.desc(),
            AliasTargetRow.version,
        )
    )


def aliases_of(rows: Iterable[Row[Any]]) -> list[Alias]:
    """The aliases of rows of `select_aliases`, in their order."""
    found: dict[tuple[str, str], tuple[Row[Any], list[AliasTarget]]] = {}
    for row in rows:
        entry = found.setdefault((row.adapter, row.alias), (row, []))
        entry[1].append(AliasTarget(row.version, row.digest, row.weight, row.shadow))
    return [
        Alias(row.adapter, row.alias, tuple(targets), row.protected, row.revision, row.update_time)
        for row, targets in found.values()
    ]


async def load_adapters(session: AsyncSession, rows: Sequence[AdapterRow]) -> list[Adapter]:
    """Adapters with their aliases."""
    names = [row.name for row in rows]
    by_adapter: dict[str, list[Alias]] = defaultdict(list)
    if names:
        # Said of both tables, or Postgres reads every target there is.
        query = select_aliases().where(AliasRow.adapter.in_(names), AliasTargetRow.adapter.in_(names))
        for alias in aliases_of(await session.execute(query)):
            by_adapter[alias.adapter].append(alias)
    return [
        Adapter(row.name, row.base_model, row.latest_version, tuple(by_adapter[row.name]), row.create_time)
        for row in rows
    ]


async def load_base_models(session: AsyncSession, rows: Sequence[BaseModelRow]) -> list[BaseModel]:
    """Base models with their parents and without their modules."""
    names = [row.name for row in rows]
    parents: dict[str, list[BaseModelParent]] = defaultdict(list)
    edges = select(BaseModelParentRow).where(BaseModelParentRow.child.in_(names))
    for edge in await session.scalars(edges.order_by(BaseModelParentRow.child, BaseModelParentRow.ordinal)):
        parents[edge.child].append(BaseModelParent(edge.parent, BaseModelRelation(edge.relation), edge.adapter_version))
    return [
        BaseModel(
            name=row.name,
            digest=row.digest,
            config_digest=row.config_digest,
            weights_digest=row.weights_digest,
            tokenizer_digest=row.tokenizer_digest,
            manifest=decode(Manifest, row.manifest),
            architecture=row.architecture,
            parents=tuple(parents[row.name]),
            create_time=row.create_time,
        )
        for row in rows
    ]


def modules_of(document: Any) -> tuple[ModuleShape, ...]:
    """A base model's modules from its column, which holds [name, out_features, in_features] rows."""
    return tuple(ModuleShape(name, rows, columns) for name, rows, columns in document)
