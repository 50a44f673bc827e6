"""What was made from what, walked both ways, over real gRPC on a real Postgres."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loraplex.registry.v1 import registry_service_pb2 as pb
from registry.client import RegistryClient
from registry.errors import (
    AdapterNotFound,
    BaseModelNotFound,
    InvalidReference,
    InvalidRequest,
    LineageCycle,
    VersionNotFound,
)
from registry.resources import (
    BaseModelParent,
    BaseModelRelation,
    Lineage,
    LineageDirection,
    LineageKey,
    LineageKind,
)
from registry.store.lineage import MAX_DEPTH, MAX_NODES

DOWN = LineageDirection.DESCENDANTS
RELATION = BaseModelRelation


def model(name: str) -> LineageKey:
    return LineageKey(LineageKind.BASE_MODEL, name)


def version(name: str) -> LineageKey:
    return LineageKey(LineageKind.ADAPTER_VERSION, name)


def drawn(lineage: Lineage) -> tuple[list[str], set[tuple[str, str, str]]]:
    """Nodes in order, and edges as words."""
    return [one.key.id for one in lineage.nodes], {(one.child.id, one.relation, one.parent.id) for one in lineage.edges}


async def kept(server: Any) -> dict[str, list[Any]]:
    """Everything but which files were uploaded."""
    return {name: rows for name, rows in (await server.state()).items() if name != "blob_uses"}


@pytest.fixture
async def family(client: RegistryClient, new_base_model: Any, new_adapter: Callable[..., Any]) -> RegistryClient:
    """
    Org/Model <-quantized- small <-trained_on- sql:1 <-continued_from- sql:2
                             ^                                           ^
                             +--------------adapter_merge-- merged ------+
    """
    await client.create_base_model(
        "small", new_base_model(0), parents=[BaseModelParent("Org/Model", RELATION.QUANTIZED)]
    )
    await client.register(new_adapter(1), adapter="sql", base_model="small")
    await client.register(new_adapter(2), adapter="sql", base_model="small", parent="sql:1")
    await client.create_base_model(
        "merged", new_base_model(1), parents=[BaseModelParent("small", RELATION.ADAPTER_MERGE, "sql:2")]
    )
    return client


async def test_ancestors_lead_to_everything_that_it_was_made_from(family) -> None:
    lineage = await family.lineage(model("merged"))
    nodes, edges = drawn(lineage)
    assert nodes[0] == "merged"
    assert set(nodes[1:3]) == {"small", "sql:2"}
    assert set(nodes[3:]) == {"Org/Model", "sql:1"}
    assert edges == {
        ("merged", "adapter_merge", "small"),
        ("merged", "adapter_merge", "sql:2"),
        ("sql:2", "continued_from", "sql:1"),
        ("sql:2", "trained_on", "small"),
        ("sql:1", "trained_on", "small"),
        ("small", "quantized", "Org/Model"),
    }
    assert not lineage.is_truncated
    digests = {one.key.id: one.digest for one in lineage.nodes}
    assert digests["Org/Model"] == ""
    assert digests["small"] == (await family.get_base_model("small")).digest
    assert digests["sql:2"] == (await family.get_version("sql", 2)).digest


async def test_descendants_lead_to_everything_that_was_made_from_it(family) -> None:
    nodes, edges = drawn(await family.lineage(model("small"), DOWN))
    assert nodes[0] == "small"
    assert set(nodes[1:]) == {"merged", "sql:1", "sql:2"}
    assert ("sql:2", "continued_from", "sql:1") in edges
    assert ("merged", "adapter_merge", "sql:2") in edges
    nodes, edges = drawn(await family.lineage(version("sql:1"), DOWN))
    assert nodes == ["sql:1", "sql:2", "merged"]
    assert edges == {("sql:2", "continued_from", "sql:1"), ("merged", "adapter_merge", "sql:2")}


async def test_a_walk_stops_at_its_depth_and_says_that_there_is_more(family) -> None:
    near = await family.lineage(version("sql:2"), max_depth=1)
    assert set(drawn(near)[0]) == {"sql:2", "sql:1", "small"}
    assert near.is_truncated
    whole = await family.lineage(version("sql:2"), max_depth=2)
    assert set(drawn(whole)[0]) == {"sql:2", "sql:1", "small", "Org/Model"}
    assert not whole.is_truncated


async def test_a_walk_is_bounded_in_nodes(client, new_base_model) -> None:
    await client.create_base_model("root", new_base_model(0))
    parents = [BaseModelParent(f"parent-{number}", RELATION.MERGE) for number in range(MAX_NODES + 1)]
    await client.create_base_model("merge", new_base_model(1), parents=parents)
    lineage = await client.lineage(model("merge"))
    assert len(lineage.nodes) == MAX_NODES
    assert len(lineage.edges) == MAX_NODES - 1
    assert lineage.is_truncated


async def test_nothing_can_be_its_own_ancestor(client, registry_server, new_base_model, new_adapter) -> None:
    of = BaseModelParent
    await client.create_base_model("a", new_base_model(0), parents=[of("b", RELATION.FINETUNE)])
    await client.create_base_model("c", new_base_model(1), parents=[of("a", RELATION.FINETUNE)])
    merge = of("a", RELATION.ADAPTER_MERGE, "sql:1")
    await client.create_base_model("d", new_base_model(2), parents=[merge])
    before = await kept(registry_server)
    for attempt in (
        client.create_base_model("b", new_base_model(3), parents=[of("c", RELATION.FINETUNE)]),
        client.create_base_model("e", new_base_model(3), parents=[of("e", RELATION.FINETUNE)]),
        client.register(new_adapter(1), adapter="sql", base_model="d"),
    ):
        with pytest.raises(LineageCycle):
            await attempt
    assert await kept(registry_server) == before
    # The same words without the circle are welcome.
    assert (await client.register(new_adapter(1), adapter="sql", base_model="a")).created
    assert set(drawn(await client.lineage(model("d")))[0]) == {"d", "a", "sql:1", "b"}


async def test_a_start_that_is_not_there_or_not_one_is_refused(family, registry_server) -> None:
    for start, error in (
        (model("nothing"), BaseModelNotFound),
        (version("nothing:1"), AdapterNotFound),
        (version("sql:9"), VersionNotFound),
        (version("sql@production"), InvalidReference),
        (version("sql"), InvalidReference),
    ):
        with pytest.raises(error):
            await family.lineage(start)
    with pytest.raises(InvalidRequest):
        await family.lineage(model("small"), max_depth=MAX_DEPTH + 1)
    for request in (pb.GetLineageRequest(), pb.GetLineageRequest(base_model="small", direction=7)):
        with pytest.raises(InvalidRequest):
            await registry_server.ask(registry_server.stub.GetLineage, request)
