"""The blob store on its own, and over gRPC where the order of messages matters."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import registry_service_pb2 as pb
from registry import spool as spool_module
from registry.blobs import CHUNK_BYTES, BlobStore
from registry.errors import (
    BlobCorrupted,
    BlobMismatch,
    BlobNotFound,
    BlobNotUploaded,
    BlobTooLarge,
    InvalidManifest,
    InvalidRequest,
    OffsetPastEnd,
    StorageFull,
)
from registry.shelves import FolderShelf
from registry.spool import Spool

BIG = bytes(range(256)) * 10_000 + b"the end"  # two chunks and a half


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def stream(data: bytes, size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def collect(chunks: AsyncIterator[bytes], found: list[bytes]) -> None:
    async for chunk in chunks:
        found.append(chunk)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    found = BlobStore(FolderShelf(tmp_path / "blobs"), Spool(tmp_path / "blobs" / "tmp"), max_bytes=4 * CHUNK_BYTES)
    found.open()
    return found


@pytest.fixture
def list_stored(tmp_path: Path) -> Callable[[], list[Path]]:
    return lambda: [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("data", [b"", b"x", BIG])
async def test_what_was_stored_is_read_back_from_any_offset(store, data):
    assert await store.receive(digest_of(data), len(data), stream(data))
    assert b"".join([chunk async for chunk in store.read(digest_of(data))]) == data
    for offset in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(data)):
        if offset <= len(data):
            chunks = [chunk async for chunk in store.read(digest_of(data), offset=offset)]
            assert b"".join(chunks) == data[offset:]
            assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)


async def test_what_is_there_is_not_missing_and_not_stored_again(store, list_stored):
    wanted = [(digest_of(BIG), len(BIG)), (digest_of(b"x"), 1)]
    assert await store.missing(wanted) == [digest_of(BIG), digest_of(b"x")]
    await store.receive(digest_of(BIG), len(BIG), stream(BIG))
    (path,) = list_stored()
    written = path.stat().st_mtime_ns
    assert not await store.receive(digest_of(BIG), len(BIG), stream(BIG))
    assert path.stat().st_mtime_ns == written
    assert await store.missing(wanted) == [digest_of(b"x")]


async def test_bytes_that_are_not_what_was_announced_are_refused_and_nothing_stays(store, list_stored):
    for digest, size in (
        (digest_of(b"other"), len(BIG)),
        (digest_of(BIG), len(BIG) - 1),
        (digest_of(BIG), len(BIG) + 1),
        (digest_of(BIG), 0),
    ):
        with pytest.raises(BlobMismatch):
            await store.receive(digest, size, stream(BIG))
    with pytest.raises(BlobTooLarge):
        await store.receive(digest_of(BIG), 4 * CHUNK_BYTES + 1, stream(BIG))
    assert list_stored() == []


async def broken(data: bytes) -> AsyncIterator[bytes]:
    """A stream that ends with an error after some data."""
    if data:
        yield data
    raise ConnectionError


async def test_what_came_over_a_stream_that_broke_is_gone_on_with(store, list_stored):
    digest = digest_of(BIG)
    with pytest.raises(ConnectionError):
        await store.receive(digest, len(BIG), broken(BIG[:CHUNK_BYTES]))
    assert await store.received(digest) == CHUNK_BYTES
    assert await store.missing([(digest, len(BIG))]) == [digest]
    with pytest.raises(ConnectionError):
        await store.receive(digest, len(BIG), broken(BIG[CHUNK_BYTES : CHUNK_BYTES + 7]), offset=CHUNK_BYTES)
    assert await store.received(digest) == CHUNK_BYTES + 7
    # Less than what came may be claimed: the rest is sent again.
    assert await store.receive(digest, len(BIG), stream(BIG[CHUNK_BYTES + 3 :]), offset=CHUNK_BYTES + 3)
    assert b"".join([chunk async for chunk in store.read(digest)]) == BIG
    assert (await store.received(digest), len(list_stored())) == (0, 1)


async def test_a_beginning_that_is_not_the_file_s_is_dropped_with_the_rest(store, list_stored):
    digest = digest_of(BIG)
    with pytest.raises(ConnectionError):
        await store.receive(digest, len(BIG), broken(b"!" * 100))
    with pytest.raises(BlobMismatch, match="sha256"):
        await store.receive(digest, len(BIG), stream(BIG[100:]), offset=100)
    assert list_stored() == []


async def test_more_than_what_came_cannot_be_claimed(store):
    digest = digest_of(BIG)
    with pytest.raises(ConnectionError):
        await store.receive(digest, len(BIG), broken(BIG[:100]))
    with pytest.raises(OffsetPastEnd, match="at most 100, found 101") as refused:
        await store.receive(digest, len(BIG), stream(BIG[101:]), offset=101)
    assert refused.value.metadata == {"received_bytes": "100"}
    assert await store.received(digest) == 100


async def test_what_a_running_stream_writes_is_nobody_else_s_to_go_on_with(store):
    digest = digest_of(BIG)
    go = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield BIG[:CHUNK_BYTES]
        await go.wait()
        yield BIG[CHUNK_BYTES : 2 * CHUNK_BYTES]
        yield BIG[2 * CHUNK_BYTES :]

    first = asyncio.create_task(store.receive(digest, len(BIG), waiting()))
    second = asyncio.create_task(store.receive(digest, len(BIG), stream(BIG)))
    assert await second
    assert await store.received(digest) == 0
    with pytest.raises(OffsetPastEnd):
        await store.receive(digest_of(BIG[:-1]), len(BIG) - 1, stream(b""), offset=1)
    go.set()
    assert await first  # both had all bytes, and the store has them once
    assert b"".join([chunk async for chunk in store.read(digest)]) == BIG


async def test_a_stream_that_breaks_before_its_first_byte_leaves_nothing(store, list_stored):
    with pytest.raises(ConnectionError):
        await store.receive(digest_of(BIG), len(BIG), broken(b""))
    assert list_stored() == []


async def test_a_full_disk_is_said_and_leaves_nothing(store, list_stored, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool_module.Upload, "sync", full)
    with pytest.raises(StorageFull):
        await store.receive(digest_of(BIG), len(BIG), stream(BIG))
    assert list_stored() == []


async def test_what_is_not_a_digest_never_becomes_a_path(store):
    for digest in ("", "../../etc/passwd", "sha256:../x", "sha256:" + 64 * "Z", "sha1:" + 40 * "0"):
        with pytest.raises(InvalidRequest):
            await store.receive(digest, 0, stream(b""))
        with pytest.raises(InvalidRequest):
            await anext(store.read(digest))


async def test_reading_what_is_not_there_or_past_its_end_is_an_error(store):
    with pytest.raises(BlobNotFound):
        await anext(store.read(digest_of(b"x")))
    await store.receive(digest_of(b"x"), 1, stream(b"x"))
    with pytest.raises(OffsetPastEnd):
        await anext(store.read(digest_of(b"x"), offset=2))


async def test_bytes_that_changed_are_never_read_to_the_end_and_are_replaced_by_an_upload(store, list_stored):
    await store.receive(digest_of(BIG), len(BIG), stream(BIG))
    (path,) = list_stored()
    path.chmod(0o644)
    path.write_bytes(b"!" + BIG[1:])
    for offset in (0, len(BIG) - 1):
        found: list[bytes] = []
        with pytest.raises(BlobCorrupted):
            await collect(store.read(digest_of(BIG), offset=offset), found)
        assert sum(map(len, found)) < len(BIG) - offset
    assert await store.receive(digest_of(BIG), len(BIG), stream(BIG))
    assert b"".join([chunk async for chunk in store.read(digest_of(BIG))]) == BIG


async def test_a_checked_out_folder_has_the_files_under_their_names(store):
    await store.receive(digest_of(b"x"), 1, stream(b"x"))
    await store.receive(digest_of(b""), 0, stream(b""))
    files = (ManifestFile("a/b", 1, digest_of(b"x")), ManifestFile("c", 0, digest_of(b"")))
    with store.check_out(Manifest(files)) as folder:
        assert ((folder / "a" / "b").read_bytes(), (folder / "c").read_bytes()) == (b"x", b"")
    assert not folder.exists()


async def test_a_folder_that_cannot_be_checked_out_says_why(store):
    await store.receive(digest_of(b"x"), 1, stream(b"x"))
    files = (
        ManifestFile("a", 1, digest_of(b"a")),
        ManifestFile("b", 1, digest_of(b"x")),
        ManifestFile("c", 1, digest_of(b"c")),
    )
    with pytest.raises(BlobNotUploaded) as refused, store.check_out(Manifest(files)):
        pass
    assert [reason[0] for reason in refused.value.reasons] == ["a", "c"]
    with pytest.raises(InvalidManifest), store.check_out(Manifest((ManifestFile("b", 2, digest_of(b"x")),))):
        pass


def test_opening_removes_what_a_killed_process_left_long_ago(store, tmp_path):
    old, new = tmp_path / "blobs" / "tmp" / "old", tmp_path / "blobs" / "tmp" / "new"
    (tmp_path / "blobs" / "tmp" / "folder").mkdir()
    for path in (old, new):
        path.write_bytes(b"x")
    long_ago = time.time() - 2 * spool_module.LEFTOVER_AGE_S
    os.utime(old, (long_ago, long_ago))
    os.utime(tmp_path / "blobs" / "tmp" / "folder", (long_ago, long_ago))
    store.open()
    assert [path.name for path in (tmp_path / "blobs" / "tmp").iterdir()] == ["new"]


def test_opening_passes_over_what_another_registry_removes_at_that_moment(store, tmp_path, monkeypatch):
    spool = tmp_path / "blobs" / "tmp"
    for name in ("gone", "kept"):
        (spool / name).write_bytes(b"x")
    listed = Path.iterdir

    def list_and_remove(folder):
        found = list(listed(folder))
        (spool / "gone").unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", list_and_remove)
    store.open()
    assert list(listed(spool)) == [spool / "kept"]


async def test_an_upload_whose_messages_come_in_another_order_is_refused(registry_server):
    header = pb.UploadBlobRequest(header=pb.BlobHeader(digest=digest_of(b"xx"), size_bytes=2))
    chunk = pb.UploadBlobRequest(chunk=b"x")
    large = pb.UploadBlobRequest(chunk=bytes(CHUNK_BYTES + 1))
    for messages in ([], [chunk], [header, header], [header, chunk, header], [pb.UploadBlobRequest()], [header, large]):
        with pytest.raises(InvalidRequest):
            await registry_server.ask(registry_server.stub.UploadBlob, iter(messages))
    answer = await registry_server.ask(registry_server.stub.UploadBlob, iter([header, chunk, chunk]))
    assert (answer.digest, answer.existed) == (digest_of(b"xx"), False)
    assert (await registry_server.ask(registry_server.stub.UploadBlob, iter([header]))).existed


def test_a_part_that_goes_while_parts_are_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "1" * 64
    spool = Spool(tmp_path)
    spool.prepare()
    upload = spool.begin(digest)
    upload.add(b"abc")
    upload.close()
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [*listed(folder, pattern), folder / "upload-gone"])
    assert spool.received(digest) == 3
    resumed = spool.go_on(digest, 3)
    assert resumed is not None
    resumed.close()
