"""Keeps one adapter merged into the base model, whichever version its reference means: `inference serve --merge`.

    resolve ──another version──► drop the merged layers ──► merge and pack, on a thread ──► use, between two steps

Nothing depends on it: until an adapter is merged, and whenever that fails, its requests are served on the fly. See
inference/lora/merging.py for which steps use the merged layers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from adapter.names import Reference
from inference.adapters import AdapterDesk
from inference.errors import InferenceError
from inference.lora.merging import Merged
from inference.lora.reading import AdapterFiles

LOOK_AGAIN_S = 5.0  # a promotion is served on the fly for so long, which costs throughput and no answer

log = logging.getLogger(__name__)


class Merger:
    """Follows one reference. Used from one event loop."""

    def __init__(
        self,
        reference: Reference,
        desk: AdapterDesk,
        *,
        read: Callable[[AdapterFiles], Merged],
        use: Callable[[Merged | None], Awaitable[None]],
    ) -> None:
        """`read` merges and packs, for as long as it takes; `use` gives the steps what they may use from now on."""
        self._reference = reference
        self._desk = desk
        self._read = read
        self._use = use
        self._digest = ""  # of the version that was merged, or could not be, last

    async def run(self) -> None:
        """Follows until it is cancelled."""
        told = ""
        while True:
            try:
                await self.follow()
                told = ""
            except InferenceError as error:
                if str(error) != told:  # else every few seconds
                    log.warning("%s is not merged and served on the fly: %s", self._reference, error)
                told = str(error)
            except Exception:
                log.exception("%s is not merged and served on the fly", self._reference)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def follow(self) -> None:
        """Merges what the reference means now, unless that was tried before.

        Raises what resolving and fetching raise, and AdapterLoadFailed.
        """
        version = await self._desk.resolve(self._reference)
        if version.digest == self._digest:
            return
        await self._use(None)  # first, as three copies of the layers may not fit
        files = AdapterFiles(version.manifest, await self._desk.fetch(version))
        self._digest = version.digest
        merged = await asyncio.to_thread(self._read, files)
        await self._use(merged)
        log.info("%s is merged; its layers take %d bytes beside the originals", version.name, merged.num_bytes)
