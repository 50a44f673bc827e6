"""The content-addressed store: files named by the SHA-256 of their bytes, in a folder. It knows bytes, not adapters.

    FOLDER/sha256/ab/cdef…   a stored file; its name was its digest when it was renamed to it
    FOLDER/tmp/…             an upload on its way, and folders that put names to stored files for a moment

A file gets its name only after its bytes were hashed and are on disk, so a crash leaves nothing half-stored. Reads hash
again: bytes that changed since are an error and never an answer. Nothing is held in memory but a chunk per stream.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapter.manifest import Manifest, digest_file
from adapter.names import is_digest
from registry.errors import (
    BlobCorrupted,
    BlobMismatch,
    BlobNotFound,
    BlobNotUploaded,
    BlobTooLarge,
    InvalidManifest,
    InvalidRequest,
    OffsetPastEnd,
    StorageFull,
)

# The contract's largest chunk.
CHUNK_BYTES = 2**20
# No upload takes this long; what is older was left by a process that was killed.
LEFTOVER_AGE_S = 24 * 3600.0


class BlobStore:
    """The files under one folder, which several registries may share."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._blobs = folder / "sha256"
        self._tmp = folder / "tmp"
        self._max_bytes = max_bytes

    def open(self) -> None:
        """Makes the folders and removes what killed processes left."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(exist_ok=True)
        for leftover in self._tmp.iterdir():
            if time.time() - leftover.lstat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    async def missing(self, wanted: Iterable[tuple[str, int]]) -> list[str]:
        """Digests, of (digest, size) pairs, whose bytes are not here or not intact. Raises BlobTooLarge."""
        missing = []
        for digest, size_bytes in wanted:
            path = self._path(digest)
            self._check_size(size_bytes)
            if not (path.exists() and await asyncio.to_thread(_is_intact, path, digest)):
                missing.append(digest)
        return missing

    async def receive(self, digest: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> bool:
        """Stores a file; False when it is already there, and then its chunks are read and dropped.

        Raises BlobMismatch when the bytes are not what digest and size say, BlobTooLarge and StorageFull.
        """
        path = self._path(digest)
        self._check_size(size_bytes)
        # Bytes that changed on disk are replaced by sending them again.
        if path.exists() and await asyncio.to_thread(_is_intact, path, digest):
            if path.stat().st_size != size_bytes:
                raise BlobMismatch(f"{digest} has {path.stat().st_size} bytes, not {size_bytes}", field="size_bytes")
            async for _ in chunks:  # ending a stream that is still being sent looks like a failure to some clients
                pass
            return False
        try:
            descriptor, name = tempfile.mkstemp(dir=self._tmp)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    await _write(file, digest, size_bytes, chunks)
                await asyncio.to_thread(_move, Path(name), path)
            finally:
                _discard(name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StorageFull(f"no room for {size_bytes} bytes: {error.strerror}", retry_after_s=60.0) from error
            raise
        return True

    async def read(self, digest: str, *, offset: int = 0) -> AsyncIterator[bytes]:
        """The file's bytes from the offset. The last chunk comes only after all bytes were found to have the digest.

        Raises BlobNotFound, OffsetPastEnd and BlobCorrupted.
        """
        path = self._path(digest)
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError as error:
            raise BlobNotFound(f"no blob {digest}") from error
        with file:
            size = os.fstat(file.fileno()).st_size
            if offset > size:
                raise OffsetPastEnd(f"expected an offset of at most {size}, found {offset}", field="offset_bytes")
            hasher = hashlib.sha256()
            position = 0
            held = b""
            while chunk := await asyncio.to_thread(_read_and_hash, file, hasher):
                wanted = chunk[max(0, offset - position) :]
                position += len(chunk)
                if wanted:
                    if held:
                        yield held
                    held = wanted
            if f"sha256:{hasher.hexdigest()}" != digest:
                raise _corrupted(digest)
            if held:
                yield held

    @contextmanager
    def check_out(self, manifest: Manifest) -> Iterator[Path]:
        """A folder with the manifest's files under their names, each verified; blocking.

        Raises BlobNotUploaded with every file that is missing, InvalidManifest for a wrong size, and BlobCorrupted.
        """
        paths = {file: self._path(file.digest) for file in manifest.files}
        missing = tuple(
            f"{file.path}: {file.digest} was not uploaded" for file, path in paths.items() if not path.exists()
        )
        if missing:
            raise BlobNotUploaded(f"{len(missing)} of {len(paths)} files were not uploaded", reasons=missing)
        for file, path in paths.items():
            size = path.stat().st_size
            if size != file.size_bytes:
                raise InvalidManifest(f"{file.path}: expected {size} bytes, found {file.size_bytes}", field="manifest")
            if not _is_intact(path, file.digest):
                raise _corrupted(file.digest)
        with tempfile.TemporaryDirectory(dir=self._tmp) as name:
            for file, path in paths.items():
                link = Path(name) / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.absolute())
            yield Path(name)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise BlobTooLarge(f"expected at most {self._max_bytes} bytes, found {size_bytes}", field="size_bytes")

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise InvalidRequest(
                f"expected sha256: and 64 lower-case hex digits, found {digest[:80]!r}", field="digest"
            )
        name = digest.removeprefix("sha256:")
        return self._blobs / name[:2] / name[2:]


async def _write(file: BinaryIO, digest: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> None:
    hasher = hashlib.sha256()
    count = 0
    async for chunk in chunks:
        count += len(chunk)
        if count > size_bytes:
            raise BlobMismatch(f"expected {size_bytes} bytes, found more", field="size_bytes")
        await asyncio.to_thread(_write_and_hash, file, hasher, chunk)
    if count != size_bytes:
        raise BlobMismatch(f"expected {size_bytes} bytes, found {count}", field="size_bytes")
    found = f"sha256:{hasher.hexdigest()}"
    if found != digest:
        raise BlobMismatch(f"expected {digest}, found {found}", field="digest")
    await asyncio.to_thread(_sync, file)


def _write_and_hash(file: BinaryIO, hasher: hashlib._Hash, chunk: bytes) -> None:
    file.write(chunk)
    hasher.update(chunk)


def _read_and_hash(file: BinaryIO, hasher: hashlib._Hash) -> bytes:
    chunk = file.read(CHUNK_BYTES)
    hasher.update(chunk)
    return chunk


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _discard(name: str) -> None:
    Path(name).unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Gives the file its name, and makes the name last."""
    source.chmod(0o444)
    target.parent.mkdir(exist_ok=True)
    source.replace(target)
    for folder in (target.parent, target.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_intact(path: Path, digest: str) -> bool:
    return digest_file(path) == digest


def _corrupted(digest: str) -> BlobCorrupted:
    return BlobCorrupted(f"the stored bytes of {digest} no longer have this digest; upload the file again")
