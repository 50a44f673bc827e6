"""The registry resolver: exactly the version that is meant, from the table when it is known, or a typed error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapter.manifest import Manifest, ManifestFile
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, AdapterRetired, RegistryUnreachable, WrongBaseModel
from inference.resolver import Version
from inference.resolver.cache import FileCache
from inference.resolver.registry import RegistryResolver
from inference.resolver.table import Key, Side, Split, Table
from registry import errors
from registry.answers import ResolvedVersion
from registry.resources import AdapterVersion, VersionState

OURS, THEIRS = "sha256:" + "b" * 64, "sha256:" + "c" * 64


def make_version(number: int, base: str = OURS) -> Version:
    manifest = Manifest((ManifestFile("adapter_config.json", 2, "sha256:" + f"{number:064x}"),))
    return Version("sql", number, manifest.digest, base, manifest)


class Registry:
    """Answers `resolve` with a version or an error, and counts."""

    def __init__(self, answer: Version | Exception) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def resolve(self, reference: str, **_: Any) -> ResolvedVersion:
        self.asked.append(reference)
        if isinstance(self.answer, Exception):
            raise self.answer
        found = self.answer
        version = AdapterVersion(
            adapter=found.adapter, number=found.number, digest=found.digest, base_model="base",
            base_model_digest=found.base_model_digest, manifest=found.manifest, rank=8, alpha=8.0,
            target_modules=(), features=(), state=VersionState.VALIDATED, size_bytes=2,
        )  # fmt: skip
        return ResolvedVersion(version, 1)

    async def read_blob(self, digest: str, path: Path, *, size_bytes: int) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer
        path.write_text("{}")


def make_resolver(folder: Path, answer: Version | Exception, table: Table | None = None) -> tuple[Any, Registry]:
    registry = Registry(answer)
    cache = FileCache(folder, registry.read_blob, capacity_bytes=2**20)
    client: Any = registry
    return RegistryResolver(client, table or Table(), cache, base_model_digest=OURS), registry


async def test_a_known_alias_needs_no_registry(tmp_path: Path) -> None:
    served = Split((Side(make_version(1)),))
    table = Table(serving={Key("sql", "production"): served}, desired={Key("sql", "production"): served})
    resolver, registry = make_resolver(tmp_path, errors.StoreUnavailable(), table)
    assert await resolver.resolve(Reference.parse("sql")) == make_version(1)
    assert await resolver.resolve(Reference.parse(make_version(1).digest)) == make_version(1)
    assert registry.asked == []


async def test_an_exact_version_is_asked_for_once_and_an_alias_again_and_again(tmp_path: Path) -> None:
    resolver, registry = make_resolver(tmp_path, make_version(3))
    for _ in range(2):
        assert await resolver.resolve(Reference.parse("sql:3")) == make_version(3)
    for _ in range(2):
        assert await resolver.resolve(Reference.parse("sql@new")) == make_version(3)
    assert registry.asked == ["sql:3", "sql@new", "sql@new"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (errors.AdapterNotFound(), AdapterNotFound),
        (errors.AliasNotFound(), AdapterNotFound),
        (errors.VersionRetired(), AdapterRetired),
        (errors.WrongBaseModel(), WrongBaseModel),
        (errors.StoreUnavailable(), RegistryUnreachable),
        (errors.DeadlineExceeded(), RegistryUnreachable),
        (errors.BlobCorrupted(), AdapterLoadFailed),
    ],
)
async def test_a_refusal_keeps_its_meaning(tmp_path: Path, answer: Exception, expected: type[Exception]) -> None:
    resolver, _ = make_resolver(tmp_path, answer)
    with pytest.raises(expected):
        await resolver.resolve(Reference.parse("sql:3"))
    with pytest.raises(expected):
        await resolver.fetch(make_version(3))


async def test_a_version_for_other_weights_is_refused_even_when_a_promotion_names_it(tmp_path: Path) -> None:
    resolver, _ = make_resolver(tmp_path, make_version(3, base=THEIRS))
    with pytest.raises(WrongBaseModel, match=THEIRS):
        await resolver.resolve(Reference.parse("sql:3"))
    with pytest.raises(WrongBaseModel, match=THEIRS):
        await resolver.fetch(make_version(3, base=THEIRS))


async def test_a_retired_version_is_refused_although_its_alias_still_points_there(tmp_path: Path) -> None:
    served = Split((Side(make_version(1)),))
    table = Table(serving={Key("sql", "production"): served}, retired={("sql", 1)})
    resolver, _ = make_resolver(tmp_path, make_version(1), table)
    with pytest.raises(AdapterRetired, match="sql:1"):
        await resolver.resolve(Reference.parse("sql"))
