"""What versions and base models were made from, and what was made from them: a walk over edges, level by level.

    version ──trained_on──> base model ──finetune, quantized, merge, adapter_merge──> base model
       └────continued_from──> version <──adapter_merge── base model

An edge goes from the child to its parent. Parents are named by publishers and need not be registered. No write closes a
circle, since a base model or version that would be its own ancestor is refused; the walk meets every node once anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from adapter.names import Reference
from registry.errors import BaseModelNotFound, LineageCycle, VersionNotFound
from registry.models import AdapterRow, BaseModelParentRow, BaseModelRow, VersionRow
from registry.resources import Lineage, LineageDirection, LineageEdge, LineageKey, LineageKind, LineageNode
from registry.store.adapters import get_adapter
from registry.store.database import Database

MAX_DEPTH = 32
# A walk down from a base model may meet every version that there is.
MAX_NODES = 1000

TRAINED_ON, CONTINUED_FROM = "trained_on", "continued_from"


class Lineages:
    """The lineage of everything in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def walk(self, start: LineageKey, direction: LineageDirection, *, max_depth: int = MAX_DEPTH) -> Lineage:
        """The start and what is within `max_depth` edges of it in one direction.

        Raises BaseModelNotFound, AdapterNotFound and VersionNotFound for the start.
        """
        async with self._database.read() as session:
            await _check_start(session, start)
            seen: dict[LineageKey, None] = {start: None}
            edges: dict[LineageEdge, None] = {}
            frontier, is_truncated = [start], False
            for _ in range(max_depth):
                found = await _edges_of(session, frontier, direction)
                frontier = []
                for edge in found:
                    end = edge.parent if direction is LineageDirection.ANCESTORS else edge.child
                    if end not in seen:
                        if len(seen) == MAX_NODES:
                            is_truncated = True
                            continue
                        seen[end] = None
                        frontier.append(end)
                    edges[edge] = None
                if not frontier:
                    break
            else:
                is_truncated = is_truncated or bool(await _edges_of(session, frontier, direction))
            digests = await _digests(session, seen)
        nodes = tuple(LineageNode(key, digests.get(key, "")) for key in seen)
        return Lineage(nodes, tuple(edges), is_truncated)


async def refuse_cycle(session: AsyncSession, key: LineageKey, parents: Iterable[LineageKey]) -> None:
    """Raises LineageCycle when something new is among the ancestors of what it says it was made from."""
    seen = set(parents)
    frontier = list(seen)
    while frontier and key not in seen:
        found = await _edges_of(session, frontier, LineageDirection.ANCESTORS)
        frontier = list({edge.parent for edge in found} - seen)
        seen.update(frontier)
    if key in seen:
        raise LineageCycle(f"{key.id} was named as what its own ancestors were made from; take another name")


def parents_of(edges: Iterable[tuple[str, str]]) -> list[LineageKey]:
    """The keys of a base model's parents, given as (base model, adapter version or '')."""
    found = []
    for base_model, version in edges:
        found.append(LineageKey(LineageKind.BASE_MODEL, base_model))
        if version:
            found.append(LineageKey(LineageKind.ADAPTER_VERSION, version))
    return found


async def _check_start(session: AsyncSession, start: LineageKey) -> None:
    if start.kind is LineageKind.ADAPTER_VERSION:
        reference = Reference.parse(start.id)
        assert reference.name is not None
        await get_adapter(session, reference.name)
        if await session.get(VersionRow, (reference.name, reference.number)) is None:
            raise VersionNotFound(f"no version {start.id}", metadata={"version": start.id})
    elif await session.get(BaseModelRow, start.id) is None:
        raise BaseModelNotFound(f"no base model {start.id!r}; add it first")


async def _edges_of(
    session: AsyncSession, frontier: Sequence[LineageKey], direction: LineageDirection
) -> list[LineageEdge]:
    """The edges from the frontier in one direction, in an order that does not change between calls."""
    models = [key.id for key in frontier if key.kind is LineageKind.BASE_MODEL]
    versions = [key.id for key in frontier if key.kind is LineageKind.ADAPTER_VERSION]
    queries = _up if direction is LineageDirection.ANCESTORS else _down
    found: list[LineageEdge] = []
    for query, read in queries(models, versions):
        for row in await session.execute(query):
            found += read(row)
    return found


Query = tuple[Select[*tuple[Any, ...]], Callable[[Any], list[LineageEdge]]]


def _up(models: list[str], versions: list[str]) -> list[Query]:
    queries: list[Query] = []
    if versions:
        of_version = select(VersionRow, AdapterRow.base_model).join(AdapterRow, AdapterRow.name == VersionRow.adapter)
        is_one = tuple_(VersionRow.adapter, VersionRow.number).in_(_pairs(versions))
        queries.append((of_version.where(is_one).order_by(VersionRow.adapter, VersionRow.number), _version_edges))
    if models:
        of_model = select(BaseModelParentRow).where(BaseModelParentRow.child.in_(models))
        queries.append((of_model.order_by(BaseModelParentRow.child, BaseModelParentRow.ordinal), _model_edges))
    return queries


def _down(models: list[str], versions: list[str]) -> list[Query]:
    queries: list[Query] = []
    edges = select(BaseModelParentRow).order_by(BaseModelParentRow.child, BaseModelParentRow.ordinal)
    of_version = select(VersionRow).order_by(VersionRow.adapter, VersionRow.number).limit(MAX_NODES + 1)
    if models:
        queries.append((edges.where(BaseModelParentRow.parent.in_(models)), _model_edge))
        trained = of_version.add_columns(AdapterRow.base_model).join(AdapterRow, AdapterRow.name == VersionRow.adapter)
        queries.append((trained.where(AdapterRow.base_model.in_(models)), _trained_on))
    if versions:
        continued = of_version.where(tuple_(VersionRow.parent_adapter, VersionRow.parent_number).in_(_pairs(versions)))
        queries.append((continued, lambda row: _continued_from(row[0])))
        queries.append((edges.where(BaseModelParentRow.adapter_version.in_(versions)), _merged_version))
    return queries


def _version_edges(row: Any) -> list[LineageEdge]:
    return [*_continued_from(row[0]), *_trained_on(row)]


def _trained_on(row: Any) -> list[LineageEdge]:
    version, base_model = row
    return [LineageEdge(_key_of(version), LineageKey(LineageKind.BASE_MODEL, base_model), TRAINED_ON)]


def _continued_from(version: VersionRow) -> list[LineageEdge]:
    if version.parent_adapter is None:
        return []
    parent = LineageKey(LineageKind.ADAPTER_VERSION, f"{version.parent_adapter}:{version.parent_number}")
    return [LineageEdge(_key_of(version), parent, CONTINUED_FROM)]


def _model_edges(row: Any) -> list[LineageEdge]:
    return [*_model_edge(row), *_merged_version(row)]


def _model_edge(row: Any) -> list[LineageEdge]:
    edge: BaseModelParentRow = row[0]
    child, parent = (LineageKey(LineageKind.BASE_MODEL, one) for one in (edge.child, edge.parent))
    return [LineageEdge(child, parent, edge.relation)]


def _merged_version(row: Any) -> list[LineageEdge]:
    edge: BaseModelParentRow = row[0]
    if not edge.adapter_version:
        return []
    child = LineageKey(LineageKind.BASE_MODEL, edge.child)
    return [LineageEdge(child, LineageKey(LineageKind.ADAPTER_VERSION, edge.adapter_version), edge.relation)]


def _key_of(version: VersionRow) -> LineageKey:
    return LineageKey(LineageKind.ADAPTER_VERSION, f"{version.adapter}:{version.number}")


def _pairs(versions: Iterable[str]) -> list[tuple[str | None, int | None]]:
    parsed = (Reference.parse(one) for one in versions)
    return [(one.name, one.number) for one in parsed]


async def _digests(session: AsyncSession, keys: Iterable[LineageKey]) -> dict[LineageKey, str]:
    """Of what is registered."""
    keys = list(keys)
    models = [key.id for key in keys if key.kind is LineageKind.BASE_MODEL]
    versions = [key.id for key in keys if key.kind is LineageKind.ADAPTER_VERSION]
    found = {}
    for name, digest in await session.execute(
        select(BaseModelRow.name, BaseModelRow.digest).where(BaseModelRow.name.in_(models))
    ):
        found[LineageKey(LineageKind.BASE_MODEL, name)] = digest
    if versions:
        is_one = tuple_(VersionRow.adapter, VersionRow.number).in_(_pairs(versions))
        for version in await session.scalars(select(VersionRow).where(is_one)):
            found[_key_of(version)] = version.digest
    return found
