"""From the references of a request to weights in memory, leased. Joins the resolver and the loader; knows no gRPC.

    reference ──resolve──► version ──fetch──► verified files ──load──► slot ──► (self-test) ──► lease
                                              kept on disk ╌╌╌ until they are in memory

Each arrow either succeeds for exactly this version or raises; there is no way from here to the base model. What a
request composes is leased together or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterLoading
from inference.lora.lease import Lease
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles
from inference.lora.staging import FilesNeeded
from inference.resolver import PUSHED, Resolver, Version
from inference.self_test import SelfTest
from inference.tiers import Tier

PREFETCHES = 2  # at once; they are for later, and share the disk and the cores with what is asked for now
Keep = Callable[[str], contextlib.AbstractContextManager[None]]
"""Keeps the files of a digest on disk for as long as the context is open, see FileCache.keep."""


class AdapterDesk:
    """Hands out leases on adapters by reference. `self_test` tries adapters before their first lease; None tries none.

    `keep` is the disk cache's: what is being loaded does not leave it.

    A lease on a pushed name follows it: `followers` says which leases may be moved when other weights are pushed.
    """

    def __init__(
        self, resolver: Resolver, adapters: Adapters, *, keep: Keep, self_test: SelfTest | None = None
    ) -> None:
        self._resolver = resolver
        self._adapters = adapters
        self._keep = keep
        self._self_test = self_test
        self._prefetches = asyncio.Semaphore(PREFETCHES)
        self._followers: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._loads: set[asyncio.Task[Any]] = set()

    async def lease(self, reference: Reference) -> tuple[Version, Lease]:
        """`lease_all` of one."""
        ((version, lease),) = await self.lease_all([reference])
        return version, lease

    async def lease_all(
        self, references: Sequence[Reference], *, request_key: str = "", wait: bool = True
    ) -> list[tuple[Version, Lease]]:
        """The versions that the references mean now, with their weights in memory until each lease is released.

        All of them or none; who waits for one holds no other. `request_key` chooses the sides of split aliases.

        Raises everything that resolving, fetching and loading raise, and AdapterLoading when weights are not in memory
        and `wait` is false; they are then on their way.
        """
        while True:
            versions = [await self._resolver.resolve(one, request_key=request_key) for one in references]
            cold = [version for version in versions if not self._is_ready(version)]
            if cold and not wait:
                for version in cold:
                    self._start(self.load(version))
                raise AdapterLoading(f"{cold[0].name} is being loaded", retry_after_s=1.0)
            leases = await self.acquire_all(versions)
            pairs = list(zip(references, versions, strict=True))
            if await self._are_current(pairs):
                for (reference, version), lease in zip(pairs, leases, strict=True):
                    if _is_followed(reference, version):
                        lease.follows = version.adapter
                        self._followers.add(lease)
                return list(zip(versions, leases, strict=True))
            _release(leases)  # other weights were pushed while these were loaded

    def followers(self, name: str) -> list[Lease]:
        """The leases, not released yet, that follow a pushed name."""
        return [lease for lease in self._followers if lease.follows == name and lease.is_held]

    async def resolve(self, reference: Reference) -> Version:
        """As Resolver.resolve."""
        return await self._resolver.resolve(reference)

    async def acquire(self, version: Version) -> Lease:
        """`acquire_all` of one."""
        (lease,) = await self.acquire_all([version])
        return lease

    async def acquire_all(self, versions: Sequence[Version]) -> list[Lease]:
        """Leases on the versions, which have passed their self-tests: all of them or none.

        Raises everything that fetching and loading raise, and AdapterLoadFailed for a version that fails the test.
        """
        for version in versions:
            if self._self_test is not None and not self._self_test.has_passed(version):
                (lease,) = await self._acquire_all([version])
                try:
                    with self._keep(version.digest):
                        await self._self_test.run(version, await self._resolver.fetch(version))
                finally:
                    lease.release()  # nobody waits for another adapter while it holds this one
        return await self._acquire_all(versions)

    def _is_ready(self, version: Version) -> bool:
        is_tried = self._self_test is None or self._self_test.has_passed(version)
        return is_tried and self._adapters.is_loaded(version.digest)

    async def _are_current(self, pairs: Sequence[tuple[Reference, Version]]) -> bool:
        """Whether the pushed names among these still mean the same; nothing comes between this and its caller."""
        return all(
            [
                await self._resolver.resolve(reference) == version
                for reference, version in pairs
                if _is_followed(reference, version)
            ]
        )

    async def _acquire_all(self, versions: Sequence[Version]) -> list[Lease]:
        """Leases on the versions. Files that were damaged on disk are fetched once more."""
        by_digest = {version.digest: version for version in versions}
        folders: dict[str, Path] = {}
        refetched: set[str] = set()
        needed = [digest for digest in by_digest if self._adapters.needs_files(digest)]
        with contextlib.ExitStack() as kept:
            for digest in by_digest:
                kept.enter_context(self._keep(digest))
            while True:
                fetched = await asyncio.gather(*(self._resolver.fetch(by_digest[digest]) for digest in needed))
                folders |= dict(zip(needed, fetched, strict=True))
                files = [AdapterFiles(version.manifest, folders.get(version.digest)) for version in versions]
                try:
                    return await self._adapters.acquire_all(files)
                except FilesNeeded as error:  # it was in memory a moment ago
                    needed = [error.digest]
                except AdapterLoadFailed as error:
                    digest = error.metadata.get("digest", "")
                    if error.metadata.get("damaged") != "true" or digest in refetched:
                        raise
                    refetched.add(digest)
                    self._resolver.forget(by_digest[digest])
                    needed = [digest]

    async def fetch(self, version: Version) -> Path:
        """Brings the version's files to this machine and no further. Returns their folder, as Resolver.fetch."""
        return await self._resolver.fetch(version)

    async def prefetch(self, version: Version, tier: Tier) -> int:
        """Brings the version to a tier, where it stays for as long as there is room. Returns its size there in bytes.

        Raises as `acquire`, and AdapterTooLarge for a tier without room for it.
        """
        async with self._prefetches:
            if tier is Tier.ARENA:
                return await self.load(version)
            with self._keep(version.digest):
                folder = await self._resolver.fetch(version)
                if tier is Tier.DISK:
                    return version.manifest.size_bytes
                return await self._adapters.stage(AdapterFiles(version.manifest, folder))

    async def load(self, version: Version) -> int:
        """Brings the version into memory, evictable. Returns its size in bytes."""
        lease = await self.acquire(version)
        lease.release()
        return lease.size_bytes

    async def close(self) -> None:
        """Ends the loads that nobody waits for."""
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    def _start(self, load: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(load)
        self._loads.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._loads.discard(task)
        if not task.cancelled():
            task.exception()  # the next request for it meets the same error and reports it


def _is_followed(reference: Reference, version: Version) -> bool:
    return version.source == PUSHED and reference.name is not None


def _release(leases: Sequence[Lease]) -> None:
    for lease in leases:
        lease.release()
