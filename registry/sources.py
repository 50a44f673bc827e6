"""Adapters that the registry fetches itself, from folders that its operator allowed. It knows paths, not versions.

A root is a path or an `s3://` URL. A local path counts by where it really is: no symlink leads out of a root.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from adapter.manifest import ADAPTER_FILES, NEEDED_FILES, Manifest, ManifestFile
from registry.blobs import CHUNK_BYTES, BlobStore
from registry.errors import SourceNotAllowed, SourceUnreadable
from registry.shelves import SCHEMES, open_filesystem


@dataclass(frozen=True, slots=True)
class Sources:
    """The roots under which a source may lie; none allows nothing."""

    roots: tuple[str, ...] = ()

    async def fetch(self, source: str, blobs: BlobStore) -> Manifest:
        """Stores the files of a PEFT folder that are part of an adapter and returns their manifest.

        Each is read twice: what is here already is not stored again, and a file that changes meanwhile is refused.
        Raises SourceNotAllowed, SourceUnreadable and what `BlobStore.receive` raises.
        """
        files = []
        for name in sorted(ADAPTER_FILES):
            try:
                with await asyncio.to_thread(self._open, source, name) as file:
                    digest, size_bytes = await asyncio.to_thread(_hash, file)
                    file.seek(0)
                    await blobs.receive(digest, size_bytes, _chunks(file))
            except FileNotFoundError as error:
                if name not in NEEDED_FILES:
                    continue
                raise SourceUnreadable(f"{source}: expected {name}, found no such file", field="source") from error
            except OSError as error:
                raise SourceUnreadable(f"{source}/{name}: {error.strerror or error}", field="source") from error
            files.append(ManifestFile(name, size_bytes, digest))
        return Manifest(tuple(files))

    def _open(self, source: str, name: str) -> BinaryIO:
        scheme, separator, _ = source.partition("://")
        if separator and scheme != "file":
            return self._open_remote(scheme, source, name)
        return self._open_local(Path(unquote(urlsplit(source).path)) if separator else Path(source), name)

    def _open_local(self, folder: Path, name: str) -> BinaryIO:
        roots = [Path(os.path.realpath(root)) for root in self.roots if "://" not in root]
        path = Path(os.path.realpath(folder / name))
        if not folder.is_absolute() or not any(path.is_relative_to(root) for root in roots):
            raise self._not_allowed(str(folder))
        # The path is real, so a link in its place was put there just now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SourceUnreadable(f"{folder}: expected {name} to be a file, found something else", field="source")
        return os.fdopen(descriptor, "rb")

    def _open_remote(self, scheme: str, source: str, name: str) -> BinaryIO:
        is_plain = all(part not in ("", ".", "..") for part in source.partition("://")[2].rstrip("/").split("/"))
        roots = [root.rstrip("/") for root in self.roots if root.startswith(f"{scheme}://")]
        if (
            scheme not in SCHEMES
            or not is_plain
            or not any(f"{source.rstrip('/')}/".startswith(f"{root}/") for root in roots)
        ):
            raise self._not_allowed(source)
        return cast(BinaryIO, open_filesystem(scheme).open(f"{source.rstrip('/')}/{name}", "rb"))

    def _not_allowed(self, source: str) -> SourceNotAllowed:
        allowed = f"expected one under {', '.join(self.roots)}" if self.roots else "it reads none; upload the files"
        return SourceNotAllowed(f"{source} is not a folder that this registry may read: {allowed}", field="source")


def _hash(file: BinaryIO) -> tuple[str, int]:
    hasher, size_bytes = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        hasher.update(chunk)
        size_bytes += len(chunk)
    return f"sha256:{hasher.hexdigest()}", size_bytes


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk
