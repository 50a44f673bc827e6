"""Which version is merged as a reference moves on; nothing else depends on it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from adapter.manifest import manifest_of_adapter
from adapter.names import Reference
from inference import merger as merger_module
from inference.errors import AdapterLoadFailed, AdapterNotFound
from inference.lora.merging import Merged
from inference.merger import Merger
from inference.resolver import Version


class Desk:
    """Says what the reference means, and has its files."""

    def __init__(self, folders) -> None:
        self.folders = folders
        self.name: str | None = None
        self.asked = 0

    async def resolve(self, reference):
        self.asked += 1
        if self.name is None:
            raise AdapterNotFound(f"{reference} is not here")
        manifest = manifest_of_adapter(self.folders / self.name)
        return Version(self.name, 1, manifest.digest, "sha256:base", manifest)

    async def fetch(self, version):
        return self.folders / version.adapter


class Steps:
    """What the steps may use, one after the other."""

    def __init__(self) -> None:
        self.used: list[Merged | None] = []
        self.broken: set[str] = set()

    def read(self, files):
        if files.folder.name in self.broken:
            raise AdapterLoadFailed("its numbers are too large")
        return Merged(files.digest, {}, 7)

    async def use(self, merged) -> None:
        self.used.append(merged)

    @property
    def digests(self):
        return [merged and merged.digest for merged in self.used]


@pytest.fixture
def desk(adapters_dir):
    return Desk(adapters_dir)


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def merger(desk, steps):
    return Merger(Reference.parse("sql"), desk, read=steps.read, use=steps.use)


async def test_each_version_is_merged_once_after_the_one_before_has_gone(desk, steps, merger, adapters_dir):
    digests = [manifest_of_adapter(adapters_dir / name).digest for name in ("sql", "json")]
    for name in ("sql", "sql", "json", "json"):
        desk.name = name
        await merger.follow()
    assert steps.digests == [None, digests[0], None, digests[1]]


async def test_a_version_that_cannot_be_merged_leaves_none_merged_and_is_not_tried_again(desk, steps, merger):
    steps.broken, desk.name = {"json"}, "sql"
    await merger.follow()
    desk.name = "json"
    with pytest.raises(AdapterLoadFailed):
        await merger.follow()
    await merger.follow()
    assert steps.digests[2:] == [None]
    desk.name = "sql"
    await merger.follow()
    assert steps.digests[3:] == [None, steps.digests[1]]


async def test_it_goes_on_while_the_reference_means_nothing(desk, steps, merger, monkeypatch, caplog):
    monkeypatch.setattr(merger_module, "LOOK_AGAIN_S", 0)
    steps.used, used = [], asyncio.Event()

    async def use(merged):
        steps.used.append(merged)
        if merged is not None:
            used.set()

    merger._use = use
    running = asyncio.create_task(merger.run())
    while not caplog.records or desk.asked < 5:
        await asyncio.sleep(0)
    desk.name = "sql"
    await used.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert caplog.messages == ["sql@production is not merged and served on the fly: sql@production is not here"]
