"""The watcher: what is served follows what is promoted, only once it is ready, and never to something worse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapter.manifest import Manifest, ManifestFile
from inference.errors import (
    AdapterLoadFailed,
    AdapterMemoryFull,
    DiskCacheFull,
    InferenceError,
    RegistryUnreachable,
)
from inference.lora.host_cache import HostCache
from inference.prefetching import Prefetcher
from inference.resolver import Version
from inference.resolver.registry import to_version
from inference.resolver.table import Key, Table
from inference.tiers import PREFETCH_LABEL, Tier
from inference.watcher import Watcher
from registry.resources import (
    AdapterVersion,
    Alias,
    AliasChanged,
    AliasTarget,
    Change,
    Event,
    Provenance,
    SnapshotEnd,
    SnapshotItem,
    VersionRegistered,
    VersionState,
    WatchMessage,
    Worker,
    WorkerAdapterState,
)

KEY = Key("sql", "production")
LIMIT_S = 20.0


def make_version(number: int, **labels: str) -> AdapterVersion:
    manifest = Manifest((ManifestFile("adapter_config.json", 2, "sha256:" + f"{number:064x}"),))
    return AdapterVersion(
        adapter="sql", number=number, digest=manifest.digest, base_model="base", base_model_digest="sha256:" + "b" * 64,
        manifest=manifest, rank=8, alpha=8.0, target_modules=(), features=(), state=VersionState.VALIDATED,
        size_bytes=2, provenance=Provenance(labels={PREFETCH_LABEL: labels["prefetch"]} if labels else {}),
    )  # fmt: skip


def promote(number: int, revision: int) -> Change:
    version = make_version(number)
    alias = Alias("sql", "production", (AliasTarget(number, version.digest),))
    return Change(revision, (Event(revision, datetime.now(UTC), AliasChanged(alias, (version,))),))


class World:
    """A registry that says what the test puts into `messages`, and a memory whose loads wait for the test."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[WatchMessage] = asyncio.Queue()
        self.loads: list[int] = []
        self.prefetched: list[tuple[int, Tier]] = []
        self.free_bytes = 2**20
        self.host = HostCache(2**20)
        self.retired: list[str] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.errors: dict[int, list[Exception]] = {}
        self.account: Worker | None = None

    def gate(self, number: int) -> asyncio.Event:
        return self.gates.setdefault(number, asyncio.Event())

    async def watch(self, **_: Any) -> AsyncIterator[WatchMessage]:
        while True:
            yield await self.messages.get()

    async def report_worker(self, worker: Worker, **_: Any) -> int:
        self.account = worker
        return 0

    async def load(self, version: Version) -> int:
        self.loads.append(version.number)
        await self.gate(version.number).wait()
        if self.errors.get(version.number):
            raise self.errors[version.number].pop(0)
        return 2

    async def prefetch(self, version: Version, tier: Tier) -> int:
        self.prefetched.append((version.number, tier))
        if self.errors.get(version.number):
            raise self.errors[version.number].pop(0)
        return 2

    def loaded(self) -> list[Any]:
        return []

    def fits_free(self, num_bytes: int) -> bool:
        return num_bytes <= self.free_bytes

    def retire(self, digest: str) -> None:
        self.retired.append(digest)


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[tuple[World, Table]]:
    world, table = World(), Table()
    fake: Any = world
    identity = Worker("w", "127.0.0.1:1", "base", "sha256:" + "b" * 64, 0, ())
    prefetcher = Prefetcher(fake, fake)
    watcher = Watcher(
        fake, table, fake, fake, prefetcher=prefetcher, table_path=folder / "table.json", identity=identity
    )
    task = asyncio.create_task(watcher.run())
    try:
        yield world, table
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def served(table: Table) -> int:
    split = table.serving.get(KEY)
    return split.main.number if split else 0


async def test_ten_promotions_in_a_row_load_the_first_and_the_last(tmp_path: Path) -> None:
    async with watching(tmp_path) as (world, table):
        for number in range(1, 11):
            world.messages.put_nowait(promote(number, revision=number))
        await until(lambda: table.revision == 10 and world.loads != [])
        world.gate(world.loads[0]).set()
        world.gate(10).set()
        await until(lambda: served(table) == 10)
        assert len(world.loads) <= 2
        assert world.loads[-1] == 10


async def test_what_is_served_does_not_change_before_the_new_version_is_ready_and_then_the_old_one_goes(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path) as (world, table):
        world.gate(1).set()
        world.messages.put_nowait(promote(1, revision=1))
        await until(lambda: served(table) == 1)
        world.messages.put_nowait(promote(2, revision=2))
        await until(lambda: 2 in world.loads)
        assert served(table) == 1
        assert world.retired == []
        world.gate(2).set()
        await until(lambda: served(table) == 2)
        assert world.retired == [make_version(1).digest]


async def test_a_version_that_is_refused_leaves_the_old_one_serving_and_is_reported_with_its_reason(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path) as (world, table):
        for number in (1, 2, 3):
            world.gate(number).set()
        world.errors[2] = [AdapterLoadFailed("the file is rotten", reasons=("rotten", "and old"))]
        world.messages.put_nowait(promote(1, revision=1))
        await until(lambda: served(table) == 1)
        world.messages.put_nowait(promote(2, revision=2))

        def is_reported() -> bool:
            adapters = world.account.adapters if world.account else ()
            return any(one.failure == "the file is rotten; and old" for one in adapters if one.version == 2)

        await until(is_reported)
        assert world.account is not None
        states = {one.version: one.state for one in world.account.adapters}
        assert states == {1: WorkerAdapterState.READY, 2: WorkerAdapterState.FAILED}
        assert served(table) == 1
        world.messages.put_nowait(promote(3, revision=3))
        await until(lambda: served(table) == 3)


@pytest.mark.parametrize("error", [RegistryUnreachable, AdapterMemoryFull, DiskCacheFull])
async def test_what_passes_by_waiting_is_tried_again(tmp_path: Path, error: type[InferenceError]) -> None:
    async with watching(tmp_path) as (world, table):
        world.gate(1).set()
        world.errors[1] = [error("not now")]
        world.messages.put_nowait(promote(1, revision=1))
        await until(lambda: served(table) == 1)
        assert world.loads == [1, 1]


async def test_an_exact_version_that_was_resolved_is_saved_too(tmp_path: Path) -> None:
    async with watching(tmp_path) as (_, table):
        table.remember(to_version(make_version(3)))
        await until(lambda: ("sql", 3) in Table.load(tmp_path / "table.json").versions)


async def test_a_snapshot_replaces_what_was_known_and_is_saved(tmp_path: Path) -> None:
    async with watching(tmp_path) as (world, table):
        for number in (1, 2):
            world.gate(number).set()
        world.messages.put_nowait(promote(1, revision=1))
        await until(lambda: served(table) == 1)
        version = make_version(2)
        alias = Alias("sql", "canary", (AliasTarget(2, version.digest),))
        for item in (alias, version):
            world.messages.put_nowait(SnapshotItem(item))
        world.messages.put_nowait(SnapshotEnd(7, "another store"))
        await until(lambda: set(table.serving) == {Key("sql", "canary")})
        assert world.retired == [make_version(1).digest]
        await until(lambda: Table.load(tmp_path / "table.json").serving == table.serving)
        assert Table.load(tmp_path / "table.json").store_id == "another store"


def register(version: AdapterVersion, revision: int) -> Change:
    return Change(revision, (Event(revision, datetime.now(UTC), VersionRegistered(version)),))


async def test_a_version_with_the_label_is_brought_to_its_tier_as_soon_as_it_is_registered(tmp_path: Path) -> None:
    async with watching(tmp_path) as (world, _):
        world.errors[1] = [RegistryUnreachable("not now")]
        tiers = ("disk", "nowhere", "host", "arena")
        for number, word in enumerate(tiers, start=1):
            world.messages.put_nowait(register(make_version(number, prefetch=word), revision=number))
        world.messages.put_nowait(register(make_version(5), revision=5))
        world.messages.put_nowait(SnapshotItem(make_version(6, prefetch="host")))
        await until(lambda: len(world.prefetched) == 4)
        assert world.prefetched == [(1, Tier.DISK), (3, Tier.HOST), (4, Tier.ARENA), (6, Tier.HOST)]


async def test_nobody_leaves_the_arena_for_a_wish(tmp_path: Path) -> None:
    async with watching(tmp_path) as (world, _):
        world.free_bytes = 1
        world.messages.put_nowait(register(make_version(1, prefetch="arena"), revision=1))
        await until(lambda: len(world.prefetched) == 1)
        world.host = HostCache(1)
        world.messages.put_nowait(register(make_version(2, prefetch="arena"), revision=2))
        await until(lambda: len(world.prefetched) == 2)
        assert world.prefetched == [(1, Tier.HOST), (2, Tier.DISK)]
