"""Versions from the registry, by way of the worker's own table: known things need no registry. Knows no memory.

An alias is answered from the table, which the watch keeps true. What the table does not know is asked once: an alias
that was made a moment ago, or an exact version, which never changes and is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapter.names import DEFAULT_ALIAS, Reference
from inference.errors import (
    AdapterLoadFailed,
    AdapterNotFound,
    AdapterRetired,
    InferenceError,
    RegistryUnreachable,
    WrongBaseModel,
)
from inference.resolver import KnownVersion, Version
from inference.resolver.cache import FileCache
from inference.resolver.table import Key, Table
from registry.client import RegistryClient
from registry.errors import RegistryError
from registry.resources import AdapterVersion


class RegistryResolver:
    """Resolver over a registry client, the alias table and the file cache."""

    def __init__(self, client: RegistryClient, table: Table, cache: FileCache, *, base_model_digest: str) -> None:
        self._client = client
        self._table = table
        self._cache = cache
        self._base_model_digest = base_model_digest

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:
        """As Resolver.resolve."""
        version = self._known(reference, request_key)
        if version is None:
            version = await self._ask(reference, request_key)
            if reference.alias is None:
                self._table.remember(version)
        if self._table.is_retired(version):
            raise AdapterRetired(f"{version.name} was retired; name another version")
        self.check_base_model(version)
        return version

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch. Raises WrongBaseModel too: a promotion names versions that nobody has resolved here."""
        self.check_base_model(version)
        try:
            return await self._cache.fetch(version)
        except RegistryError as error:
            raise _translate(error, f"{version.name}: its files") from error

    def forget(self, version: Version) -> None:
        """Drops the local files, so that the next fetch transfers them again."""
        self._cache.forget(version.digest)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known: every alias; a split is listed by its largest side."""
        table = self._table
        for key in {*table.desired, *table.serving}:
            current, desired = table.current(key), table.desired.get(key)
            assert current is not None
            wanted = desired.versions if desired is not None else ()
            failures = [table.failures[one.digest] for one in wanted if one.digest in table.failures]
            yield KnownVersion(str(key), current.main, "; ".join(failures))

    def has_name(self, name: str) -> bool:
        """Whether the plain name means something in the registry, as far as this worker knows."""
        return self._table.current(Key(name, DEFAULT_ALIAS)) is not None

    def check_base_model(self, version: Version) -> None:
        """Raises WrongBaseModel when the version was made for other weights than the ones this worker runs."""
        if version.base_model_digest != self._base_model_digest:
            raise WrongBaseModel(
                f"{version.name} is for the base model {version.base_model_digest}; "
                f"this worker runs {self._base_model_digest}",
                metadata={"expected": self._base_model_digest, "actual": version.base_model_digest},
            )

    def _known(self, reference: Reference, request_key: str) -> Version | None:
        if reference.digest is not None:
            return self._table.find_digest(reference.digest)
        assert reference.name is not None
        if reference.number is not None:
            return self._table.find_version(reference.name, reference.number)
        assert reference.alias is not None
        key = Key(reference.name, reference.alias)
        split = self._table.current(key)
        return None if split is None else split.choose(key, request_key)

    async def _ask(self, reference: Reference, request_key: str) -> Version:
        try:
            found = await self._client.resolve(
                str(reference), base_model_digest=self._base_model_digest, request_key=request_key
            )
        except RegistryError as error:
            raise _translate(error, str(reference)) from error
        return to_version(found.version)


def to_version(version: AdapterVersion) -> Version:
    """What a worker keeps of a registry's version."""
    return Version(
        adapter=version.adapter,
        number=version.number,
        digest=version.digest,
        base_model_digest=version.base_model_digest,
        manifest=version.manifest,
        rank=version.rank,
    )


def _translate(error: RegistryError, subject: str) -> InferenceError:
    """A registry's answer in the worker's words: only what may pass by waiting is RegistryUnreachable."""
    if error.code == "NOT_FOUND":
        return AdapterNotFound(f"{subject}: {error}")
    if error.reason == "VERSION_RETIRED":
        return AdapterRetired(str(error))
    if error.reason == "WRONG_BASE_MODEL":
        return WrongBaseModel(str(error), metadata=error.metadata)
    if error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return RegistryUnreachable(f"{subject}: the registry cannot be reached: {error}", retry_after_s=1.0)
    return AdapterLoadFailed(f"{subject}: {error}", reasons=error.reasons)
