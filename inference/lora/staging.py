"""Files to slabs in host memory: many who want one adapter share one read. Joins the reader and the host cache.

hold ──in the host cache──────────────────────────────► slab, held
  └──not there──► read on a loader thread ──► add ──► slab, held by each who waits
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from inference.errors import AdapterLoadFailed, Draining, InferenceError
from inference.lora.host_cache import HostCache, HostSlab
from inference.lora.priority import stand_back
from inference.lora.reading import AdapterFiles, Reader

LOADER_THREADS = 2  # one reads while the other checks; more would take processor time from the engine
log = logging.getLogger(__name__)


class FilesNeeded(Exception):
    """An adapter without files is not in memory any more: fetch them and ask again. Between loader and desk only."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"expected files of {digest}, because it is not in memory")
        self.digest = digest


@dataclass(slots=True)
class _Read:
    """A read under way and those who wait for it."""

    task: asyncio.Task[None] | None = None
    waiters: list[asyncio.Future[HostSlab]] = field(default_factory=list)


class Staging:
    """Brings adapters to host memory. Used from one event loop; `close` ends the reads and joins the threads."""

    def __init__(self, reader: Reader, host: HostCache, *, niceness: int = 0) -> None:
        """`niceness` is that of the threads, see `stand_back`."""
        self.host = host
        self._reader = reader
        self._reads: dict[str, _Read] = {}
        self._threads = ThreadPoolExecutor(
            LOADER_THREADS, thread_name_prefix="adapter-loader", initializer=stand_back, initargs=(niceness,)
        )

    async def close(self) -> None:
        """Ends every read and waits for the threads."""
        tasks = [read.task for read in self._reads.values() if read.task is not None]
        for digest, read in list(self._reads.items()):
            self._give_up(digest, read)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown()

    def is_reading(self, digest: str) -> bool:
        return digest in self._reads

    async def hold(self, files: AdapterFiles) -> HostSlab:
        """The adapter in host memory; whoever asked releases it to `host`.

        Raises FilesNeeded, and AdapterLoadFailed and AdapterTooLarge as Reader.read.
        """
        digest = files.digest
        slab = self.host.find(digest)
        if slab is not None:
            self.host.hold(slab)
            return slab
        read = self._reads.get(digest)
        if read is None:
            if files.folder is None:
                raise FilesNeeded(digest)
            read = self._reads[digest] = _Read()
            read.task = asyncio.create_task(self._read(files, read), name=f"read {digest}")
        waiter: asyncio.Future[HostSlab] = asyncio.get_running_loop().create_future()
        read.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.host.release(waiter.result())
            read.waiters.remove(waiter)
            if not read.waiters:
                self._give_up(digest, read)
            raise

    async def _read(self, files: AdapterFiles, read: _Read) -> None:
        """Runs as a task: gives a slab or an error to everybody who waits."""
        digest = files.digest
        try:
            weights = await asyncio.get_running_loop().run_in_executor(self._threads, self._reader.read, files)
        except InferenceError as error:
            log.warning("%s was not loaded: %s", digest, error)
            self._fail(digest, read, error)
        except asyncio.CancelledError:
            self._fail(digest, read, Draining())
            raise
        except Exception as error:
            log.exception("%s was not loaded", digest)
            self._fail(digest, read, AdapterLoadFailed(f"{type(error).__name__}: {error}"))
        else:
            del self._reads[digest]
            slab = self.host.add(digest, weights)
            for waiter in read.waiters:
                if not waiter.done():
                    self.host.hold(slab)
                    waiter.set_result(slab)
            self.host.release(slab)

    def _fail(self, digest: str, read: _Read, error: InferenceError) -> None:
        if self._reads.get(digest) is read:
            del self._reads[digest]
        for waiter in read.waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _give_up(self, digest: str, read: _Read) -> None:
        """Ends a read that nobody wants any more; who comes later does not join it."""
        if self._reads.get(digest) is read and read.task is not None:
            del self._reads[digest]
            read.task.cancel()
