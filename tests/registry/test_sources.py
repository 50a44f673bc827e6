"""Folders that the registry reads itself: only under the allowed roots, whatever the path looks like."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import fsspec
import pytest

from adapter.manifest import CONFIG_FILE, manifest_of_adapter
from registry import sources as sources_module
from registry.blobs import BlobStore
from registry.errors import AdapterRefused, InvalidRequest, SourceNotAllowed, SourceUnreadable
from registry.shelves import FolderShelf
from registry.sources import Sources
from registry.spool import Spool


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    found = BlobStore(FolderShelf(tmp_path / "blobs"), Spool(tmp_path / "blobs" / "tmp"), max_bytes=2**24)
    found.open()
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


async def test_a_folder_under_a_root_is_stored_as_an_upload_would_be(store, root, new_adapter):
    folder = new_adapter(1).rename(root / "sql")
    expected = manifest_of_adapter(folder)
    for source in (str(folder), f"file://{folder}", f"{root}/x/../sql/"):
        (root / "x").mkdir(exist_ok=True)
        assert await Sources((str(root),)).fetch(source, store) == expected
    assert await store.missing((file.digest, file.size_bytes) for file in expected.files) == []


async def test_the_files_of_a_tokenizer_are_stored_too(store, root, new_adapter):
    folder = new_adapter(1).rename(root / "tools")
    (folder / "tokenizer.json").write_text("{}")
    found = await Sources((str(root),)).fetch(str(folder), store)
    assert found == manifest_of_adapter(folder)
    assert found.file("tokenizer.json") is not None


async def test_nothing_outside_the_roots_is_read(store, root, new_adapter, tmp_path, monkeypatch):
    outside = new_adapter(1)
    (root / "link").symlink_to(outside)
    (root / "files").mkdir()
    (root / "files" / CONFIG_FILE).symlink_to(outside / CONFIG_FILE)
    (tmp_path / "root-2").mkdir()
    sources = Sources((str(root), "s3://bucket/adapters"))
    monkeypatch.chdir(root)
    for source in (
        str(outside),
        f"{root}/link",
        f"{root}/files",
        f"{root}/../adapter-1",
        str(tmp_path / "root-2"),
        "relative",
        "",
        f"file://{outside}",
        "s3://bucket/adapters/../secret",
        "s3://bucket/adapters-2/x",
        "s3://bucket/adapters//x",
        "s3://other/adapters",
        "http://host/adapters",
        "memory://adapters",
    ):
        with pytest.raises(SourceNotAllowed):
            await sources.fetch(source, store)
    with pytest.raises(SourceNotAllowed, match="upload the files"):
        await Sources().fetch(str(root), store)


async def test_what_is_no_adapter_is_said(store, root):
    os.mkfifo(root / CONFIG_FILE)
    with pytest.raises(SourceUnreadable, match="found something else"):
        await Sources((str(root),)).fetch(str(root), store)
    (root / "empty").mkdir()
    with pytest.raises(SourceUnreadable, match=f"expected {CONFIG_FILE}, found no such file"):
        await Sources((str(root),)).fetch(f"{root}/empty", store)


async def test_a_url_under_a_root_is_read_through_fsspec(store, new_adapter, monkeypatch):
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store = {}
    monkeypatch.setattr(sources_module, "open_filesystem", lambda scheme: memory)
    monkeypatch.setattr(sources_module, "SCHEMES", ("memory",))
    folder = new_adapter(1)
    memory.put(f"{folder}/", "memory://adapters/sql/", recursive=True)
    found = await Sources(("memory://adapters",)).fetch("memory://adapters/sql", store)
    assert found == manifest_of_adapter(folder)


async def test_a_version_is_registered_from_a_folder_without_an_upload(
    settings, serve_here, new_base_model, new_adapter, root
):
    folder = new_adapter(1).rename(root / "sql")
    async with serve_here(dataclasses.replace(settings, source_roots=(str(root),))) as server:
        await server.client.create_base_model("base", new_base_model(0))
        planned = await server.client.register_from(str(folder), adapter="sql", base_model="base", validate_only=True)
        assert planned.version.number == 0
        made = await server.client.register_from(str(folder), adapter="sql", base_model="base")
        assert (made.created, made.version.digest) == (True, manifest_of_adapter(folder).digest)
        assert not (await server.client.register(folder, adapter="sql", base_model="base")).created
        with pytest.raises(SourceNotAllowed):
            await server.client.register_from("/etc", adapter="sql", base_model="base")
        (folder / CONFIG_FILE).write_text("{}")
        with pytest.raises(AdapterRefused):
            await server.client.register_from(str(folder), adapter="sql", base_model="base")


async def test_a_manifest_and_a_source_are_not_given_together(registry_server, base_model, new_adapter):
    from loraplex.registry.v1 import registry_service_pb2 as pb
    from registry.messages import write_manifest

    request = pb.RegisterAdapterVersionRequest(
        adapter="sql", base_model=base_model, source="/x", manifest=write_manifest(manifest_of_adapter(new_adapter(1)))
    )
    with pytest.raises(InvalidRequest, match="found both"):
        await registry_server.ask(registry_server.stub.RegisterAdapterVersion, request)
