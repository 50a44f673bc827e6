"""Removing stored files that no version needs: where files and database meet a second time."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from registry.blobs import BlobStore
from registry.shelves import Stored
from registry.store.blob_uses import BlobUses

# Whoever relies on a file waits for a batch, so it is short.
BATCH = 100
# Names that an answer holds.
MAX_NAMED = 1000
DEFAULT_GRACE_S = 24 * 3600.0
# Longer than the check of any artifact, which begins with a note and ends with a version.
MIN_GRACE_S = 600.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would be; `named` is the beginning of it."""

    named: tuple[Stored, ...]
    count: int
    size_bytes: int


async def collect(blobs: BlobStore, uses: BlobUses, *, grace_s: float, dry_run: bool) -> Collected:
    """Goes through everything that is stored. Files that were stored within the grace stay, as noted ones do.

    Raises StoreUnavailable; what was removed until then stays removed.
    """
    named: list[Stored] = []
    count, size_bytes = 0, 0
    items = blobs.items()
    while batch := await asyncio.to_thread(_next_batch, items):
        old = {one.digest: one for one in batch if time.time() - one.time > grace_s}
        async with uses.unneeded(list(old), grace_s=grace_s) as unneeded:
            for digest in unneeded:
                if not dry_run:
                    await blobs.remove(digest)
                count, size_bytes = count + 1, size_bytes + old[digest].size_bytes
                if len(named) < MAX_NAMED:
                    named.append(old[digest])
    return Collected(tuple(named), count, size_bytes)


def _next_batch(items: Iterator[Stored]) -> list[Stored]:
    return list(itertools.islice(items, BATCH))
