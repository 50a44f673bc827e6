"""Adapters in a directory, found when they are asked for: `<dir>/<base model>/<name>`, then `<dir>/<name>`.

A name is looked up at each request, which costs a few `stat`s; a folder is hashed when it is new or its files have
changed, and what it holds then is another version. So an adapter is replaced by putting another folder in its place,
with one rename: files that change while they are read are refused. No link leads out of the directory.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapter.manifest import ADAPTER_FILES, NEEDED_FILES
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InvalidRequest
from inference.resolver import KnownVersion, Version
from inference.resolver.flights import Flights
from inference.resolver.intake import Intake, read_manifest
from inference.resolver.modules import names

# Names remembered with their digests, least recently asked for first to go; each is hashed again when it comes back.
MAX_REMEMBERED = 10_000

Signature = tuple[tuple[str, int, int, int, int], ...]
"""(name, inode, size, mtime, ctime) of an adapter's files: equal as long as nobody wrote to them."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    signature: Signature
    folder: Path
    version: Version


class FilesystemResolver:
    """Resolves names under one directory, which is the operator's to fill."""

    def __init__(self, root: Path, intake: Intake, *, base_model_name: str, base_model_digest: str) -> None:
        """Raises InvalidRequest when there is no such directory."""
        if not root.is_dir():
            raise InvalidRequest(f"adapter_dirs: expected a directory, found {root}", field="adapter_dirs")
        self._root = root.resolve()
        self._intake = intake
        self._base_model_name = base_model_name
        self._base_model_digest = base_model_digest
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._hashing: Flights[_Remembered] = Flights()

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve; by digest only what was found by name before."""
        if reference.digest is not None:
            named = next((one for one in self._remembered.values() if one.version.digest == reference.digest), None)
            if named is None:
                raise self._not_found(reference)
            return named.version
        assert reference.name is not None
        if not names(reference, reference.name):
            raise self._not_found(reference)
        name = reference.name
        found = await asyncio.to_thread(self._look, name)
        if found is None:
            self._remembered.pop(name, None)
            raise self._not_found(reference)
        folder, signature = found
        known = self._remembered.get(name)
        if known is None or (known.folder, known.signature) != found:
            known = await self._hashing.share(name, lambda: asyncio.to_thread(self._read, name, folder, signature))
            self._remembered[name] = known
        self._remembered.move_to_end(name)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return known.version

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch. Raises AdapterLoadFailed when the folder holds another version by now."""
        remembered = self._remembered.get(version.adapter)
        if remembered is None or remembered.version.digest != version.digest:
            raise AdapterLoadFailed(f"{version.name}: {version.digest} is no longer in {self._root}")
        return await self._intake.take(version, remembered.folder)

    def forget(self, version: Version) -> None:
        """As Resolver.forget; the folder itself is the operator's, and is hashed again."""
        self._remembered.pop(version.adapter, None)
        self._intake.forget(version)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known: what was asked for. The directory may hold many more."""
        return [KnownVersion(name, one.version) for name, one in self._remembered.items()]

    def _look(self, name: str) -> tuple[Path, Signature] | None:
        folder = self._find(name)
        return None if folder is None else (folder, self._sign(folder))

    def _find(self, name: str) -> Path | None:
        """The folder of a name, if it holds either file that one needs: half of one is damaged, and not absent."""
        for folder in (self._root / self._base_model_name / name, self._root / name):
            if any(os.path.lexists(folder / file) for file in NEEDED_FILES):
                return folder
        return None

    def _read(self, name: str, folder: Path, signature: Signature) -> _Remembered:
        """Hashes a folder. Raises AdapterLoadFailed when it is no adapter, or has changed since it was looked at."""
        manifest = read_manifest(folder)
        if self._sign(folder) != signature:
            raise AdapterLoadFailed(
                f"{name}: {folder} changes while it is read; write a new folder and rename it to its place"
            )
        return _Remembered(signature, folder, Version(name, 0, manifest.digest, self._base_model_digest, manifest))

    def _sign(self, folder: Path) -> Signature:
        """What the files look like from outside. Raises AdapterLoadFailed for a link that leads out of the root."""
        signature = []
        for name in ADAPTER_FILES:
            path = folder / name
            try:
                # By where it really is: the folder itself may be a link too.
                real = path.resolve()
                if not real.is_relative_to(self._root):
                    raise AdapterLoadFailed(f"{path}: expected a file under {self._root}, found a link to {real}")
                found = real.stat()
            except FileNotFoundError:
                continue
            signature.append((name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(signature)

    def _not_found(self, reference: Reference) -> AdapterNotFound:
        return AdapterNotFound(f"no adapter {reference} in {self._root}")
