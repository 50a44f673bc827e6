"""Where finished blobs lie: a folder, or anything that fsspec reaches by a URL. It trusts its caller about digests.

    file:///var/blobs     sha256/ab/cdef…, a stored file per digest; also a plain path
    s3://bucket/prefix    the same names under the prefix; needs the extra `s3`

Every method blocks. A file appears under its name whole or not at all.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from registry.errors import StorageUnknown

# What a setting may name. Others that fsspec knows would fetch from strangers or run programs.
SCHEMES = ("file", "s3")
COPY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored file, and when it was stored, in seconds since 1970."""

    digest: str
    size_bytes: int
    time: float


class Shelf(Protocol):
    """Finished blobs by digest."""

    def prepare(self) -> None:
        """Makes what must be there, and fails now rather than later. Raises OSError."""

    def size(self, digest: str) -> int | None:
        """Bytes of the stored file; None when there is none."""

    def open(self, digest: str) -> BinaryIO:
        """Its bytes. Raises FileNotFoundError."""

    def put(self, source: Path, digest: str) -> None:
        """Takes a file that is whole and on disk away from its place. Raises OSError."""

    def path(self, digest: str) -> Path | None:
        """Where it lies on this machine; None when it lies elsewhere."""

    def items(self) -> Iterator[Stored]:
        """Everything that is stored; without what is removed in the meantime, as another registry may do."""

    def remove(self, digest: str) -> None:
        """Removes it; harmless when it is not there."""


def open_shelf(url: str) -> Shelf:
    """The shelf of a URL or a path. Raises StorageUnknown for a scheme that is not allowed or not installed."""
    parts = urlsplit(url)
    if "://" not in url:
        return FolderShelf(Path(url).expanduser())
    if parts.scheme not in SCHEMES:
        raise StorageUnknown(f"expected one of {', '.join(SCHEMES)} or a path, found {parts.scheme}://")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StorageUnknown(f"expected file:///PATH, found the host {parts.netloc!r}")
        return FolderShelf(Path(unquote(parts.path)))
    return RemoteShelf(open_filesystem(parts.scheme), f"{parts.netloc}{parts.path}")


def open_filesystem(scheme: str) -> Any:
    """fsspec's object for an allowed scheme. Raises StorageUnknown when its package is not installed."""
    try:
        # Listings may not be kept: another replica writes too.
        return importlib.import_module("fsspec").filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise StorageUnknown(
            f"{scheme}:// needs a package that is not installed: pip install 'loraplex[{scheme}]'"
        ) from error


def _name(digest: str) -> str:
    digits = digest.removeprefix("sha256:")
    return f"sha256/{digits[:2]}/{digits[2:]}"


class FolderShelf:
    """Files in a folder, which several registries may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """As Shelf.prepare."""
        (self.folder / "sha256").mkdir(parents=True, exist_ok=True)

    def size(self, digest: str) -> int | None:
        """As Shelf.size."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO:
        """As Shelf.open."""
        return self.path(digest).open("rb")

    def put(self, source: Path, digest: str) -> None:
        """As Shelf.put; the source must be on the same file system."""
        target = self.path(digest)
        source.chmod(0o444)
        target.parent.mkdir(exist_ok=True)
        source.replace(target)
        # The name is made last, and must be on disk as well.
        for folder in (target.parent, target.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def path(self, digest: str) -> Path:
        """As Shelf.path."""
        return self.folder / _name(digest)

    def items(self) -> Iterator[Stored]:
        """As Shelf.items."""
        for folder in sorted((self.folder / "sha256").iterdir()):
            for path in folder.iterdir():
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                yield Stored(f"sha256:{folder.name}{path.name}", found.st_size, found.st_mtime)

    def remove(self, digest: str) -> None:
        """As Shelf.remove."""
        self.path(digest).unlink(missing_ok=True)


class RemoteShelf:
    """Files of an fsspec file system under a prefix; a whole object is written at once."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        """`filesystem` is an fsspec.AbstractFileSystem, which has no types."""
        self._files = filesystem
        self._prefix = prefix.rstrip("/")

    def prepare(self) -> None:
        """As Shelf.prepare."""
        self._files.makedirs(self._prefix, exist_ok=True)

    def size(self, digest: str) -> int | None:
        """As Shelf.size."""
        try:
            return int(self._files.info(self._at(digest))["size"])
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO:
        """As Shelf.open."""
        return cast(BinaryIO, self._files.open(self._at(digest), "rb"))

    def put(self, source: Path, digest: str) -> None:
        """As Shelf.put."""
        # An object appears when its last part was sent, and not when that fails.
        with source.open("rb") as file, self._files.open(self._at(digest), "wb") as target:
            shutil.copyfileobj(file, target, COPY_BYTES)
        source.unlink()

    def path(self, digest: str) -> Path | None:  # noqa: ARG002 -- nothing lies here
        """As Shelf.path."""
        return None

    def items(self) -> Iterator[Stored]:
        """As Shelf.items."""
        found = self._files.find(f"{self._prefix}/sha256", detail=True)
        for name, info in sorted(found.items()):
            path = PurePosixPath(name)
            # S3 tells the time in its listing; others are asked for it.
            try:
                changed = info.get("LastModified") or self._files.modified(name)
            except FileNotFoundError:
                continue
            yield Stored(f"sha256:{path.parent.name}{path.name}", int(info["size"]), changed.timestamp())

    def remove(self, digest: str) -> None:
        """As Shelf.remove."""
        try:
            self._files.rm_file(self._at(digest))
        except FileNotFoundError:
            return

    def _at(self, digest: str) -> str:
        return f"{self._prefix}/{_name(digest)}"
