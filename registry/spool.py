"""Uploads on their way: files on a local disk, which outlive a broken stream and a killed process.

    FOLDER/upload-HEX-RANDOM   what came of a digest; locked while a stream adds to it
    FOLDER/…                   folders that put names to stored files for a moment

The lock is the kernel's, so it ends with the process however that ends, and what came so far can then be gone on with.
What goes on is hashed again from its beginning: the whole has its digest, or is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# No upload pauses this long; what is older is left over.
LEFTOVER_AGE_S = 24 * 3600.0
READ_BYTES = 2**20


class Upload:
    """A file that one stream adds to. Every method blocks."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """`file` is open for reading and writing, and locked."""
        self.path = path
        self._file = file
        self._hasher = hashlib.sha256()
        self.size_bytes = 0

    def keep_until(self, offset: int) -> None:
        """Goes on after `offset` bytes, all of which are there; what came later is dropped."""
        self._file.truncate(offset)
        self._file.seek(0)
        self._hasher, self.size_bytes = hashlib.sha256(), 0
        while chunk := self._file.read(READ_BYTES):
            self._hasher.update(chunk)
            self.size_bytes += len(chunk)

    def add(self, chunk: bytes) -> None:
        """Raises OSError when there is no room."""
        self._file.write(chunk)
        self._hasher.update(chunk)
        self.size_bytes += len(chunk)

    @property
    def digest(self) -> str:
        """Of everything so far."""
        return f"sha256:{self._hasher.hexdigest()}"

    def sync(self) -> None:
        """Puts everything on disk. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def drop(self) -> None:
        """Removes what came; harmless when the file has been moved."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file: from now on another stream may go on with it."""
        self._file.close()


class Spool:
    """The uploads in one folder. Every method blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes the folder and removes what nobody went on with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.iterdir():
            with suppress(FileNotFoundError):  # an upload that ends, or another registry that removes it too
                if time.time() - leftover.lstat().st_mtime > LEFTOVER_AGE_S:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def received(self, digest: str) -> int:
        """Bytes that an earlier stream left behind; 0 when there are none, or another stream adds to them."""
        for path in self._parts(digest):
            upload = _take(path)
            if upload is not None:
                size = _size(path)
                upload.close()
                return max(size, 0)
        return 0

    def begin(self, digest: str) -> Upload:
        """A new and empty file."""
        descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=_prefix(digest))
        file = os.fdopen(descriptor, "w+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Upload(Path(name), file)

    def go_on(self, digest: str, offset: int) -> Upload | None:
        """What an earlier stream left, with exactly `offset` bytes; None when nobody left that much."""
        for path in self._parts(digest):
            upload = _take(path)
            if upload is None:
                continue
            if _size(path) >= offset:
                upload.keep_until(offset)
                return upload
            upload.close()
        return None

    def _parts(self, digest: str) -> list[Path]:
        """The largest first."""
        return sorted(self.folder.glob(f"{_prefix(digest)}*"), key=_size, reverse=True)


def _prefix(digest: str) -> str:
    return f"upload-{digest.removeprefix('sha256:')}-"


def _size(path: Path) -> int:
    """Bytes of the file; -1 when it is gone, because its upload has just ended."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _take(path: Path) -> Upload | None:
    """The file, locked; None when someone else has it or it is gone."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have become a stored file, under another name, before the lock was ours.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return Upload(path, file)
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None
