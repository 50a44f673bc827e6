"""Verified adapter files on disk, one folder per digest, within a budget. Knows bytes' origin only as a function.

    fetch ──here──────────────────────────────────────────────────────────────► folder, used now
      └──not here──► make room ──► scratch folder: write, hash, sync ──rename──► folder, used now
                     the least recently used ──rename──► scratch ──► gone

A folder appears under its digest in one rename, after every file was written, hashed and synced, and leaves in one:
what is there is whole. A process killed in between leaves a scratch folder, which the next start removes. A folder's
time of modification is that of its last use, so the order outlives the process and there is no index to be wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Protocol

from inference.errors import AdapterLoadFailed, AdapterTooLarge, DiskCacheFull
from inference.resolver import Version
from inference.resolver.flights import Flights

FETCHING, DROPPED = ".fetch-", ".drop-"  # what scratch folders begin with


class ReadBlob(Protocol):
    """Writes the blob with a digest, of so many bytes, to a path, or raises. RegistryClient.read_blob is one."""

    def __call__(self, digest: str, path: Path, *, size_bytes: int) -> Awaitable[None]: ...


class FileCache:
    """Folders by digest under one root, which is this cache's alone. Concurrent fetches of one digest share a transfer.

    Beyond `capacity_bytes` the least recently used folders leave, those of the `wanted` digests last of all, and those
    that somebody keeps never. Used from one event loop.
    """

    def __init__(
        self,
        root: Path,
        read_blob: ReadBlob,
        *,
        capacity_bytes: int,
        wanted: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._root = root
        self._read_blob = read_blob
        self._wanted = wanted
        self._fetching: Flights[Path] = Flights()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of folders and transfers, least recently used first
        self._kept: Counter[str] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        for scratch in (*root.glob(f"{FETCHING}*"), *root.glob(f"{DROPPED}*")):
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in sorted((path for path in root.iterdir() if path.is_dir()), key=_last_use):
            self._sizes[folder.name.replace("-", ":", 1)] = _size(folder)
        for dropped in self._drop_beyond(capacity_bytes):
            shutil.rmtree(dropped, ignore_errors=True)

    @property
    def used_bytes(self) -> int:
        """Of the folders and of the transfers under way."""
        return sum(self._sizes.values())

    def folder(self, digest: str) -> Path:
        """Where the files of a digest are, or would be."""
        return self._root / digest.replace(":", "-")

    def has(self, digest: str) -> bool:
        """Whether the files are here."""
        return self.folder(digest).exists()

    def forget(self, digest: str) -> None:
        """Removes the files, for example when they turned out damaged."""
        if self.has(digest):
            shutil.rmtree(self._drop(digest), ignore_errors=True)

    @contextlib.contextmanager
    def keep(self, digest: str) -> Iterator[None]:
        """Until this ends the files of the digest do not leave to make room, be they here by now or not."""
        self._kept[digest] += 1
        try:
            yield
        finally:
            self._kept[digest] -= 1
            if not self._kept[digest]:
                del self._kept[digest]

    async def fetch(self, version: Version) -> Path:
        """The folder with the version's files.

        Raises what `read_blob` raises, AdapterLoadFailed, AdapterTooLarge for one larger than the budget, and
        DiskCacheFull when loads keep too much of it.
        """
        folder = self.folder(version.digest)
        if not folder.exists():
            return await self._fetching.share(version.digest, lambda: self._fetch(version))
        self._sizes.move_to_end(version.digest)
        with contextlib.suppress(OSError):  # the order of use is not worth an error
            os.utime(folder)
        return folder

    def check_integrity(self) -> None:
        """Asserts that what is counted is what is on the disk, when no transfer is under way."""
        found = {folder.name.replace("-", ":", 1): _size(folder) for folder in self._root.glob("sha256-*")}
        assert found == dict(self._sizes), f"expected {dict(self._sizes)}, found {found}"
        assert self.used_bytes <= self.capacity_bytes, f"{self.used_bytes} bytes are used of {self.capacity_bytes}"

    async def _fetch(self, version: Version) -> Path:
        digest, size = version.digest, version.manifest.size_bytes
        if size > self.capacity_bytes:
            raise AdapterTooLarge(
                f"{version.name}: its files take {size} bytes and the disk cache is {self.capacity_bytes}",
                metadata={"adapter_bytes": str(size), "capacity_bytes": str(self.capacity_bytes)},
            )
        self._sizes.pop(digest, None)  # of a folder that somebody removed
        dropped = self._drop_beyond(self.capacity_bytes - size)
        if self.used_bytes + size > self.capacity_bytes:
            raise DiskCacheFull(
                f"{version.name}: its files take {size} bytes; of {self.capacity_bytes} of the disk cache, "
                f"{self.used_bytes} are being loaded or fetched",
                metadata={"adapter_bytes": str(size), "capacity_bytes": str(self.capacity_bytes)},
                retry_after_s=1.0,
            )
        self._sizes[digest] = size
        with self.keep(digest):
            try:
                for scratch in dropped:
                    await asyncio.to_thread(shutil.rmtree, scratch, True)
                return await self._transfer(version)
            except BaseException:
                del self._sizes[digest]
                raise

    async def _transfer(self, version: Version) -> Path:
        scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=FETCHING))
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

    def _drop_beyond(self, limit_bytes: int) -> list[Path]:
        """Takes away folders until the rest takes so many bytes, or until all others are kept; what to remove now."""
        if self.used_bytes <= limit_bytes:
            return []
        wanted = self._wanted()
        idle = [digest for digest in self._sizes if digest not in self._kept]
        dropped = []
        for digest in sorted(idle, key=lambda digest: digest in wanted):
            if self.used_bytes <= limit_bytes:
                break
            dropped.append(self._drop(digest))
        return dropped

    def _drop(self, digest: str) -> Path:
        """Takes a folder away in one rename. Returns what it is called now."""
        del self._sizes[digest]
        scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=DROPPED))
        with contextlib.suppress(FileNotFoundError):  # somebody removed it before
            self.folder(digest).replace(scratch)
        return scratch


def _last_use(folder: Path) -> int:
    return folder.stat().st_mtime_ns


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
