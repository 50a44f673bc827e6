"""Verified adapter files on disk, one folder per digest. Knows where bytes come from only as a function.

A folder appears under its digest in one rename, after every file was written, hashed and synced; what is there is
whole. A process killed while fetching leaves a scratch folder, which the next start removes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

from inference.errors import AdapterLoadFailed
from inference.resolver import Version


class ReadBlob(Protocol):
    """Writes the blob with a digest, of so many bytes, to a path, or raises. RegistryClient.read_blob is one."""

    def __call__(self, digest: str, path: Path, *, size_bytes: int) -> Awaitable[None]: ...


class FileCache:
    """Folders by digest under one root. Concurrent fetches of one digest share one transfer."""

    def __init__(self, root: Path, read_blob: ReadBlob) -> None:
        self._root = root
        self._read_blob = read_blob
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        root.mkdir(parents=True, exist_ok=True)
        for scratch in root.glob(".fetch-*"):
            shutil.rmtree(scratch, ignore_errors=True)

    def folder(self, digest: str) -> Path:
        """Where the files of a digest are, or would be."""
        return self._root / digest.replace(":", "-")

    def has(self, digest: str) -> bool:
        """Whether the files are here."""
        return self.folder(digest).exists()

    def forget(self, digest: str) -> None:
        """Removes the files, for example when they turned out damaged."""
        shutil.rmtree(self.folder(digest), ignore_errors=True)

    async def fetch(self, version: Version) -> Path:
        """The folder with the version's files. Raises what `read_blob` raises, and AdapterLoadFailed."""
        if self.has(version.digest):
            return self.folder(version.digest)
        task = self._fetching.get(version.digest)
        if task is None:
            task = asyncio.create_task(self._fetch(version))
            self._fetching[version.digest] = task
            task.add_done_callback(lambda done: self._done(version.digest, done))
        return await asyncio.shield(task)  # one caller giving up must not end the transfer for the others

    def _done(self, digest: str, task: asyncio.Task[Path]) -> None:
        del self._fetching[digest]
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; nobody waiting is no reason for a warning

    async def _fetch(self, version: Version) -> Path:
        scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=".fetch-"))
        try:
            for file in version.manifest.files:
                path = scratch / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                await self._read_blob(file.digest, path, size_bytes=file.size_bytes)
            folder = self.folder(version.digest)
            await asyncio.to_thread(os.replace, scratch, folder)
        except OSError as error:
            raise AdapterLoadFailed(f"{version.name}: its files cannot be stored: {error}") from error
        else:
            return folder
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, True)
