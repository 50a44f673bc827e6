"""Names to weights on disk: a reference is resolved to a version, and a version to verified local files.

A resolver may be anything with the methods of `Resolver`, also one of another package: see `plugins`. A worker may have
several, which `chain` asks in order, and none of them needs a registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapter.manifest import Manifest
from adapter.names import Reference

# Names of resolvers: the one of a version that says none, and the one whose names may get other weights at any time.
REGISTRY, PUSHED = "registry", "pushed"


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of an adapter, as much of it as a worker needs. `number` is 0 without a registry."""

    adapter: str
    number: int
    digest: str
    base_model_digest: str
    manifest: Manifest = field(compare=False)
    rank: int = field(default=0, compare=False)
    source: str = field(default=REGISTRY, compare=False)
    """The resolver that found it. The chain fills it in; whoever makes a version leaves it alone."""

    @property
    def name(self) -> str:
        """`sql:3`, or `sql` when it comes from no registry."""
        return f"{self.adapter}:{self.number}" if self.number else self.adapter


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version under one of its references; `failure` says why it could not be loaded, empty if it could."""

    reference: str
    version: Version
    failure: str = ""


class Resolver(Protocol):
    """Where versions come from. Used from one event loop: what may take long is awaited."""

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:
        """The version that a reference means now; of a split alias the side that `request_key` takes.

        Raises AdapterNotFound when it is not here, and only then the next resolver is asked; also AdapterRetired,
        WrongBaseModel, AdapterLoadFailed for what is here and damaged, RegistryUnreachable, SourceUnavailable.
        """

    async def fetch(self, version: Version) -> Path:
        """A local folder with the files of a version found here. The loader checks their digests again.

        Raises RegistryUnreachable, SourceUnavailable, AdapterLoadFailed.
        """

    def forget(self, version: Version) -> None:
        """Drops the local copy of files that turned out damaged, so that the next fetch gets them anew."""

    def known(self) -> Iterable[KnownVersion]:
        """What can be listed without looking anywhere: for people, not for requests."""
