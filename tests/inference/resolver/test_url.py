"""Adapters under a URL: looked up again now and then, brought whole, and served as they were while nobody answers."""

from __future__ import annotations

import fsspec
import pytest

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, manifest_of_adapter
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest, SourceUnavailable
from inference.resolver import url
from inference.resolver.url import REFRESH_S, UrlResolver

SQL = Reference.parse("sql")


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    """An empty store in memory, by paths."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def put(store, write_files, tmp_path):
    def write(path, weights=b"weights"):
        folder = write_files(tmp_path / "put", weights)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            store.pipe(f"/bucket/{path}/{name}", (folder / name).read_bytes())
        return manifest_of_adapter(folder).digest

    return write


@pytest.fixture
def resolver(intake, base, clock):
    return UrlResolver("memory://bucket", intake, **base, now=clock)


async def test_a_folder_is_brought_here_whole(resolver, put):
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(SQL)
    digest = put("sql")
    version = await resolver.resolve(SQL)
    assert version.digest == digest
    assert await resolver.resolve(Reference.parse(digest)) == version
    assert manifest_of_adapter(await resolver.fetch(version)).digest == digest
    assert put("smol/other", b"for ours") == (await resolver.resolve(Reference.parse("other"))).digest


async def test_other_files_are_another_version_when_the_name_is_looked_up_again(resolver, put, clock):
    first = put("sql", b"one")
    assert (await resolver.resolve(SQL)).digest == first
    second = put("sql", b"two")
    clock.now_s = REFRESH_S / 2
    assert (await resolver.resolve(SQL)).digest == first
    clock.now_s = REFRESH_S * 2
    version = await resolver.resolve(SQL)
    assert version.digest == second != first
    assert [one.version for one in resolver.known()] == [version]


async def test_a_copy_that_has_left_the_cache_is_brought_again_if_it_is_still_the_same(resolver, put):
    put("sql", b"one")
    version = await resolver.resolve(SQL)
    resolver.forget(version)
    assert manifest_of_adapter(await resolver.fetch(version)).digest == version.digest
    resolver.forget(version)
    put("sql", b"two")
    with pytest.raises(AdapterLoadFailed, match=f"expected {version.digest}, found sha256"):
        await resolver.fetch(version)


async def test_what_is_known_is_served_while_nobody_answers_and_nothing_else_is(resolver, put, clock, monkeypatch):
    put("sql")
    version = await resolver.resolve(SQL)

    def info(path):
        raise ConnectionError("the network is down")

    monkeypatch.setattr(resolver._fs, "info", info)
    clock.now_s = REFRESH_S * 2
    assert await resolver.resolve(SQL) == version
    with pytest.raises(SourceUnavailable, match="the network is down"):
        await resolver.resolve(Reference.parse("other"))


async def test_half_an_adapter_is_damaged_and_leaves_nothing_here(resolver, put, store, tmp_path):
    put("sql")
    store.rm(f"/bucket/sql/{WEIGHTS_FILE}")
    with pytest.raises(AdapterLoadFailed, match=f"expected {WEIGHTS_FILE}, found none"):
        await resolver.resolve(SQL)
    assert list((tmp_path / "scratch").iterdir()) == list((tmp_path / "cache").iterdir()) == []


async def test_a_file_beyond_the_limit_is_not_downloaded(resolver, put, monkeypatch):
    monkeypatch.setattr(url, "MAX_WEIGHTS_BYTES", 3)
    put("sql", b"four")
    with pytest.raises(AdapterLoadFailed, match="expected at most 3 bytes, found 4"):
        await resolver.resolve(SQL)


@pytest.mark.parametrize("reference", ["sql@canary", "sql:1", "sha256:" + "0" * 64])
async def test_aliases_numbers_and_digests_never_seen_are_not_here(resolver, put, reference):
    put("sql")
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(Reference.parse(reference))


@pytest.mark.parametrize("address", ["http://host/x", "file:///etc", "/etc", "github://a/b", "memory://", ""])
def test_a_scheme_that_is_not_allowed_is_refused(intake, base, address):
    with pytest.raises(InvalidRequest, match="expected a URL of s3, gs, abfs, memory with a path"):
        UrlResolver(address, intake, **base)


def test_a_scheme_without_its_package_is_refused(intake, base, monkeypatch):
    def filesystem(scheme, **_):
        raise ImportError("install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", filesystem)
    with pytest.raises(InvalidRequest, match="needs a package that is not installed: install s3fs"):
        UrlResolver("s3://bucket", intake, **base)
