"""Names to weights on disk: a reference is resolved to a version, and a version to verified local files.

A resolver may be anything with the methods of `Resolver`; a worker with no registry is a first-class way to run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapter.manifest import Manifest
from adapter.names import Reference


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of an adapter, as much of it as a worker needs. `number` is 0 without a registry."""

    adapter: str
    number: int
    digest: str
    base_model_digest: str
    manifest: Manifest = field(compare=False)
    rank: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """`sql:3`, or `sql` when it comes from no registry."""
        return f"{self.adapter}:{self.number}" if self.number else self.adapter


class Resolver(Protocol):
    """Where versions come from."""

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:
        """The version that a reference means now; of a split alias the side that `request_key` takes.

        Raises AdapterNotFound, AdapterRetired, WrongBaseModel, RegistryUnreachable.
        """

    async def fetch(self, version: Version) -> Path:
        """A local folder with the version's files. The loader checks their digests again.

        Raises RegistryUnreachable, AdapterLoadFailed.
        """

    def forget(self, version: Version) -> None:
        """Drops the local copy of files that turned out damaged, so that the next fetch gets them anew."""
