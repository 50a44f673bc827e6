"""The desk: references to leases, all of a request's or none, whatever leaves memory or breaks on disk meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import pytest

from adapter.manifest import Manifest, ManifestFile
from adapter.names import Reference
from inference.adapters import AdapterDesk, Tier
from inference.errors import AdapterLoadFailed, AdapterLoading, AdapterNotFound
from inference.lora.staging import FilesNeeded
from inference.resolver import Version


def version_of(name: str) -> Version:
    manifest = Manifest((ManifestFile("weights", 1, f"sha256:{ord(name):064x}"),))
    return Version(name, 1, manifest.digest, "sha256:" + "b" * 64, manifest)


A, B = version_of("a"), version_of("b")


class Lease:
    def __init__(self, digest: str, held: Counter[str]) -> None:
        self.digest, self.size_bytes, self.follows = digest, 1, ""
        self._held = held
        held[digest] += 1

    def release(self) -> None:
        self._held[self.digest] -= 1


class Memory:
    """What the desk needs of Adapters; `ends` are raised by the next acquisitions, None lets one succeed."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.held: Counter[str] = Counter()
        self.asked: list[list[Path | None]] = []
        self.staged: list[str] = []
        self.ends: list[Exception | None] = []

    def needs_files(self, digest):
        return digest not in self.loaded

    def is_loaded(self, digest):
        return digest in self.loaded

    async def acquire_all(self, files):
        self.asked.append([one.folder for one in files])
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        self.loaded |= {one.digest for one in files}
        return [Lease(one.digest, self.held) for one in files]

    async def stage(self, files):
        self.staged.append(files.digest)
        return 7


class Place:
    """A resolver of two adapters that counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.forgotten: list[str] = []

    async def resolve(self, reference, *, request_key=""):
        found = {"a": A, "b": B}.get(reference.name)
        if found is None:
            raise AdapterNotFound("no such adapter")
        return found

    async def fetch(self, version):
        assert version.digest in KEPT, "what is fetched for a load is kept"
        self.fetched.append(version.adapter)
        return Path(f"{version.adapter}-{len(self.fetched)}")

    def forget(self, version):
        self.forgotten.append(version.adapter)


KEPT: Counter[str] = Counter()


@contextlib.contextmanager
def keep(digest):
    KEPT[digest] += 1
    try:
        yield
    finally:
        KEPT[digest] -= 1
        if not KEPT[digest]:
            del KEPT[digest]


@pytest.fixture
def memory():
    return Memory()


@pytest.fixture
def place():
    return Place()


@pytest.fixture
async def desk(place, memory):
    desk = AdapterDesk(place, memory, keep=keep)
    yield desk
    await desk.close()
    assert not KEPT


def references(*names: str) -> list[Reference]:
    return [Reference.parse(name) for name in names]


async def test_a_request_gets_its_adapters_in_its_order_by_one_acquisition(desk, memory, place):
    pairs = await desk.lease_all(references("b", "a", "b"))
    assert [(version, lease.digest) for version, lease in pairs] == [(v, v.digest) for v in (B, A, B)]
    assert len(memory.asked) == 1
    assert sorted(place.fetched) == ["a", "b"]


async def test_only_what_is_not_in_memory_is_fetched(desk, memory, place):
    memory.loaded.add(A.digest)
    await desk.lease_all(references("a", "b"))
    assert place.fetched == ["b"]
    assert memory.asked == [[None, Path("b-1")]]


async def test_one_name_that_is_not_found_leases_nothing(desk, memory):
    with pytest.raises(AdapterNotFound):
        await desk.lease_all(references("a", "nobody"))
    assert memory.asked == []


async def test_what_left_memory_in_the_meantime_is_fetched_after_all(desk, memory, place):
    memory.loaded |= {A.digest, B.digest}
    memory.ends = [FilesNeeded(B.digest), FilesNeeded(A.digest), None]
    await desk.lease_all(references("a", "b"))
    assert place.fetched == ["b", "a"]
    assert memory.asked[-1] == [Path("a-2"), Path("b-1")]


async def test_files_that_were_damaged_on_disk_are_fetched_once_more_and_no_more_often(desk, memory, place):
    damaged = AdapterLoadFailed("other bytes", metadata={"damaged": "true", "digest": B.digest})
    memory.ends = [damaged]
    await desk.lease_all(references("a", "b"))
    assert place.forgotten == ["b"]
    assert memory.asked[-1] == [Path("a-1"), Path("b-3")]
    memory.loaded.clear()
    memory.ends = [damaged, damaged]
    with pytest.raises(AdapterLoadFailed, match="other bytes"):
        await desk.lease_all(references("a", "b"))
    assert place.forgotten == ["b", "b"]


async def test_who_does_not_wait_is_told_so_and_all_that_is_cold_is_on_its_way(desk, memory):
    with pytest.raises(AdapterLoading, match="a:1 is being loaded"):
        await desk.lease_all(references("a", "b"), wait=False)
    while memory.loaded != {A.digest, B.digest}:
        await asyncio.sleep(0)
    pairs = await desk.lease_all(references("a", "b"), wait=False)
    assert len(pairs) == 2


async def test_an_adapter_is_brought_as_near_as_it_was_asked_for(desk, memory, place):
    assert await desk.prefetch(A, Tier.DISK) == A.manifest.size_bytes
    assert (place.fetched, memory.staged, memory.asked) == (["a"], [], [])
    assert await desk.prefetch(A, Tier.HOST) == 7
    assert (memory.staged, memory.asked) == ([A.digest], [])
    assert await desk.prefetch(A, Tier.ARENA) == 1
    assert memory.loaded == {A.digest}
    assert memory.held[A.digest] == 0
