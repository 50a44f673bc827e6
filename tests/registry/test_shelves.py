"""Where blobs may lie: the same promises in a folder and on an fsspec file system, and no scheme but the allowed."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import fsspec
import pytest

from adapter.manifest import Manifest, ManifestFile
from registry.blobs import BlobStore
from registry.errors import BlobCorrupted, StorageUnknown
from registry.shelves import FolderShelf, RemoteShelf, Shelf, open_shelf
from registry.spool import Spool

DATA = b"some bytes" * 300_000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(params=["folder", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Shelf:
    if request.param == "folder":
        return FolderShelf(tmp_path / "shelf")
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store = {}  # the class would share one among all tests
    return RemoteShelf(memory, "/bucket/prefix/")


@pytest.fixture
def store(shelf: Shelf, tmp_path: Path) -> BlobStore:
    found = BlobStore(shelf, Spool(tmp_path / "shelf" / "tmp"), max_bytes=2**24)
    found.open()
    return found


async def stream(data: bytes):
    yield data[:1000]
    yield data[1000:]


async def test_a_file_comes_back_from_every_shelf(store, shelf):
    assert await store.receive(DIGEST, len(DATA), stream(DATA))
    assert not await store.receive(DIGEST, len(DATA), stream(DATA))
    assert b"".join([chunk async for chunk in store.read(DIGEST, offset=5)]) == DATA[5:]
    with store.check_out(Manifest((ManifestFile("a/b", len(DATA), DIGEST),))) as folder:
        assert (folder / "a" / "b").read_bytes() == DATA
    (stored,) = shelf.items()
    assert (stored.digest, stored.size_bytes) == (DIGEST, len(DATA))
    assert abs(stored.time - time.time()) < 60


async def test_what_was_removed_is_missing(store, shelf):
    await store.receive(DIGEST, len(DATA), stream(DATA))
    await store.remove(DIGEST)
    await store.remove(DIGEST)
    assert list(shelf.items()) == []
    assert shelf.size(DIGEST) is None
    assert await store.missing([(DIGEST, len(DATA))]) == [DIGEST]


def test_a_file_that_is_removed_while_the_shelf_is_listed_is_passed_over(shelf, tmp_path):
    shelf.prepare()
    digests = {f"sha256:{number:064x}" for number in range(3)}
    for digest in digests:
        (tmp_path / "source").write_bytes(b"bytes")
        shelf.put(tmp_path / "source", digest)
    items = shelf.items()
    first = next(items).digest
    gone, kept = sorted(digests - {first})
    shelf.remove(gone)
    assert [stored.digest for stored in items] == [kept]


async def test_an_object_that_changed_is_found_out(store, shelf, tmp_path):
    (tmp_path / "other").write_bytes(DATA[:-1] + b"!")
    shelf.put(tmp_path / "other", DIGEST)
    assert await store.missing([(DIGEST, len(DATA))]) == [DIGEST]
    with (
        pytest.raises(BlobCorrupted),
        store.check_out(Manifest((ManifestFile("a", len(DATA), DIGEST),))),
    ):
        pass


def test_a_folder_is_named_by_its_path_or_its_url(tmp_path):
    for name in (str(tmp_path), f"file://{tmp_path}", f"file://localhost{tmp_path}"):
        found = open_shelf(name)
        assert isinstance(found, FolderShelf)
        assert found.folder == tmp_path


@pytest.mark.parametrize("url", ["http://host/x", "memory://x", "github://a:b@c/", "file://host/x", "zip::s3://b"])
def test_other_schemes_are_refused(url):
    with pytest.raises(StorageUnknown):
        open_shelf(url)


def test_a_scheme_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: (_ for _ in ()).throw(ImportError("Install s3fs")))
    with pytest.raises(StorageUnknown, match=r"pip install 'loraplex\[s3\]'"):
        open_shelf("s3://bucket/prefix")
