"""The file cache: whole folders or none, one transfer for many callers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapter.manifest import Manifest, ManifestFile
from inference.errors import AdapterLoadFailed, RegistryUnreachable
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
    cache = FileCache(tmp_path, source.read)
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
    cache = FileCache(tmp_path, source.read)
    with pytest.raises(RegistryUnreachable):
        await cache.fetch(VERSION)
    assert list(tmp_path.iterdir()) == []
    source.fail = ""
    assert (await cache.fetch(VERSION)).is_dir()


async def test_what_a_killed_process_left_behind_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / ".fetch-dead").mkdir()
    FileCache(tmp_path, Source().read)
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_is_an_error_of_this_adapter(tmp_path: Path) -> None:
    async def full(digest: str, path: Path, *, size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(AdapterLoadFailed, match="No space left"):
        await FileCache(tmp_path, full).fetch(VERSION)
