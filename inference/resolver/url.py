"""Adapters under a URL that fsspec reads, found when asked for: `<url>/<base model>/<name>`, then `<url>/<name>`.

A name is looked up again every `REFRESH_S` seconds at most, and files that look different there are another version,
which is brought here whole before it is known. While the place cannot be reached, what was known is served.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter.config import MAX_CONFIG_BYTES
from adapter.manifest import (
    ADAPTER_FILES,
    MAX_TOKENIZER_BYTES,
    NEEDED_FILES,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    Manifest,
)
from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterNotFound, InferenceError, InvalidRequest, SourceUnavailable
from inference.resolver import KnownVersion, Version
from inference.resolver.flights import Flights
from inference.resolver.intake import Intake
from inference.resolver.modules import names

# What a setting may name. Others that fsspec knows would fetch from strangers, run programs, or read any local file.
SCHEMES = ("s3", "gs", "abfs", "memory")
REFRESH_S = 30.0
MAX_REMEMBERED = 10_000
READ_BYTES = 2**20
# Far above any adapter; what it keeps out is a disk filled by mistake.
MAX_WEIGHTS_BYTES = 16 * 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """A folder there. `files` gives (size, what the place says about it) by name."""

    folder: str
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class _Remembered:
    found: _Found
    version: Version
    looked_s: float


class UrlResolver:
    """Resolves names under one URL."""

    def __init__(
        self,
        url: str,
        intake: Intake,
        *,
        base_model_name: str,
        base_model_digest: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises InvalidRequest for a scheme that is not allowed or not installed."""
        scheme, _, path = url.partition("://")
        if scheme not in SCHEMES or not path.strip("/"):
            raise _invalid(f"expected a URL of {', '.join(SCHEMES)} with a path, found {url!r}")
        try:
            # Listings may not be kept: others write there.
            self._fs: Any = importlib.import_module("fsspec").filesystem(scheme, use_listings_cache=False)
        except ImportError as error:
            raise _invalid(f"{scheme}:// needs a package that is not installed: {error}") from error
        self._url = url.rstrip("/")
        self._intake = intake
        self._base_model_name = base_model_name
        self._base_model_digest = base_model_digest
        self._now = now
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._looking: Flights[Version] = Flights()

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve; by digest only what was found by name before."""
        if reference.digest is not None:
            known = next((one for one in self._remembered.values() if one.version.digest == reference.digest), None)
            if known is None:
                raise self._not_found(reference)
            return known.version
        assert reference.name is not None
        name = reference.name
        if not names(reference, name):
            raise self._not_found(reference)
        known = self._remembered.get(name)
        if known is not None and self._now() - known.looked_s < REFRESH_S:
            self._remembered.move_to_end(name)
            return known.version
        return await self._looking.share(name, lambda: self._look(name))

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch."""
        known = self._remembered.get(version.adapter)
        if known is None or known.version.digest != version.digest:
            raise AdapterLoadFailed(f"{version.name}: {version.digest} is no longer under {self._url}")
        return await self._intake.bring_again(version, lambda scratch: self._download(known.found, scratch))

    def forget(self, version: Version) -> None:
        """As Resolver.forget."""
        self._intake.forget(version)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known: what was asked for."""
        return [KnownVersion(name, one.version) for name, one in self._remembered.items()]

    async def _look(self, name: str) -> Version:
        """Looks a name up there, and brings its files here if they are new."""
        known = self._remembered.get(name)
        try:
            found = await asyncio.to_thread(self._find, name)
        except SourceUnavailable as error:
            if known is None:
                raise
            log.warning("%s is served as it was: %s", name, error)
            found = known.found
        if found is None:
            self._remembered.pop(name, None)
            raise self._not_found(name)
        if known is None or known.found != found:
            version = await self._intake.bring(
                lambda scratch: self._download(found, scratch), lambda manifest: self._version(name, manifest)
            )
            known = _Remembered(found, version, 0.0)
        self._remembered[name] = replace(known, looked_s=self._now())
        self._remembered.move_to_end(name)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return known.version

    def _version(self, name: str, manifest: Manifest) -> Version:
        return Version(name, 0, manifest.digest, self._base_model_digest, manifest)

    def _find(self, name: str) -> _Found | None:
        """The folder of a name, if it holds either file that an adapter needs. Blocks. Raises SourceUnavailable."""
        for folder in (f"{self._url}/{self._base_model_name}/{name}", f"{self._url}/{name}"):
            files = {}
            for file in ADAPTER_FILES:
                try:
                    info = self._fs.info(f"{folder}/{file}")
                except FileNotFoundError:
                    continue
                except Exception as error:  # each store has errors of its own
                    raise self._unavailable(error) from error
                files[file] = (int(info["size"]), repr(sorted((key, str(value)) for key, value in info.items())))
            if files.keys() & set(NEEDED_FILES):
                return _Found(folder, files)
        return None

    def _download(self, found: _Found, scratch: Path) -> Path:
        """Blocks. Raises SourceUnavailable, and AdapterLoadFailed for a file that is too large."""
        for name, (size, _) in found.files.items():
            limit = _limit_of(name)
            if size > limit:
                raise AdapterLoadFailed(f"{found.folder}/{name}: expected at most {limit} bytes, found {size}")
            try:
                self._copy(f"{found.folder}/{name}", scratch / name, limit)
            except InferenceError:
                raise
            except Exception as error:
                raise self._unavailable(error) from error
        return scratch

    def _copy(self, source: str, target: Path, limit: int) -> None:
        with self._fs.open(source, "rb") as reading, target.open("wb") as writing:
            while chunk := reading.read(READ_BYTES):
                limit -= len(chunk)
                if limit < 0:
                    raise AdapterLoadFailed(f"{source}: the file grows while it is read")
                writing.write(chunk)

    def _unavailable(self, error: Exception) -> SourceUnavailable:
        return SourceUnavailable(f"{self._url}: {type(error).__name__}: {error}", retry_after_s=1.0)

    def _not_found(self, reference: Reference | str) -> AdapterNotFound:
        return AdapterNotFound(f"no adapter {reference} under {self._url}")


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"adapter_urls: {message}", field="adapter_urls")


def _limit_of(name: str) -> int:
    """The most bytes that a file may have."""
    if name == WEIGHTS_FILE:
        return MAX_WEIGHTS_BYTES
    return MAX_TOKENIZER_BYTES if name in TOKENIZER_FILES else MAX_CONFIG_BYTES
