"""What a registry does for itself from time to time. Every replica tries; Postgres lets one at a time work."""

from __future__ import annotations

import asyncio
import logging

from registry.errors import RegistryError
from registry.store.compaction import Compaction, Keep

log = logging.getLogger(__name__)


async def keep_compacting(compaction: Compaction, keep: Keep, *, every_s: float) -> None:
    """Compacts now and every `every_s` seconds, until cancelled."""
    while True:
        try:
            done = await compaction.run(keep)
        except RegistryError as error:
            log.warning("compaction failed, trying again in %.0f s: %s", every_s, error)
        else:
            if done.removed_events:
                log.info("removed %d events up to revision %d", done.removed_events, done.compacted_revision)
        await asyncio.sleep(every_s)
