"""Old events go, and nothing else: what stays, who may still resume, and what a paused watcher is told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import grpc
import psycopg
import pytest

from loraplex.registry.v1 import watch_service_pb2 as pb
from registry.errors import InvalidRequest, RegistryError, RevisionCompacted, StoreChanged
from registry.fleet_messages import read_watch
from registry.resources import Change, Progress, SnapshotEnd
from registry.store import compaction as compaction_module
from registry.store.database import connection_string
from rpc.status import from_rpc_error


@pytest.fixture
async def moved(client, base_model, new_adapter) -> int:
    """sql:1 and sql:2, and ten promotions between them. Returns the last revision."""
    for seed in (1, 2):
        await client.register(new_adapter(seed), adapter="sql", base_model=base_model)
    for number in range(10):
        last = await client.promote("sql", 1 + number % 2)
    return last.revision


def execute(server: Any, statement: str) -> list[Any]:
    with psycopg.connect(connection_string(server.settings.database_url), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def events_left(server: Any) -> list[int]:
    return [row[0] for row in execute(server, "SELECT revision FROM events ORDER BY revision")]


async def read_from(server: Any, after: int, up_to: int) -> list[int]:
    """Revisions that a new watch is told. Raises the classes of registry.errors."""
    revisions = []
    async for message in server.client.watch(after_revision=after):
        if isinstance(message, Change):
            revisions.append(message.revision)
        if isinstance(message, Change | Progress | SnapshotEnd) and message.revision >= up_to:
            return revisions
    raise AssertionError("a watch does not end")


async def test_a_revision_stays_while_either_limit_covers_it(registry_server, client, moved):
    nothing = await client.upkeep.compact(keep_revisions=3, keep_s=3600)
    assert (nothing.compacted_revision, nothing.removed_events) == (0, 0)
    execute(registry_server, f"UPDATE audit_entries SET time = time - interval '2 days' WHERE revision <= {moved - 5}")
    few = await client.upkeep.compact(keep_revisions=8, keep_s=3600)
    assert (few.compacted_revision, few.removed_events, few.revision) == (moved - 8, moved - 8, moved)
    more = await client.upkeep.compact(keep_revisions=3, keep_s=3600)
    assert (more.compacted_revision, more.removed_events) == (moved - 5, 3)
    everything = await client.upkeep.compact(keep_revisions=0, keep_s=0)
    assert everything.compacted_revision == everything.revision == moved + 2  # each of the two before was noted
    assert events_left(registry_server) == []


async def test_only_events_go(registry_server, client, moved):
    before = await registry_server.state()
    await client.upkeep.compact(keep_revisions=0, keep_s=0)
    after = await registry_server.state()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"events", "registry_head", "requests", "audit_entries"}
    assert after["audit_entries"][:-1] == before["audit_entries"]
    assert (await client.get_adapter("sql")).aliases[0].targets[0].version == 2
    assert len(await client.list_alias_changes("sql")) == 10


async def test_a_compaction_that_removed_something_is_in_the_audit_log(client, moved):
    await client.upkeep.compact(keep_revisions=moved, keep_s=0)
    assert (await client.admin.list_audit_entries())[0].revision == moved
    await client.upkeep.compact(keep_revisions=moved - 2, keep_s=0)
    entry = (await client.admin.list_audit_entries())[0]
    assert (entry.revision, entry.actor, entry.action, entry.resource) == (
        moved + 1,
        "anonymous",
        "CompactEvents",
        "events",
    )
    assert json.loads(entry.after) == {"compacted_revision": 2, "removed_events": 2}


async def test_what_is_kept_can_be_resumed_from_and_what_is_gone_cannot(registry_server, client, moved):
    done = await client.upkeep.compact(keep_revisions=4, keep_s=0)
    kept = list(range(done.compacted_revision + 1, moved + 1))
    assert await read_from(registry_server, done.compacted_revision, moved) == kept
    call = registry_server.watch_stub.Watch(pb.WatchRequest(after_revision=done.compacted_revision - 1))
    with pytest.raises(RevisionCompacted, match="take a snapshot") as told:
        await read_raw(call)
    assert told.value.metadata["compacted_revision"] == str(done.compacted_revision)
    # The client takes the snapshot by itself.
    assert await read_from(registry_server, done.compacted_revision - 1, moved) == []
    assert (await client.promote("sql", 1)).revision == moved + 2


async def read_raw(call: Any) -> Any:
    try:
        async with asyncio.timeout(20):
            return await call.read()
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, RegistryError) from error


async def read_changes(call: Any, told: list[int]) -> None:
    """Collects the revisions of a stream until it fails."""
    while True:
        message = read_watch(await read_raw(call))
        if isinstance(message, Change):
            told.append(message.revision)


async def test_a_paused_watcher_gets_an_unbroken_run_and_then_the_news_that_the_rest_is_gone(
    registry_server, client, moved, append_events
):
    """10 000 events are more than gRPC's and our own buffers hold, so the stream stands until it is read."""
    call = registry_server.watch_stub.Watch(pb.WatchRequest(after_revision=moved))
    await call.read()
    head = append_events(registry_server.settings.database_url, 10_000)
    assert await read_from(registry_server, moved, head) == list(range(moved + 1, head + 1))  # one that is not paused
    await client.upkeep.compact(keep_revisions=10, keep_s=0)
    told = []
    with pytest.raises(RevisionCompacted):
        await read_changes(call, told)
    assert told == list(range(moved + 1, moved + 1 + len(told)))
    assert 0 < len(told) < 10_000


async def test_a_client_that_paused_goes_on_with_a_snapshot(registry_server, client, moved, append_events):
    seen = []
    watch = client.watch(after_revision=moved)
    assert await anext(watch) == Progress(moved)
    head = append_events(registry_server.settings.database_url, 10_000)
    await read_from(registry_server, moved, head)
    await client.upkeep.compact(keep_revisions=10, keep_s=0)
    async with asyncio.timeout(30):
        async for message in watch:
            seen.append(message)
            if isinstance(message, SnapshotEnd):
                break
    changes = [message.revision for message in seen if isinstance(message, Change)]
    assert changes == list(range(moved + 1, moved + 1 + len(changes)))
    assert seen[-1].revision == head + 1  # the compaction's entry in the audit log
    await watch.aclose()


async def test_batches_leave_no_revision_behind(registry_server, client, moved, monkeypatch):
    monkeypatch.setattr(compaction_module, "BATCH", 3)
    done = await client.upkeep.compact(keep_revisions=2, keep_s=0)
    assert done.removed_events == moved - 2
    assert events_left(registry_server) == [moved - 1, moved]


async def test_registries_that_compact_at_once_remove_each_event_once(
    registry_server, serve_here, client, moved, monkeypatch
):
    monkeypatch.setattr(compaction_module, "BATCH", 2)
    async with serve_here(registry_server.settings) as other:
        done = await asyncio.gather(
            *(server.client.upkeep.compact(keep_revisions=1, keep_s=0) for server in (registry_server, other) * 3)
        )
    # A compaction that was noted is a revision too, so a later one may find the last event old enough.
    assert sum(one.removed_events for one in done) == moved - len(events_left(registry_server))
    assert len(events_left(registry_server)) <= 1
    assert max(one.compacted_revision for one in done) >= moved - 1


async def test_a_registry_compacts_by_itself(registry_server, serve_here, client, moved):
    settings = dataclasses.replace(registry_server.settings, keep_revisions=2, keep_days=0, compact_every_s=0.05)
    async with serve_here(settings) as other, asyncio.timeout(20):
        while (await other.client.status()).compacted_revision < moved - 2:
            pass
    assert events_left(registry_server) == [moved - 1, moved]


async def test_a_registry_keeps_ten_thousand_revisions_by_default(registry_server, client, moved, append_events):
    execute(registry_server, "UPDATE audit_entries SET time = time - interval '1 year'")
    assert (await client.upkeep.compact()).removed_events == 0
    head = append_events(registry_server.settings.database_url, 10_000)
    execute(registry_server, "UPDATE audit_entries SET time = time - interval '31 days'")
    assert (await client.upkeep.compact()).compacted_revision == head - 10_000


async def test_a_time_before_now_is_refused(client, moved):
    with pytest.raises(InvalidRequest) as refused:
        await client.upkeep.compact(keep_s=-1)
    assert refused.value.field == "keep"


async def test_an_older_copy_of_the_database_ends_watches_and_makes_clients_take_a_snapshot(
    registry_server, serve_here, client, moved, connect_to, copy_of_database
):
    """A copy without the last promotions comes up under another store id, as a restored backup does."""
    url = copy_of_database(registry_server.settings.database_url)
    later = await client.promote("sql", 1)
    with connect_to(url) as connection:
        connection.execute("UPDATE registry_head SET store_id = 'restored'")
    watch = client.watch(after_revision=later.revision, store_id=(await client.status()).store_id)
    assert await anext(watch) == Progress(later.revision)
    await watch.aclose()
    restored = dataclasses.replace(registry_server.settings, database_url=url)
    async with serve_here(restored) as other:
        # The revision exists in both stores from the next write on; the id tells them apart.
        await other.client.promote("sql", 1, alias="canary")
        raw = other.watch_stub.Watch(
            pb.WatchRequest(after_revision=later.revision, store_id=(await client.status()).store_id)
        )
        with pytest.raises(StoreChanged):
            await read_raw(raw)
        seen = []
        async for message in other.client.watch(
            after_revision=later.revision, store_id=(await client.status()).store_id
        ):
            seen.append(message)
            if isinstance(message, SnapshotEnd):
                break
        assert seen[-1] == SnapshotEnd(later.revision, "restored")
