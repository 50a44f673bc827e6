"""Aliases that split by weight, over real gRPC: who gets which side, and how a split begins, changes and ends."""

from __future__ import annotations

import pytest

from adapter.splits import choose_side
from loraplex.registry.v1 import registry_service_pb2 as pb
from registry.errors import (
    AliasMoved,
    AliasNotFound,
    InvalidRequest,
    NoEarlierTarget,
    NotImplementedYet,
    VersionInUse,
    VersionRetired,
)
from registry.resources import AliasChanged, Change

KEYS = [f"request-{number}" for number in range(40)]


@pytest.fixture
async def three(client, base_model, new_adapter) -> None:
    """sql:1, sql:2 and sql:3, with production at sql:1."""
    for seed in (1, 2, 3):
        await client.register(new_adapter(seed), adapter="sql", base_model=base_model)
    await client.promote("sql", 1)


def shares(alias) -> dict[int, int]:
    return {target.version: target.weight for target in alias.targets}


async def test_a_canary_takes_its_share_and_leaves_the_rest(client, three):
    canary = await client.promote("sql", 2, canary_weight=1000)
    assert (shares(canary.alias), canary.changed) == ({1: 9000, 2: 1000}, True)
    assert shares(await alias_of(client)) == {1: 9000, 2: 1000}
    assert (await client.get_version("sql", 2)).aliases == ("production",)


async def alias_of(client):
    (alias,) = (await client.get_adapter("sql")).aliases
    return alias


async def test_a_key_resolves_to_the_side_that_the_contract_says(client, three):
    await client.promote("sql", 2, canary_weight=3000)
    for key in KEYS:
        found = await client.resolve("sql", request_key=key)
        assert found.version.number == choose_side("sql", "production", [(1, 7000), (2, 3000)], key)
    assert (await client.resolve("sql")).version.number == 1


async def test_a_third_version_takes_from_both_sides_in_proportion(client, three):
    await client.promote("sql", 2, canary_weight=1000)
    assert shares((await client.promote("sql", 3, canary_weight=1000)).alias) == {1: 8100, 2: 900, 3: 1000}


async def test_a_canary_can_grow_to_be_the_main_target(client, three):
    await client.promote("sql", 2, canary_weight=1000)
    grown = await client.promote("sql", 2, canary_weight=6000, expected_version=1)
    assert [target.version for target in grown.alias.targets] == [2, 1]
    with pytest.raises(AliasMoved, match="to point at 1"):
        await client.promote("sql", 2, canary_weight=7000, expected_version=1)


@pytest.mark.parametrize("weight", [0, 10_000])
async def test_promoting_all_of_it_ends_a_split(client, three, weight):
    await client.promote("sql", 2, canary_weight=1000)
    assert shares((await client.promote("sql", 2, canary_weight=weight)).alias) == {2: 10_000}


async def test_rolling_back_ends_a_split_however_often_it_grew(registry_server, client, three):
    for weight in (1000, 2000, 6000):
        await client.promote("sql", 2, canary_weight=weight)
    answer = await roll_back(registry_server)
    assert {target.version: target.weight for target in answer.alias.targets} == {1: 10_000}
    with pytest.raises(NoEarlierTarget):
        await roll_back(registry_server)


async def roll_back(server):
    return await server.ask(server.stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))


async def test_rolling_back_a_finished_canary_goes_to_the_version_before_it(registry_server, client, three):
    await client.promote("sql", 2, canary_weight=1000)
    await client.promote("sql", 2)
    answer = await roll_back(registry_server)
    assert [target.version for target in answer.alias.targets] == [1]
    answer = await roll_back(registry_server)  # and back again, never into the split
    assert [target.version for target in answer.alias.targets] == [2]


async def test_the_same_canary_again_changes_nothing(client, three):
    first = await client.promote("sql", 2, canary_weight=1000)
    again = await client.promote("sql", 2, canary_weight=1000)
    assert (again.changed, again.revision) == (False, first.revision)


async def test_a_dry_run_says_how_it_would_split_and_changes_nothing(registry_server, client, three):
    before = await registry_server.state()
    planned = await client.promote("sql", 2, canary_weight=1000, validate_only=True)
    assert shares(planned.alias) == {1: 9000, 2: 1000}
    assert await registry_server.state() == before


async def test_watchers_are_told_of_a_split_with_all_its_versions(client, three):
    revision = (await client.promote("sql", 2, canary_weight=1000)).revision
    async for message in client.watch(after_revision=revision - 1):
        assert isinstance(message, Change)
        (event,) = message.events
        assert isinstance(event.happening, AliasChanged)
        assert shares(event.happening.alias) == {1: 9000, 2: 1000}
        assert [version.number for version in event.happening.versions] == [1, 2]
        break


async def test_the_history_keeps_the_shares(client, three):
    await client.promote("sql", 2, canary_weight=1000)
    change, _ = await client.list_alias_changes("sql")
    assert [(one.version, one.weight) for one in change.after] == [(1, 9000), (2, 1000)]


async def test_a_canary_needs_something_to_share_with(registry_server, client, three):
    before = await registry_server.state()
    with pytest.raises(AliasNotFound, match="promote a version to it first"):
        await client.promote("sql", 2, alias="beta", canary_weight=1000)
    with pytest.raises(InvalidRequest, match="points at 1") as caught:
        await client.promote("sql", 1, canary_weight=1000)
    assert caught.value.field == "canary_weight"
    with pytest.raises(InvalidRequest, match="at most 10000"):
        await client.promote("sql", 2, canary_weight=10_001)
    assert await registry_server.state() == before


async def test_shadow_targets_are_reserved(registry_server, three):
    request = pb.PromoteAdapterVersionRequest(adapter="sql", version=2, shadow=True)
    with pytest.raises(NotImplementedYet, match="shadow"):
        await registry_server.ask(registry_server.stub.PromoteAdapterVersion, request)


async def test_a_version_with_a_share_is_not_retired_but_by_force_which_breaks_only_its_side(client, three):
    await client.promote("sql", 2, canary_weight=3000)
    with pytest.raises(VersionInUse, match="sql@production"):
        await client.retire("sql", 2)
    retired = await client.retire("sql", 2, force=True)
    assert retired.aliases == ("production",)  # what the force broke
    for key in KEYS:
        if choose_side("sql", "production", [(1, 7000), (2, 3000)], key) == 1:
            assert (await client.resolve("sql", request_key=key)).version.number == 1
        else:
            with pytest.raises(VersionRetired):
                await client.resolve("sql", request_key=key)
