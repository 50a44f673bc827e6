"""What a registry does for itself from time to time. Every replica tries; Postgres lets one at a time work."""

from __future__ import annotations

import asyncio
import logging

from registry.errors import RegistryError
from registry.store import Store
from registry.store.compaction import Keep

log = logging.getLogger(__name__)

# A worker that was lost for this long is not coming back; if it does, it reports and is there again.
FORGET_WORKERS_S = 7 * 86_400.0


async def keep_up(store: Store, keep: Keep, *, every_s: float) -> None:
    """Removes old events and lost workers, now and every `every_s` seconds, until cancelled."""
    while True:
        try:
            done = await store.compaction.run(keep)
            forgotten = await store.workers.forget(lost_for_s=FORGET_WORKERS_S)
        except RegistryError as error:
            log.warning("upkeep failed, trying again in %.0f s: %s", every_s, error)
        else:
            if done.removed_events:
                log.info("removed %d events up to revision %d", done.removed_events, done.compacted_revision)
            if forgotten:
                log.info("forgot workers that were lost: %s", ", ".join(forgotten))
        await asyncio.sleep(every_s)
