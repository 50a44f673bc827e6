"""From a reference in a request to weights in memory, leased. Joins the resolver and the loader; knows no gRPC.

    reference ──resolve──► version ──fetch──► verified files ──load──► slot ──► lease

Each arrow either succeeds for exactly this version or raises; there is no way from here to the base model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from adapter.names import Reference
from inference.errors import AdapterLoadFailed, AdapterLoading
from inference.lora.loader import Adapters, Lease
from inference.lora.reading import AdapterFiles
from inference.resolver import Resolver, Version


class AdapterDesk:
    """Hands out leases on adapters by reference."""

    def __init__(self, resolver: Resolver, adapters: Adapters) -> None:
        self._resolver = resolver
        self._adapters = adapters
        self._loads: set[asyncio.Task[Any]] = set()

    async def lease(self, reference: Reference, *, request_key: str = "", wait: bool = True) -> tuple[Version, Lease]:
        """The version that the reference means now, with its weights in memory until the lease is released.

        `request_key` chooses the side of a split alias.

        Raises everything that resolving, fetching and loading raise, and AdapterLoading when the weights are not in
        memory and `wait` is false; they are then on their way.
        """
        version = await self._resolver.resolve(reference, request_key=request_key)
        if not wait and not self._adapters.is_loaded(version.digest):
            self._start(self.load(version))
            raise AdapterLoading(f"{version.name} is being loaded", retry_after_s=1.0)
        return version, await self.acquire(version)

    async def resolve(self, reference: Reference) -> Version:
        """As Resolver.resolve."""
        return await self._resolver.resolve(reference)

    async def acquire(self, version: Version) -> Lease:
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
