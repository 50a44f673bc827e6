"""Adapters of the command line: both spellings, what they were at the start, and never under the registry's names."""

from __future__ import annotations

import pytest

from adapter.manifest import WEIGHTS_FILE, manifest_of_adapter
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest
from inference.resolver.modules import LoraModule, ModulesResolver, parse_modules


@pytest.fixture
def open_modules(intake, base):
    def open_(*modules, taken=()):
        digest = base["base_model_digest"]
        return ModulesResolver(modules, intake, base_model_digest=digest, is_taken=lambda name: name in taken)

    return open_


def test_both_spellings_name_the_same(tmp_path):
    expected = [LoraModule("a", tmp_path / "x"), LoraModule("b", tmp_path / "y=z")]
    assert parse_modules([f"a={tmp_path}/x", f"b={tmp_path}/y=z"], base_model_name="smol") == expected
    one, other = (
        f'{{"name": "a", "path": "{tmp_path}/x", "base_model_name": "smol"}}',
        f'{{"name": "b", "path": "{tmp_path}/y=z"}}',
    )
    assert parse_modules([one, other], base_model_name="smol") == expected
    assert parse_modules([f"[{one}, {other}]"], base_model_name="smol") == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("a", "expected NAME=FOLDER, found 'a'"),
        ("a=", "expected NAME=FOLDER"),
        ("{", "expected JSON"),
        ("[1]", "expected .*name.*, found 1"),
        ('{"name": "a"}', "expected .*path"),
        ('{"name": "a", "path": 1}', "expected .*path"),
        ('{"name": "a", "path": "x", "rank": "8"}', "expected .*path"),
        ('{"name": "a", "path": "x", "base_model_name": "other"}', "a: expected the base model smol, found other"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(item, message):
    with pytest.raises(InvalidRequest, match=message):
        parse_modules([item], base_model_name="smol")


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(InvalidRequest, match="found a again"):
        parse_modules(["a=x", '{"name": "a", "path": "y"}'], base_model_name="smol")


async def test_a_name_and_a_digest_give_a_private_copy_and_other_aliases_nothing(open_modules, write_files, tmp_path):
    folder = write_files(tmp_path / "a")
    resolver = open_modules(LoraModule("a", folder))
    version = await resolver.resolve(Reference.parse("a"))
    assert (version.digest, version.number) == (manifest_of_adapter(folder).digest, 0)
    assert await resolver.resolve(Reference.parse(version.digest)) == version
    copy = await resolver.fetch(version)
    assert copy != folder
    assert manifest_of_adapter(copy).digest == version.digest
    for other in ("b", "a@canary", "a:1", "sha256:" + "0" * 64):
        with pytest.raises(AdapterNotFound, match="started with: a"):
            await resolver.resolve(Reference.parse(other))


async def test_a_file_that_changed_since_the_start_is_refused(open_modules, write_files, tmp_path):
    folder = write_files(tmp_path / "a", b"before")
    resolver = open_modules(LoraModule("a", folder))
    version = await resolver.resolve(Reference.parse("a"))
    for other in (b"after!", b"shorter than that it is not", b"less", b""):
        (folder / WEIGHTS_FILE).write_bytes(other)
        with pytest.raises(AdapterLoadFailed, match="changed since its adapter was resolved"):
            await resolver.fetch(version)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(AdapterLoadFailed, match="no such file any more"):
        await resolver.fetch(version)
    (folder / WEIGHTS_FILE).write_bytes(b"before")
    assert await resolver.fetch(version)


async def test_a_name_that_the_registry_has_is_the_registrys(open_modules, write_files, tmp_path):
    resolver = open_modules(LoraModule("a", write_files(tmp_path / "a")), taken={"a"})
    with pytest.raises(AdapterNotFound):
        await resolver.resolve(Reference.parse("a"))


def test_a_folder_that_is_no_adapter_is_refused_at_the_start(open_modules, tmp_path):
    with pytest.raises(AdapterLoadFailed, match="expected a folder, found nothing"):
        open_modules(LoraModule("a", tmp_path / "nowhere"))
