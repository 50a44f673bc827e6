"""The content-addressed store: files named by the SHA-256 of their bytes. It knows bytes, not adapters.

    stream ──> spool (a local file, hashed as it grows) ──> on disk, digest right ──> shelf (a folder, S3, …)

A file gets its name only after its bytes were hashed and are on disk, so a crash leaves nothing half-stored. Reads hash
again: bytes that changed since are an error and never an answer. Nothing is held in memory but a chunk per stream.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapter.manifest import Manifest, ManifestFile
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
from registry.shelves import Shelf, Stored
from registry.spool import Spool, Upload

# The contract's largest chunk.
CHUNK_BYTES = 2**20


class BlobStore:
    """The files of one shelf, which several registries may share; each has a spool of its own, or all share one."""

    def __init__(self, shelf: Shelf, spool: Spool, *, max_bytes: int) -> None:
        self._shelf = shelf
        self._spool = spool
        self._max_bytes = max_bytes

    def open(self) -> None:
        """Makes the folders and removes uploads that nobody went on with."""
        self._shelf.prepare()
        self._spool.prepare()

    async def missing(self, wanted: Iterable[tuple[str, int]]) -> list[str]:
        """Digests, of (digest, size) pairs, whose bytes are not here or not intact. Raises BlobTooLarge."""
        missing = []
        for digest, size_bytes in wanted:
            _check_digest(digest)
            self._check_size(size_bytes)
            if not await asyncio.to_thread(self._is_intact, digest):
                missing.append(digest)
        return missing

    async def received(self, digest: str) -> int:
        """Bytes of a digest that an upload which broke left here, for the next one to go on after."""
        _check_digest(digest)
        return await asyncio.to_thread(self._spool.received, digest)

    async def receive(self, digest: str, size_bytes: int, chunks: AsyncIterator[bytes], *, offset: int = 0) -> bool:
        """Stores a file; False when it is already there, and then its chunks are read and dropped.

        The chunks begin at `offset`. A stream that breaks leaves what came for another one to go on with; one that
        ends wrongly leaves nothing.

        Raises BlobMismatch when the bytes are not what digest and size say, OffsetPastEnd when fewer than `offset`
        bytes are here, BlobTooLarge and StorageFull.
        """
        _check_digest(digest)
        self._check_size(size_bytes)
        # Bytes that changed on disk are replaced by sending them again.
        if await asyncio.to_thread(self._is_intact, digest):
            found = await asyncio.to_thread(self._shelf.size, digest)
            if found != size_bytes:
                raise BlobMismatch(f"{digest} has {found} bytes, not {size_bytes}", field="size_bytes")
            async for _ in chunks:  # ending a stream that is still being sent looks like a failure to some clients
                pass
            return False
        upload = await self._begin(digest, offset)
        try:
            await _take_in(upload, digest, size_bytes, chunks)
            await asyncio.to_thread(self._shelf.put, upload.path, digest)
        except InvalidRequest:
            upload.drop()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            upload.drop()
            raise StorageFull(f"no room for {size_bytes} bytes: {error.strerror}", retry_after_s=60.0) from error
        finally:
            if not upload.size_bytes:
                upload.drop()
            upload.close()
        return True

    async def _begin(self, digest: str, offset: int) -> Upload:
        if not offset:
            return await asyncio.to_thread(self._spool.begin, digest)
        upload = await asyncio.to_thread(self._spool.go_on, digest, offset)
        if upload is None:
            received = await self.received(digest)
            raise OffsetPastEnd(
                f"expected an offset of at most {received}, found {offset}",
                field="offset_bytes",
                metadata={"received_bytes": str(received)},
            )
        return upload

    async def read(self, digest: str, *, offset: int = 0) -> AsyncIterator[bytes]:
        """The file's bytes from the offset. The last chunk comes only after all bytes were found to have the digest.

        Raises BlobNotFound, OffsetPastEnd and BlobCorrupted.
        """
        _check_digest(digest)
        size = await asyncio.to_thread(self._shelf.size, digest)
        if size is None:
            raise BlobNotFound(f"no blob {digest}")
        if offset > size:
            raise OffsetPastEnd(f"expected an offset of at most {size}, found {offset}", field="offset_bytes")
        try:
            file = await asyncio.to_thread(self._shelf.open, digest)
        except FileNotFoundError as error:
            raise BlobNotFound(f"no blob {digest}") from error
        with file:
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
        for file in manifest.files:
            _check_digest(file.digest)
        sizes = {file: self._shelf.size(file.digest) for file in manifest.files}
        missing = tuple(f"{file.path}: {file.digest} was not uploaded" for file, size in sizes.items() if size is None)
        if missing:
            raise BlobNotUploaded(f"{len(missing)} of {len(sizes)} files were not uploaded", reasons=missing)
        for file, size in sizes.items():
            if size != file.size_bytes:
                raise InvalidManifest(f"{file.path}: expected {size} bytes, found {file.size_bytes}", field="manifest")
        with tempfile.TemporaryDirectory(dir=self._spool.folder) as name:
            for file in manifest.files:
                self._lay_out(file, Path(name) / file.path)
            yield Path(name)

    def _lay_out(self, file: ManifestFile, target: Path) -> None:
        """Links or copies one stored file, which must have its digest."""
        target.parent.mkdir(parents=True, exist_ok=True)
        path = self._shelf.path(file.digest)
        if path is not None:
            target.symlink_to(path.absolute())
        with self._shelf.open(file.digest) as source:
            found = _hash(source) if path is not None else _copy(source, target, file.size_bytes)
        if found != file.digest:
            raise _corrupted(file.digest)

    def items(self) -> Iterator[Stored]:
        """Everything that is stored; blocking."""
        return self._shelf.items()

    async def remove(self, digest: str) -> None:
        """Removes a stored file; harmless when it is not there."""
        _check_digest(digest)
        await asyncio.to_thread(self._shelf.remove, digest)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise BlobTooLarge(f"expected at most {self._max_bytes} bytes, found {size_bytes}", field="size_bytes")

    def _is_intact(self, digest: str) -> bool:
        try:
            with self._shelf.open(digest) as file:
                return _hash(file) == digest
        except FileNotFoundError:
            return False


def _check_digest(digest: str) -> None:
    """Nothing else ever becomes a path."""
    if not is_digest(digest):
        raise InvalidRequest(f"expected sha256: and 64 lower-case hex digits, found {digest[:80]!r}", field="digest")


async def _take_in(upload: Upload, digest: str, size_bytes: int, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        if upload.size_bytes + len(chunk) > size_bytes:
            raise BlobMismatch(f"expected {size_bytes} bytes, found more", field="size_bytes")
        await asyncio.to_thread(upload.add, chunk)
    if upload.size_bytes != size_bytes:
        raise BlobMismatch(f"expected {size_bytes} bytes, found {upload.size_bytes}", field="size_bytes")
    if upload.digest != digest:
        raise BlobMismatch(f"expected {digest}, found {upload.digest}", field="digest")
    await asyncio.to_thread(upload.sync)


def _read_and_hash(file: BinaryIO, hasher: hashlib._Hash) -> bytes:
    chunk = file.read(CHUNK_BYTES)
    hasher.update(chunk)
    return chunk


def _hash(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    while _read_and_hash(file, hasher):
        pass
    return f"sha256:{hasher.hexdigest()}"


def _copy(source: BinaryIO, target: Path, size_bytes: int) -> str:
    """Copies at most so many bytes, so that a file which grew does not fill the disk."""
    hasher = hashlib.sha256()
    with target.open("wb") as file:
        while file.tell() <= size_bytes and (chunk := _read_and_hash(source, hasher)):
            file.write(chunk)
    return f"sha256:{hasher.hexdigest()}"


def _corrupted(digest: str) -> BlobCorrupted:
    return BlobCorrupted(f"the stored bytes of {digest} no longer have this digest; upload the file again")
