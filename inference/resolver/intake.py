"""The way of folders and downloads into the file cache, each version once. Knows no names and no references.

a folder here   ──lend──────────────────────────► copied and hashed ──► cache
from elsewhere  ──fill──► scratch folder ──lend──► copied and hashed ──► cache
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adapter.errors import AdapterRefused
from adapter.manifest import Manifest, manifest_of_adapter
from inference.errors import AdapterLoadFailed
from inference.resolver import Version
from inference.resolver.cache import FileCache
from inference.resolver.flights import Flights
from inference.resolver.origins import Origins

Fill = Callable[[Path], Path]
"""Puts an adapter's files under a scratch folder and returns where; may block, and raise InferenceError."""


class Intake:
    """Takes versions into a file cache. `scratch` is a folder for what is on its way."""

    def __init__(self, cache: FileCache, origins: Origins, scratch: Path) -> None:
        self._cache = cache
        self._origins = origins
        self._scratch = scratch
        self._taking: Flights[Path] = Flights()

    async def take(self, version: Version, folder: Path) -> Path:
        """The cached copy of a version whose files lie in a folder of this machine.

        Raises AdapterLoadFailed when they are not those of its manifest any more.
        """

        async def copy() -> Path:
            with self._origins.lend(version.manifest, folder):
                return await self._cache.fetch(version)

        return await self._taking.share(version.digest, copy)

    async def bring(self, fill: Fill, make: Callable[[Manifest], Version]) -> Version:
        """Brings files from elsewhere into the cache, and says which version `make` makes of them.

        Raises AdapterLoadFailed when they are no adapter, and what `fill` raises.
        """
        scratch = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            folder = await asyncio.to_thread(fill, scratch)
            version = make(await asyncio.to_thread(read_manifest, folder))
            await self.take(version, folder)
            return version
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, True)

    async def bring_again(self, version: Version, fill: Fill) -> Path:
        """The cached copy of a version that was brought before, brought once more if it has left the cache.

        Raises AdapterLoadFailed when it is another version by now, and what `fill` raises.
        """
        if not self._cache.has(version.digest):
            found = await self.bring(fill, lambda found: replace(version, digest=found.digest, manifest=found))
            if found.digest != version.digest:
                raise AdapterLoadFailed(
                    f"{version.name} has changed where it comes from: expected {version.digest}, found {found.digest}"
                )
        return await self._cache.fetch(version)

    def forget(self, version: Version) -> None:
        """Drops the cached copy."""
        self._cache.forget(version.digest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a PEFT folder, by hashing it. Raises AdapterLoadFailed with every reason."""
    try:
        return manifest_of_adapter(folder)
    except AdapterRefused as refused:
        raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused
