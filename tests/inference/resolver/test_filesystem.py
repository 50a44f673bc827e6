"""A directory of adapters: found when asked for, another version when the files change, and no way out of it."""

from __future__ import annotations

import asyncio
import os

import pytest

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, manifest_of_adapter
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest
from inference.resolver import filesystem
from inference.resolver.filesystem import FilesystemResolver

SQL = Reference.parse("sql")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def resolver(root, intake, base):
    return FilesystemResolver(root, intake, **base)


async def test_a_folder_is_found_as_soon_as_it_is_there_and_not_when_it_is_gone(resolver, root, write_files):
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(SQL)
    write_files(root / "new").rename(root / "sql")
    version = await resolver.resolve(SQL)
    assert version.digest == manifest_of_adapter(root / "sql").digest
    assert await resolver.resolve(Reference.parse(version.digest)) == version
    assert [one.reference for one in resolver.known()] == ["sql"]
    (root / "sql").rename(root / "old")
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(SQL)
    assert list(resolver.known()) == []


async def test_the_folder_of_the_base_model_comes_first(resolver, root, write_files):
    write_files(root / "sql", b"for any")
    anybody = await resolver.resolve(SQL)
    ours = write_files(root / "smol" / "sql", b"for ours")
    assert (await resolver.resolve(SQL)).digest == manifest_of_adapter(ours).digest != anybody.digest
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(Reference.parse("smol"))  # which is no adapter, only the folder of some


async def test_other_files_are_another_version_and_the_same_files_are_not_hashed_again(
    resolver, root, write_files, monkeypatch
):
    hashed = []

    def read_manifest(folder):
        hashed.append(folder)
        return manifest_of_adapter(folder)

    monkeypatch.setattr(filesystem, "read_manifest", read_manifest)
    write_files(root / "sql", b"one")
    found = await asyncio.gather(*(resolver.resolve(SQL) for _ in range(5)))
    first = await resolver.resolve(SQL)
    assert set(found) == {first}
    assert len(hashed) == 1
    write_files(root / "next", b"two").rename(root / "next-2")
    os.rename(root / "sql", root / "gone")
    os.rename(root / "next-2", root / "sql")
    second = await resolver.resolve(SQL)
    assert second.digest == manifest_of_adapter(root / "sql").digest != first.digest
    assert len(hashed) == 2
    with pytest.raises(AdapterLoadFailed, match="is no longer in"):
        await resolver.fetch(first)
    assert manifest_of_adapter(await resolver.fetch(second)).digest == second.digest


async def test_a_folder_that_changes_between_resolve_and_load_is_refused_and_the_next_request_finds_the_new_one(
    resolver, root, write_files
):
    folder = write_files(root / "sql", b"one")
    version = await resolver.resolve(SQL)
    (folder / WEIGHTS_FILE).write_bytes(b"two")
    with pytest.raises(AdapterLoadFailed, match="changed since its adapter was resolved"):
        await resolver.fetch(version)
    assert (await resolver.resolve(SQL)).digest == manifest_of_adapter(folder).digest


async def test_a_folder_that_changes_while_it_is_read_is_refused(resolver, root, write_files, monkeypatch):
    folder = write_files(root / "sql", b"one")

    def read_manifest(path):
        found = manifest_of_adapter(path)
        (folder / WEIGHTS_FILE).write_bytes(b"and more")
        return found

    monkeypatch.setattr(filesystem, "read_manifest", read_manifest)
    with pytest.raises(AdapterLoadFailed, match="changes while it is read"):
        await resolver.resolve(SQL)


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
async def test_half_an_adapter_is_damaged_and_not_absent(resolver, root, write_files, missing):
    (write_files(root / "sql") / missing).unlink()
    with pytest.raises(AdapterLoadFailed, match=f"expected {missing}, found none"):
        await resolver.resolve(SQL)


async def test_no_link_leads_out_of_the_directory(resolver, root, write_files, tmp_path):
    outside = write_files(tmp_path / "outside")
    (root / "folder").symlink_to(outside)
    (root / "file").mkdir()
    (root / "file" / CONFIG_FILE).write_text("{}")
    (root / "file" / WEIGHTS_FILE).symlink_to(outside / WEIGHTS_FILE)
    (root / "inside").symlink_to(write_files(root / "sql"))
    for name in ("folder", "file"):
        with pytest.raises(AdapterLoadFailed, match="found a link to"):
            await resolver.resolve(Reference.parse(name))
    version = await resolver.resolve(Reference.parse("inside"))
    assert version.digest == (await resolver.resolve(SQL)).digest
    assert await resolver.fetch(version)


async def test_a_link_that_is_put_there_after_the_look_gives_nothing_away(resolver, root, write_files, tmp_path):
    folder = write_files(root / "sql", b"secret")
    version = await resolver.resolve(SQL)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(AdapterLoadFailed, match="found a link to"):
        await resolver.fetch(version)


@pytest.mark.parametrize("reference", ["sql@canary", "sql:1", "sha256:" + "0" * 64])
async def test_aliases_numbers_and_digests_never_seen_are_not_here(resolver, root, write_files, reference):
    write_files(root / "sql")
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(Reference.parse(reference))


async def test_names_beyond_the_limit_are_forgotten_oldest_first(resolver, root, write_files, monkeypatch):
    monkeypatch.setattr(filesystem, "MAX_REMEMBERED", 2)
    for name in ("a", "b", "a", "c"):
        write_files(root / name, name.encode())
        await resolver.resolve(Reference.parse(name))
    assert [one.reference for one in resolver.known()] == ["a", "c"]


def test_no_directory_is_refused_at_the_start(tmp_path, intake, base):
    with pytest.raises(InvalidRequest, match="expected a directory"):
        FilesystemResolver(tmp_path / "nowhere", intake, **base)
