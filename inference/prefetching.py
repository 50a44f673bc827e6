"""Adapters that publishers want near before anybody asks: versions with the label `loraplex.prefetch`."""

from __future__ import annotations

import asyncio
import logging

from inference.adapters import AdapterDesk
from inference.errors import InferenceError
from inference.lora.loader import Adapters
from inference.resolver import Version
from inference.resolver.registry import to_version
from inference.tiers import Tier, labelled_tier
from registry.resources import AdapterVersion, VersionState

log = logging.getLogger(__name__)


class Prefetcher:
    """Prefetches versions as they are seen, each once. A wish is not a promise: what fails is logged and no more."""

    def __init__(self, desk: AdapterDesk, adapters: Adapters) -> None:
        self._desk = desk
        self._adapters = adapters
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def see(self, version: AdapterVersion) -> None:
        """Begins to bring a version to the tier of its label, if it has one."""
        try:
            tier = labelled_tier(version.provenance.labels)
        except InferenceError as error:
            log.warning("%s:%d is not prefetched: %s", version.adapter, version.number, error)
            return
        if tier is None or version.state is VersionState.RETIRED or version.digest in self._tasks:
            return
        task = asyncio.create_task(self._bring(to_version(version), tier), name=f"prefetch {version.digest}")
        self._tasks[version.digest] = task
        task.add_done_callback(lambda _: self._tasks.pop(version.digest))

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring(self, version: Version, tier: Tier) -> None:
        """For a wish nobody has to leave the arena: what does not fit beside the others comes as near as it can."""
        if tier is Tier.ARENA and not self._adapters.fits_free(version.manifest.size_bytes):
            tier = Tier.HOST
        if tier is Tier.HOST and version.manifest.size_bytes > self._adapters.host.capacity_bytes:
            tier = Tier.DISK
        try:
            size_bytes = await self._desk.prefetch(version, tier)
        except InferenceError as error:
            log.warning("%s is not prefetched: %s", version.name, error)
        except Exception:
            log.exception("%s is not prefetched", version.name)
        else:
            log.info("%s is in the %s, %d bytes", version.name, tier.value, size_bytes)
