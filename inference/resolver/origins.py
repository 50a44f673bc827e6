"""Where the file cache gets the bytes of a digest: a folder that is lent to it for the moment, or the registry.

Bytes are copied and hashed in one pass, so what arrives is what was asked for, whoever writes to the folder meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from adapter.manifest import Manifest
from inference.errors import AdapterLoadFailed
from inference.resolver.cache import ReadBlob

COPY_BYTES = 2**20


class Origins:
    """Reads blobs by digest. `otherwise` reads those that nobody lends; without it they cannot be had."""

    def __init__(self, otherwise: ReadBlob | None = None) -> None:
        self._otherwise = otherwise
        self._lent: dict[str, list[Path]] = {}

    @contextlib.contextmanager
    def lend(self, manifest: Manifest, folder: Path) -> Iterator[None]:
        """Until this ends, the files of the manifest are read from the folder."""
        for file in manifest.files:
            self._lent.setdefault(file.digest, []).append(folder / file.path)
        try:
            yield
        finally:
            for file in manifest.files:
                paths = self._lent[file.digest]
                paths.remove(folder / file.path)
                if not paths:
                    del self._lent[file.digest]

    async def read(self, digest: str, path: Path, *, size_bytes: int) -> None:
        """As ReadBlob. Raises AdapterLoadFailed when the lent file is another one by now."""
        if lent := self._lent.get(digest):
            await asyncio.to_thread(_copy, lent[-1], path, digest=digest, size_bytes=size_bytes)
        elif self._otherwise is not None:
            await self._otherwise(digest, path, size_bytes=size_bytes)
        else:
            raise AdapterLoadFailed(f"{path.name}: nobody has the bytes of {digest} any more")


def _copy(source: Path, target: Path, *, digest: str, size_bytes: int) -> None:
    hasher, left = hashlib.sha256(), size_bytes
    try:
        with _open_real(source) as reading, target.open("wb") as writing:
            # One byte more than expected is enough to know that the file has grown.
            while chunk := os.read(reading.fileno(), min(COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                hasher.update(chunk)
                writing.write(chunk)
            writing.flush()
            os.fsync(writing.fileno())
    except FileNotFoundError as error:
        raise AdapterLoadFailed(f"{source.name}: expected {digest}, found no such file any more") from error
    found = f"sha256:{hasher.hexdigest()}"
    if left or found != digest:
        actual = "more bytes" if left < 0 else f"{found} of {size_bytes - left} bytes"
        reason = f"{source.name}: expected {digest} of {size_bytes} bytes, found {actual}"
        raise AdapterLoadFailed(f"the file has changed since its adapter was resolved: {reason}", reasons=(reason,))


def _open_real(path: Path) -> BinaryIO:
    """Opens a regular file of this folder: no link that leads elsewhere, nothing that would block."""
    real = path.resolve()
    if not real.is_relative_to(path.parent.resolve()):
        raise AdapterLoadFailed(f"{path.name}: expected a file inside the folder, found a link to {real}")
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterLoadFailed(f"{path.name}: expected a file, found something else")
    return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))
