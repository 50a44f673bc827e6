"""Weights that a trainer pushes: staged, checked, loaded beside what serves, and only then served under their name.

    header ──► chunks ──► private file ──► digest and size ──► plan, values ──► slot ──► the name means it
               bounded memory; hashed on the way              as any load      beside   in one assignment

Whatever goes wrong before the last arrow changes nothing and leaves nothing. Running requests finish on the weights
that they began with, or, where that is asked for, go on with the new ones from the next step on: both lie in memory,
and between two steps the requests are pointed at the others. Knows no protobuf.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapter.config import MAX_CONFIG_BYTES
from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapter.names import Reference, check_name, is_digest
from inference.adapters import AdapterDesk
from inference.engine.engine import Engine
from inference.errors import (
    AdapterNotFound,
    InferenceError,
    InvalidRequest,
    NameTaken,
    PushesOff,
    PushStalled,
    ReloadRefused,
    TooManyPushes,
)
from inference.lora.lease import Lease
from inference.lora.loader import Adapters
from inference.resolver import PUSHED, Resolver, Version
from inference.resolver.intake import read_manifest
from inference.resolver.pushed import PushedResolver

# Each stages a whole file and its load takes memory beside what serves.
MAX_PUSHES = 4
MAX_CHUNK_BYTES = 2**20
# A trainer that sends nothing for so long has gone, and would keep one of the places.
STALL_S = 30.0

log = logging.getLogger(__name__)


class ReloadMode(enum.Enum):
    """When running requests see new weights."""

    DRAIN = "drain"
    """They finish on the old ones."""
    IMMEDIATE = "immediate"
    """From the next step on."""


@dataclass(frozen=True, slots=True)
class PushHeader:
    """What is announced. `digest` and `size_bytes` are those of the weights' file."""

    adapter: str
    adapter_config: bytes
    digest: str
    size_bytes: int
    mode: ReloadMode = ReloadMode.DRAIN


class Pushes:
    """Takes pushes. `resolver` is the worker's, of which `pushed` and `registry` are parts.

    `scratch` is a folder that lives as long as the process. `max_bytes` bounds the weights' file; `allowed` is
    Settings.pushes.
    """

    def __init__(
        self,
        pushed: PushedResolver,
        desk: AdapterDesk,
        *,
        resolver: Resolver,
        registry: Resolver | None,
        adapters: Adapters,
        engine: Engine,
        scratch: Path,
        base_model_digest: str,
        max_bytes: int,
        allowed: str = "new",
    ) -> None:
        self._pushed = pushed
        self._resolver = resolver
        self._registry = registry
        self._scratch = scratch
        self._desk = desk
        self._adapters = adapters
        self._engine = engine
        self._base_model_digest = base_model_digest
        self._max_bytes = max_bytes
        self._allowed = allowed
        self._num_running = 0
        self._switching = asyncio.Lock()

    async def push(self, header: PushHeader, chunks: AsyncIterator[bytes]) -> Version:
        """Serves the weights under their name. Returns when it does.

        Raises InvalidRequest and InvalidName for a header or bytes that are not as announced, PushesOff, NameTaken,
        TooManyPushes, PushStalled, ReloadRefused, RegistryUnreachable, and everything that a load raises.
        """
        if self._allowed == "off":
            raise PushesOff
        self._check(header)
        if self._num_running == MAX_PUSHES:
            raise TooManyPushes(f"{MAX_PUSHES} pushes are under way, and no more may be", retry_after_s=1.0)
        self._num_running += 1
        try:
            await self._check_name_is_free(header.adapter)
            # At once: what a thread makes for a caller that gives up meanwhile is nobody's.
            folder = Path(tempfile.mkdtemp(dir=self._scratch, prefix="push-"))
            try:
                version = await self._receive(header, chunks, folder)
                return await self._serve(version, folder, header.mode)
            finally:
                await self._clean(folder)
        finally:
            self._num_running -= 1

    def _check(self, header: PushHeader) -> None:
        check_name(header.adapter, what="header.adapter")
        if not is_digest(header.digest):
            raise _invalid(
                "header.digest", f"expected sha256: and 64 lower-case hex digits, found {header.digest[:80]!r}"
            )
        if not 0 < header.size_bytes <= self._max_bytes:
            raise _invalid("header.size_bytes", f"expected 1 to {self._max_bytes}, found {header.size_bytes}")
        if not 0 < len(header.adapter_config) <= MAX_CONFIG_BYTES:
            raise _invalid(
                "header.adapter_config", f"expected 1 to {MAX_CONFIG_BYTES} bytes, found {len(header.adapter_config)}"
            )

    async def _check_name_is_free(self, name: str) -> None:
        """Raises NameTaken when the registry has the name, and RegistryUnreachable when that cannot be known."""
        if self._registry is None or self._allowed == "any":
            return
        try:
            taken = await self._registry.resolve(Reference.parse(name))
        except AdapterNotFound:
            return
        raise NameTaken(f"{name} is the registry's, which serves {taken.name} under it; push another name")

    async def _receive(self, header: PushHeader, chunks: AsyncIterator[bytes], folder: Path) -> Version:
        """Writes the files to a folder. Raises InvalidRequest when the bytes are not the announced ones."""
        await asyncio.to_thread((folder / CONFIG_FILE).write_bytes, header.adapter_config)
        hasher, left = hashlib.sha256(), header.size_bytes
        with _create(folder / WEIGHTS_FILE) as file:
            while (chunk := await _next(chunks)) is not None:
                if not 0 < len(chunk) <= MAX_CHUNK_BYTES:
                    raise _invalid("chunk", f"expected 1 to {MAX_CHUNK_BYTES} bytes, found {len(chunk)}")
                left -= len(chunk)
                if left < 0:
                    raise _invalid("chunk", f"expected {header.size_bytes} bytes in all, found more")
                # Not here: a chunk takes as long to hash and write as a small step.
                await asyncio.to_thread(_append, file, hasher.update, chunk)
        if left:
            raise _invalid("chunk", f"expected {header.size_bytes} bytes in all, found {header.size_bytes - left}")
        found = f"sha256:{hasher.hexdigest()}"
        if found != header.digest:
            raise _invalid("header.digest", f"expected bytes of {header.digest}, found those of {found}")
        manifest = await asyncio.to_thread(read_manifest, folder)
        return Version(header.adapter, 0, manifest.digest, self._base_model_digest, manifest, source=PUSHED)

    async def _serve(self, version: Version, folder: Path, mode: ReloadMode) -> Version:
        """Loads the version beside what serves, and switches."""
        pushed = self._pushed
        if not pushed.has_files(version.digest):
            pushed.add(version, folder)
        lease = await self._desk.acquire(version)
        try:
            async with self._switching:
                await self._check_name_is_free(version.adapter)
                if pushed.meaning(version.adapter) != version:
                    await self._switch(version, lease, mode)
        finally:
            lease.release()
        log.info("%s now serves %s, which was pushed", version.name, version.digest)
        return version

    async def _switch(self, version: Version, lease: Lease, mode: ReloadMode) -> None:
        """Gives the name its new meaning, in one piece for the event loop; returns when running requests see it.

        Raises ReloadRefused and Draining; then nothing has changed.
        """
        followers = self._desk.followers(version.adapter) if mode is ReloadMode.IMMEDIATE else []
        for follower in followers:
            _check_may_go_on(follower, lease)
        # Everything that was submitted so far is moved by the engine, and whatever comes later has a lease that is.
        moved = self._engine.reload(version.adapter, slot=lease.slot, digest=lease.digest) if followers else None
        before = self._pushed.switch(version)
        old = [lease.again() for _ in followers]
        for follower, one in zip(followers, old, strict=True):
            follower.exchange(one)
        if before is not None:
            self._let_go(before, version)
        if moved is not None:
            ended = asyncio.wrap_future(moved)
            for one in old:  # which the step under way still uses, whether or not who pushed waits for it
                ended.add_done_callback(functools.partial(_release, one))
            await asyncio.shield(ended)

    def _let_go(self, before: Version, version: Version) -> None:
        """Frees the weights that the name meant before, and their prefixes, once nothing uses them.

        Their pin is the name's, and moves on.
        """
        if any(loaded.is_pinned for loaded in self._adapters.loaded() if loaded.digest == before.digest):
            self._adapters.pin(version.digest)
            self._adapters.unpin(before.digest)
        if not any(known.version.digest == before.digest for known in self._resolver.known()):
            self._adapters.retire(before.digest)
            with contextlib.suppress(InferenceError):  # of an engine that stops, and forgets everything
                self._engine.forget_prefixes(before.digest)

    async def _clean(self, folder: Path) -> None:
        """Removes what no name means any more, this push's own folder too unless it is served."""
        pushed = self._pushed
        gone = pushed.drop_unused(self._adapters.is_loading)
        if not pushed.uses(folder):
            gone.append(folder)
        # A call may be cancelled twice, and a thread's work that has not begun is cancelled with who waits for it.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, _remove, gone))


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(chunks, None)
    except TimeoutError:
        raise PushStalled(f"nothing came for {STALL_S:g} s") from None


def _check_may_go_on(follower: Lease, lease: Lease) -> None:
    """Raises ReloadRefused where the request of a lease was checked for another kind of adapter."""
    if follower.is_composable and not lease.is_composable:
        raise ReloadRefused("running requests may use sums of adapters, and the new weights scale or replace (DoRA)")
    if follower.vocab_size != lease.vocab_size:
        sizes = [f"{one.vocab_size} tokens" if one.vocab_size else "the base model" for one in (follower, lease)]
        raise ReloadRefused(f"running requests have the words of {sizes[0]}, and the new weights those of {sizes[1]}")


def _release(lease: Lease, _: object) -> None:
    lease.release()


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _create(path: Path) -> BinaryIO:
    return path.open("xb")


def _append(file: BinaryIO, update: Callable[[bytes], None], chunk: bytes) -> None:
    update(chunk)
    file.write(chunk)


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", field=field)
