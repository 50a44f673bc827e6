"""Adapters whose weights somebody pushed into this worker. Names to private folders; knows nothing of how they came.

A pushed version lives as long as the process, or until the next push of the same name takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound
from inference.resolver import KnownVersion, Version
from inference.resolver.modules import names


class PushedResolver:
    """Resolves pushed names to their newest version. `is_taken` says of a name that the registry has it by now."""

    def __init__(self, *, is_taken: Callable[[str], bool]) -> None:
        self._is_taken = is_taken
        self._versions: dict[str, Version] = {}
        self._folders: dict[str, Path] = {}

    def add(self, version: Version, folder: Path) -> None:
        """Makes the files of a version known; its name does not mean it yet."""
        self._folders[version.digest] = folder

    def has_files(self, digest: str) -> bool:
        return digest in self._folders

    def uses(self, folder: Path) -> bool:
        return folder in self._folders.values()

    def meaning(self, name: str) -> Version | None:
        """What the name means now."""
        return self._versions.get(name)

    def switch(self, version: Version) -> Version | None:
        """From now on the name means this version. Returns the one before."""
        before = self._versions.get(version.adapter)
        self._versions[version.adapter] = version
        return before

    def drop_unused(self, is_needed: Callable[[str], bool]) -> list[Path]:
        """Forgets the files that no name means and that nobody needs by their digest; the caller removes them."""
        meant = {version.digest for version in self._versions.values()}
        unused = [digest for digest in self._folders if digest not in meant and not is_needed(digest)]
        return [self._folders.pop(digest) for digest in unused]

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve."""
        for name, version in self._versions.items():
            if reference.digest == version.digest or (names(reference, name) and not self._is_taken(name)):
                return version
        raise AdapterNotFound(f"no adapter {reference} was pushed")

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch."""
        if version.digest not in self._folders:
            raise AdapterLoadFailed(f"{version.name}: other weights were pushed since, and {version.digest} is gone")
        return self._folders[version.digest]

    def forget(self, version: Version) -> None:
        """As Resolver.forget; there is no other copy to fetch."""

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known."""
        return [KnownVersion(name, version) for name, version in self._versions.items()]
