"""The event stream over real gRPC: snapshot, resume, filters, refusals, and what it survives."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import grpc
import psycopg
import pytest

from loraplex.registry.v1 import watch_service_pb2 as pb
from registry.errors import (
    Draining,
    RegistryError,
    RevisionCompacted,
    RevisionFuture,
    StoreChanged,
)
from registry.fleet_messages import read_watch
from registry.resources import (
    AdapterVersion,
    Alias,
    AliasChanged,
    BaseModel,
    BaseModelCreated,
    Change,
    Progress,
    SnapshotEnd,
    SnapshotItem,
    VersionRegistered,
    VersionRetired,
    VersionUnretired,
    WatchMessage,
)
from registry.store import changes as changes_module
from registry.store.database import connection_string
from rpc.status import from_rpc_error


class Watcher:
    """One open watch, and everything it was told."""

    def __init__(self, registry_server: Any, **request: Any) -> None:
        self._call = registry_server.watch_stub.Watch(pb.WatchRequest(**request))
        self.messages: list[WatchMessage] = []

    async def next(self) -> WatchMessage:
        """The next message. Raises the classes of registry.errors."""
        try:
            async with asyncio.timeout(20):
                response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, RegistryError) from error
        assert response is not grpc.aio.EOF, "a watch ends only with an error"
        message = read_watch(response)
        assert message is not None
        self.messages.append(message)
        return message

    async def until(self, revision: int) -> list[WatchMessage]:
        """All messages until nothing is missing up to a revision."""
        while True:
            message = await self.next()
            if not isinstance(message, SnapshotItem) and message.revision >= revision:
                return self.messages

    async def until_error(self) -> None:
        """Reads until the stream ends."""
        while True:
            await self.next()

    @property
    def changes(self) -> list[Change]:
        """The revisions that it was told."""
        return [message for message in self.messages if isinstance(message, Change)]

    def close(self) -> None:
        """Ends the watch."""
        self._call.cancel()


@pytest.fixture
def watch(registry_server):
    """Opens watches that end with the test."""
    opened = []

    def open_watch(server: Any = registry_server, **request: Any) -> Watcher:
        opened.append(Watcher(server, **request))
        return opened[-1]

    yield open_watch
    for watcher in opened:
        watcher.close()


@pytest.fixture
async def history(client, base_model, new_adapter) -> int:
    """Seven revisions: base, sql:1, sql:2, production at 1, at 2, sql:1 retired and back. Returns the last."""
    for seed in (1, 2):
        await client.register(new_adapter(seed), adapter="sql", base_model=base_model)
    await client.promote("sql", 1)
    await client.promote("sql", 2)
    await client.retire("sql", 1)
    await client.unretire("sql", 1)
    return 7


async def test_a_resumed_watch_is_told_every_revision_with_its_event(client, watch, history):
    watcher = watch(after_revision=0)
    await watcher.until(history)
    assert [change.revision for change in watcher.changes] == list(range(1, history + 1))
    happenings = [event.happening for change in watcher.changes for event in change.events]
    assert [type(one) for one in happenings] == [
        BaseModelCreated,
        VersionRegistered,
        VersionRegistered,
        AliasChanged,
        AliasChanged,
        VersionRetired,
        VersionUnretired,
    ]
    assert happenings[0].base_model.modules == ()
    assert [target.version for target in happenings[3].alias.targets] == [1]
    assert happenings[3].versions[0].aliases == ("production",)
    assert happenings[2].version == dataclasses.replace(await client.get_version("sql", 2), aliases=())


async def test_a_watch_resumed_anywhere_is_the_rest_of_an_unbroken_one(watch, history):
    unbroken = watch(after_revision=0)
    await unbroken.until(history)
    for revision in range(history + 1):
        resumed = watch(after_revision=revision)
        await resumed.until(history)
        assert resumed.changes == unbroken.changes[revision:]


async def test_a_watch_that_missed_nothing_is_told_so_and_then_is_told_what_comes(client, watch, history):
    watcher = watch(after_revision=history)
    assert await watcher.next() == Progress(history)
    await client.promote("sql", 1)
    await watcher.until(history + 1)
    assert [change.revision for change in watcher.changes] == [history + 1]


async def test_an_idle_watch_is_told_again_and_again_that_nothing_happened(watch, history):
    watcher = watch(after_revision=history)
    assert [await watcher.next() for _ in range(3)] == [Progress(history)] * 3


async def test_a_snapshot_holds_what_exists_and_changes_go_on_after_it(client, watch, history):
    watcher = watch()
    await watcher.until(history)
    await client.promote("sql", 1, alias="canary")
    await watcher.until(history + 1)
    items = [message.item for message in watcher.messages if isinstance(message, SnapshotItem)]
    ends = [message for message in watcher.messages if isinstance(message, SnapshotEnd)]
    version = await client.get_version("sql", 2)
    assert [type(item) for item in items] == [BaseModel, AdapterVersion, Alias]
    assert (items[0].name, items[0].modules, items[1]) == ("base", (), version)
    assert (items[2].alias, items[2].targets[0].digest) == ("production", version.digest)
    assert ends == [SnapshotEnd(history, (await client.status()).store_id)]
    assert [change.revision for change in watcher.changes] == [history + 1]


async def test_a_snapshot_of_an_empty_registry_is_only_its_end(watch):
    message = await watch().next()
    assert isinstance(message, SnapshotEnd)
    assert message.revision == 0


async def test_a_snapshot_longer_than_a_page_has_everything_once(client, base_model, new_adapter, watch, monkeypatch):
    monkeypatch.setattr(changes_module, "PAGE", 2)
    folder = new_adapter(1)
    for name in ("a", "b", "c", "d", "e"):
        await client.register(folder, adapter=name, base_model=base_model)
        for alias in ("production", "canary"):
            await client.promote(name, 1, alias=alias)
    watcher = watch()
    await watcher.until(16)
    items = [message.item for message in watcher.messages if isinstance(message, SnapshotItem)]
    aliases = [(item.adapter, item.alias) for item in items if isinstance(item, Alias)]
    versions = [item.adapter for item in items if isinstance(item, AdapterVersion)]
    assert aliases == [(name, alias) for name in "abcde" for alias in ("canary", "production")]
    assert versions == list("abcde")


async def test_a_filtered_watch_is_told_its_base_models_events_and_progress_past_the_others(
    client, new_base_model, new_adapter, watch
):
    for seed, name in enumerate(("x", "y")):
        await client.create_base_model(name, new_base_model(seed))
        await client.register(new_adapter(1), adapter=f"on-{name}", base_model=name)
        await client.promote(f"on-{name}", 1)
    resumed, snapshot = watch(after_revision=0, base_model="x"), watch(base_model="y")
    await resumed.until(6)
    assert [change.revision for change in resumed.changes] == [1, 2, 3]
    assert resumed.messages[-1] == Progress(6)
    await snapshot.until(6)
    items = [message.item for message in snapshot.messages if isinstance(message, SnapshotItem)]
    assert [getattr(item, "adapter", getattr(item, "name", "")) for item in items] == ["y", "on-y", "on-y"]
    await client.promote("on-x", 1, alias="canary")
    await snapshot.until(7)
    assert snapshot.changes == []
    assert snapshot.messages[-1] == Progress(7)


async def test_a_place_that_cannot_be_resumed_from_is_refused(registry_server, watch, history):
    with pytest.raises(RevisionFuture):
        await watch(after_revision=history + 1).next()
    with pytest.raises(StoreChanged):
        await watch(after_revision=1, store_id="another").next()
    execute(registry_server, "UPDATE registry_head SET compacted_revision = 3")
    execute(registry_server, "DELETE FROM events WHERE revision <= 3")
    with pytest.raises(RevisionCompacted):
        await watch(after_revision=2).next()
    watcher = watch(after_revision=3)
    await watcher.until(history)
    assert [change.revision for change in watcher.changes] == [4, 5, 6, 7]


async def test_a_store_that_was_changed_under_a_watch_ends_it(registry_server, client, watch, history):
    watcher = watch(after_revision=history)
    await watcher.next()
    execute(registry_server, "UPDATE registry_head SET store_id = 'restored'")
    execute(registry_server, "NOTIFY loraplex_registry")
    with pytest.raises(StoreChanged):
        await watcher.until_error()


async def test_a_draining_registry_tells_its_watchers(registry_server, watch, history):
    watcher = watch(after_revision=history)
    await watcher.next()
    await registry_server.registry.drain()
    with pytest.raises(Draining) as told:
        await watcher.until_error()
    assert told.value.retry_after_s is not None


async def test_two_registries_on_one_database_serve_the_same_stream(
    registry_server, serve_here, client, watch, history
):
    async with serve_here(registry_server.settings) as other:
        here, there = watch(after_revision=0), watch(other, after_revision=0)
        await other.client.promote("sql", 1)
        await client.promote("sql", 2)
        await here.until(history + 2)
        await there.until(history + 2)
        assert here.changes == there.changes
        there.close()


async def test_a_listener_whose_backend_is_ended_listens_again(registry_server, client, watch, history):
    watcher = watch(after_revision=history)
    await watcher.next()
    # The listener is the one connection that has run LISTEN.
    ended = execute(
        registry_server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()",
    )
    assert len(ended) >= 1
    await client.promote("sql", 1)
    await watcher.until(history + 1)
    await client.promote("sql", 2)
    await watcher.until(history + 2)
    assert [change.revision for change in watcher.changes] == [history + 1, history + 2]


async def test_a_commit_without_a_notify_is_found_by_the_next_poll(settings, serve_here):
    async with serve_here(dataclasses.replace(settings, poll_s=0.05)) as server:
        watcher = Watcher(server, after_revision=0)
        execute(server, "UPDATE registry_head SET revision = revision + 1")
        await watcher.until(1)
        watcher.close()


async def test_a_watcher_that_stops_reading_for_many_pages_gets_them_all_later(registry_server, watch, history):
    """2 000 revisions are sixteen pages, and more than gRPC's own buffers hold."""
    last = history + 2_000
    slow, quick = watch(after_revision=history), watch(after_revision=history)
    await slow.next()
    document = execute(registry_server, "SELECT document FROM events WHERE revision = 4")[0][0]
    with connect(registry_server) as connection, connection.transaction():
        with connection.cursor().copy("COPY events (revision, ordinal, base_model, document) FROM STDIN") as copy:
            for revision in range(history + 1, last + 1):
                copy.write_row((revision, 0, "base", psycopg.types.json.Jsonb({**document, "revision": revision})))
        connection.execute("UPDATE registry_head SET revision = revision + 2000")
        connection.execute("NOTIFY loraplex_registry")
    for watcher in (quick, slow):
        await watcher.until(last)
        assert [change.revision for change in watcher.changes] == list(range(history + 1, last + 1))


async def test_a_writer_that_dies_between_update_and_commit_leaves_no_revision_behind(
    registry_server, client, watch, history
):
    watcher = watch(after_revision=history)
    writer = await psycopg.AsyncConnection.connect(connection_string(registry_server.settings.database_url))
    await writer.execute("UPDATE registry_head SET revision = revision + 1")
    await writer.execute("INSERT INTO events SELECT revision + 100, 0, base_model, document FROM events LIMIT 1")
    promotion = asyncio.create_task(client.promote("sql", 1))
    await wait_for_lock(registry_server)
    execute(registry_server, "SELECT pg_terminate_backend(%s)", writer.info.backend_pid)
    assert (await promotion).revision == history + 1
    await watcher.until(history + 1)
    assert [change.revision for change in watcher.changes] == [history + 1]
    await writer.close()


async def test_writers_at_once_make_dense_revisions_that_every_watcher_sees(
    registry_server, serve_here, client, watch, history
):
    async with serve_here(registry_server.settings) as other:
        watchers = [watch(server, after_revision=0) for server in (registry_server, other) for _ in range(3)]
        writers = [
            server.client.promote("sql", 1, alias=f"alias-{number}")
            for number in range(20)
            for server in (registry_server, other)
        ]
        answers = await asyncio.gather(*writers)
        assert sum(answer.changed for answer in answers) == 20
        for watcher in watchers:
            await watcher.until(history + 20)
            assert [change.revision for change in watcher.changes] == list(range(1, history + 21))
        for watcher in watchers[3:]:
            watcher.close()


def connect(server: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(connection_string(server.settings.database_url), autocommit=True)


def execute(server: Any, statement: str, *values: Any) -> list[Any]:
    with connect(server) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


async def wait_for_lock(server: Any) -> None:
    """Until some connection waits for another one's lock."""
    connection = await psycopg.AsyncConnection.connect(connection_string(server.settings.database_url), autocommit=True)
    async with connection, asyncio.timeout(10):
        while await (await connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchone() is None:
            pass
