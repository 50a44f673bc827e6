"""The file cache: whole folders or none, one transfer for many callers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.manifest import Manifest, ManifestFile
from inference.errors import AdapterLoadFailed, AdapterTooLarge, DiskCacheFull, RegistryUnreachable
from inference.resolver import Version
from inference.resolver.cache import FileCache

FILES = (
    ManifestFile("adapter_config.json", 2, "sha256:" + "1" * 64),
    ManifestFile("adapter_model.safetensors", 3, "sha256:" + "2" * 64),
)
MANIFEST = Manifest(FILES)
VERSION = Version("sql", 1, MANIFEST.digest, "sha256:" + "b" * 64, MANIFEST)


class Source:
    """Blobs that wait for `go`; `fail` names one that cannot be read."""

    def __init__(self, fail: str = "") -> None:
        self.reads: list[str] = []
        self.go = asyncio.Event()
        self.fail = fail

    async def read(self, digest: str, path: Path, *, size_bytes: int) -> None:
        self.reads.append(digest)
        await self.go.wait()
        if digest == self.fail:
            raise RegistryUnreachable("gone")
        path.write_text(digest)


async def test_callers_of_one_digest_share_one_transfer_even_when_the_first_gives_up(tmp_path: Path) -> None:
    source = Source()
    cache = FileCache(tmp_path, source.read, capacity_bytes=100)
    first = asyncio.create_task(cache.fetch(VERSION))
    others = [asyncio.create_task(cache.fetch(VERSION)) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    source.go.set()
    folders = await asyncio.gather(*others)
    assert len(set(folders)) == 1
    assert source.reads == [file.digest for file in FILES]
    assert {path.name for path in folders[0].iterdir()} == {file.path for file in FILES}


async def test_a_transfer_that_breaks_leaves_nothing_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    source = Source(fail=FILES[1].digest)
    source.go.set()
    cache = FileCache(tmp_path, source.read, capacity_bytes=100)
    with pytest.raises(RegistryUnreachable):
        await cache.fetch(VERSION)
    assert list(tmp_path.iterdir()) == []
    source.fail = ""
    assert (await cache.fetch(VERSION)).is_dir()


async def test_what_a_killed_process_left_behind_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / ".fetch-dead").mkdir()
    (tmp_path / ".drop-dead").mkdir()
    FileCache(tmp_path, Source().read, capacity_bytes=100)
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_is_an_error_of_this_adapter(tmp_path: Path) -> None:
    async def full(digest: str, path: Path, *, size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(AdapterLoadFailed, match="No space left"):
        await FileCache(tmp_path, full, capacity_bytes=100).fetch(VERSION)


# the budget


def version_of(number: int, size: int) -> Version:
    """An adapter of one file of so many bytes."""
    manifest = Manifest((ManifestFile("weights", size, f"sha256:{number:064x}"),))
    return Version(f"v{number}", 1, manifest.digest, "sha256:" + "b" * 64, manifest)


async def write_zeros(digest: str, path: Path, *, size_bytes: int) -> None:
    path.write_bytes(bytes(size_bytes))


def folders(cache: FileCache, *versions: Version) -> list[bool]:
    return [cache.has(version.digest) for version in versions]


async def test_the_least_recently_used_files_make_room_also_after_a_restart(tmp_path: Path) -> None:
    a, b, c, d = (version_of(number, 10) for number in range(4))
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=30)
    for number, version in enumerate((a, b, c)):
        folder = await cache.fetch(version)
        os.utime(folder, ns=(number, number))
    await cache.fetch(a)
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=30)
    await cache.fetch(d)
    assert folders(cache, a, b, c, d) == [True, False, True, True]
    cache.check_integrity()
    smaller = FileCache(tmp_path, write_zeros, capacity_bytes=20)
    assert folders(smaller, a, c, d) == [True, False, True]
    smaller.check_integrity()


async def test_what_a_load_reads_is_never_removed(tmp_path: Path) -> None:
    a, b, c = (version_of(number, 10) for number in range(3))
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=20)
    with cache.keep(a.digest), cache.keep(b.digest):
        await cache.fetch(a)
        await cache.fetch(b)
        with pytest.raises(DiskCacheFull, match="take 10 bytes; of 20 of the disk cache, 20 are being loaded"):
            await cache.fetch(c)
    with cache.keep(a.digest):
        await cache.fetch(c)
    assert folders(cache, a, b, c) == [True, False, True]
    cache.check_integrity()


async def test_a_transfer_under_way_has_its_room(tmp_path: Path) -> None:
    source = Source()
    cache = FileCache(tmp_path, source.read, capacity_bytes=5)
    first = asyncio.create_task(cache.fetch(VERSION))
    while not source.reads:
        await asyncio.sleep(0)
    with pytest.raises(DiskCacheFull):
        await cache.fetch(version_of(1, 1))
    source.fail = FILES[0].digest
    source.go.set()
    with pytest.raises(RegistryUnreachable):
        await first
    assert cache.used_bytes == 0


async def test_what_the_table_needs_leaves_last(tmp_path: Path) -> None:
    a, b, c, d = (version_of(number, 10) for number in range(4))
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=20, wanted=lambda: {a.digest})
    for version in (a, b, c):
        await cache.fetch(version)
    assert folders(cache, a, b, c) == [True, False, True]
    with cache.keep(c.digest):
        await cache.fetch(d)
    assert folders(cache, a, c, d) == [False, True, True]


async def test_files_larger_than_the_budget_are_refused_at_once_with_the_numbers(tmp_path: Path) -> None:
    kept, large = version_of(0, 10), version_of(1, 21)
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=20)
    await cache.fetch(kept)
    with pytest.raises(AdapterTooLarge, match="v1:1: its files take 21 bytes and the disk cache is 20"):
        await cache.fetch(large)
    assert folders(cache, kept) == [True]


async def test_a_folder_that_somebody_removed_is_fetched_again(tmp_path: Path) -> None:
    version = version_of(0, 10)
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=15)
    shutil.rmtree(await cache.fetch(version))
    assert (await cache.fetch(version)).is_dir()
    cache.forget(version.digest)
    cache.forget(version.digest)
    assert cache.used_bytes == 0
    assert list(tmp_path.iterdir()) == []


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.inference.resolver.test_cache import FileCache, version_of

async def read_half(digest, path, *, size_bytes):
    path.write_bytes(bytes(size_bytes // 2 if digest.endswith("1") else size_bytes))
    if digest.endswith("1"):
        print("half", flush=True)
        await asyncio.Event().wait()

async def main():
    cache = FileCache(Path(sys.argv[1]), read_half, capacity_bytes=100)
    await cache.fetch(version_of(0, 10))
    await cache.fetch(version_of(1, 10))

asyncio.run(main())
"""


async def test_a_process_killed_in_the_middle_leaves_no_half_folder(tmp_path: Path) -> None:
    whole, half = version_of(0, 10), version_of(1, 10)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), cwd=Path(__file__).parents[3], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"half\n"
    process.kill()
    await process.wait()
    assert len(list(tmp_path.iterdir())) == 2
    cache = FileCache(tmp_path, write_zeros, capacity_bytes=100)
    assert folders(cache, whole, half) == [True, False]
    cache.check_integrity()
    assert len(list(tmp_path.iterdir())) == 1
    assert (await cache.fetch(half) / "weights").stat().st_size == 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["fetch", "keep", "let go", "forget", "restart"]), st.integers(0, 6)), max_size=30
    )
)
def test_random_use_keeps_the_budget_and_all_that_is_kept(drawn: list[tuple[str, int]]) -> None:
    versions = [version_of(number, number + 1) for number in range(7)]

    async def play(root: Path) -> None:
        cache = FileCache(root, write_zeros, capacity_bytes=12)
        keeps: dict[int, contextlib.ExitStack] = {}
        for action, number in drawn:
            version = versions[number]
            if action == "fetch":
                with contextlib.suppress(DiskCacheFull):
                    assert (await cache.fetch(version) / "weights").stat().st_size == number + 1
            elif action == "keep" and number not in keeps and cache.has(version.digest):
                keeps[number] = contextlib.ExitStack()
                keeps[number].enter_context(cache.keep(version.digest))
            elif action == "let go" and number in keeps:
                keeps.pop(number).close()
            elif action == "forget" and number not in keeps:
                cache.forget(version.digest)
            elif action == "restart":
                keeps.clear()
                cache = FileCache(root, write_zeros, capacity_bytes=12)
            cache.check_integrity()
            assert all(cache.has(versions[number].digest) for number in keeps)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))
