"""From a reference in a request to weights in memory, leased. Joins the resolver and the loader; knows no gRPC.

    reference ──resolve──► version ──fetch──► verified files ──load──► slot ──► (self-test) ──► lease

Each arrow either succeeds for exactly this version or raises; there is no way from here to the base model.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterLoading
from inference.lora.loader import Adapters, Lease
from inference.lora.reading import AdapterFiles
from inference.resolver import PUSHED, Resolver, Version
from inference.self_test import SelfTest


class AdapterDesk:
    """Hands out leases on adapters by reference. `self_test` tries adapters before their first lease; None tries none.

    A lease on a pushed name follows it: `followers` says which leases may be moved when other weights are pushed.
    """

    def __init__(self, resolver: Resolver, adapters: Adapters, *, self_test: SelfTest | None = None) -> None:
        self._resolver = resolver
        self._adapters = adapters
        self._self_test = self_test
        self._followers: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._loads: set[asyncio.Task[Any]] = set()

    async def lease(self, reference: Reference, *, request_key: str = "", wait: bool = True) -> tuple[Version, Lease]:
        """The version that the reference means now, with its weights in memory until the lease is released.

        `request_key` chooses the side of a split alias.

        Raises everything that resolving, fetching and loading raise, and AdapterLoading when the weights are not in
        memory and `wait` is false; they are then on their way.
        """
        while True:
            version = await self._resolver.resolve(reference, request_key=request_key)
            if not wait and not self._is_ready(version):
                self._start(self.load(version))
                raise AdapterLoading(f"{version.name} is being loaded", retry_after_s=1.0)
            lease = await self.acquire(version)
            if version.source != PUSHED or reference.name is None:
                return version, lease
            if await self._resolver.resolve(reference) == version:
                lease.follows = version.adapter
                self._followers.add(lease)
                return version, lease
            lease.release()  # other weights were pushed while these were loaded

    def followers(self, name: str) -> list[Lease]:
        """The leases, not released yet, that follow a pushed name."""
        return [lease for lease in self._followers if lease.follows == name and lease.is_held]

    async def resolve(self, reference: Reference) -> Version:
        """As Resolver.resolve."""
        return await self._resolver.resolve(reference)

    async def acquire(self, version: Version) -> Lease:
        """A lease on the version, which has passed its self-test.

        Raises everything that fetching and loading raise, and AdapterLoadFailed for a version that fails the test.
        """
        if self._self_test is None or self._self_test.has_passed(version):
            return await self._acquire(version)
        lease = await self._acquire(version)
        try:
            await self._self_test.run(version, await self._resolver.fetch(version))
        except BaseException:
            lease.release()
            raise
        return lease

    def _is_ready(self, version: Version) -> bool:
        is_tried = self._self_test is None or self._self_test.has_passed(version)
        return is_tried and self._adapters.is_loaded(version.digest)

    async def _acquire(self, version: Version) -> Lease:
        """A lease on the version. Files that were damaged on disk are fetched once more."""
        if self._adapters.is_loaded(version.digest):
            return await self._adapters.acquire(AdapterFiles(version.manifest, None))
        folder = await self._resolver.fetch(version)
        try:
            return await self._adapters.acquire(AdapterFiles(version.manifest, folder))
        except AdapterLoadFailed as error:
            if error.metadata.get("damaged") != "true":
                raise
            self._resolver.forget(version)
            folder = await self._resolver.fetch(version)
            return await self._adapters.acquire(AdapterFiles(version.manifest, folder))

    async def fetch(self, version: Version) -> Path:
        """Brings the version's files to this machine and no further. Returns their folder, as Resolver.fetch."""
        return await self._resolver.fetch(version)

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
