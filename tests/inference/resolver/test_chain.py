"""Several resolvers as one: only "not found" goes on, and what comes back is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapter.manifest import manifest_of_adapter
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, RegistryUnreachable, SourceUnavailable, WrongBaseModel
from inference.resolver import KnownVersion, Version
from inference.resolver.chain import ResolverChain

SQL = Reference.parse("sql")


class Link:
    """Answers with what the test says."""

    def __init__(self, answer, folder=None):
        self.answer = answer
        self.folder = folder
        self.asked = 0
        self.forgotten = []

    async def resolve(self, reference, *, request_key=""):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def fetch(self, version):
        if self.folder is None:
            raise OSError("the disk is gone")
        return self.folder

    def forget(self, version):
        self.forgotten.append(version)

    def known(self):
        return [] if isinstance(self.answer, Exception) else [KnownVersion("sql", self.answer)]


@pytest.fixture
def chain(base):
    return lambda **links: ResolverChain(links, base_model_digest=base["base_model_digest"])


@pytest.fixture
def version(write_files, tmp_path, base):
    manifest = manifest_of_adapter(write_files(tmp_path / "sql"))
    return Version("sql", 0, manifest.digest, base["base_model_digest"], manifest)


async def test_the_first_that_has_the_adapter_answers_and_is_asked_for_its_files(chain, version, tmp_path):
    first, second, third = Link(AdapterNotFound("not here")), Link(version, tmp_path), Link(version)
    links = chain(first=first, second=second, third=third)
    found = await links.resolve(SQL)
    assert (found, found.source) == (version, "second")
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)
    assert await links.fetch(found) == tmp_path
    links.forget(found)
    assert (first.forgotten, second.forgotten) == ([], [found])
    assert [one.reference for one in links.known()] == ["sql", "sql"]


@pytest.mark.parametrize("error", [AdapterLoadFailed("rotten"), RegistryUnreachable("away"), WrongBaseModel("other")])
async def test_damaged_or_out_of_reach_is_not_absent(chain, version, error):
    second = Link(version)
    with pytest.raises(type(error), match=str(error)):
        await chain(first=Link(error), second=second).resolve(SQL)
    assert second.asked == 0


async def test_nobody_has_it_and_each_says_so(chain):
    with pytest.raises(AdapterNotFound, match="asked: first, second") as caught:
        await chain(first=Link(AdapterNotFound("not one")), second=Link(AdapterNotFound("not two"))).resolve(SQL)
    assert caught.value.reasons == ("not one", "not two")
    with pytest.raises(AdapterNotFound, match="not alone"):
        await chain(first=Link(AdapterNotFound("not alone"))).resolve(SQL)
    with pytest.raises(AdapterNotFound, match="no place, because none was given"):
        await chain().resolve(SQL)


async def test_a_resolver_that_breaks_is_not_absent_either(chain, version):
    with pytest.raises(SourceUnavailable, match="the resolver first failed: KeyError"):
        await chain(first=Link(KeyError("bug")), second=Link(version)).resolve(SQL)
    with pytest.raises(SourceUnavailable, match="the disk is gone"):
        await chain(first=Link(version)).fetch(replace(version, source="first"))


async def test_a_resolver_cannot_return_another_base_model_or_a_digest_that_is_not_the_manifests(chain, version):
    with pytest.raises(WrongBaseModel, match="sha256:other"):
        await chain(first=Link(replace(version, base_model_digest="sha256:other"))).resolve(SQL)
    with pytest.raises(AdapterLoadFailed, match="the resolver first says sha256:other"):
        await chain(first=Link(replace(version, digest="sha256:other"))).resolve(SQL)
