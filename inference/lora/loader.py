"""Adapters in memory, for the event loop: verified files in, leases on slots out.

    acquire ──loaded──────────────────────────────────────────────────────────────► lease
       └──not loaded──► verify, read ──► reserve (evicts, or waits) ──► write ──► publish ──► lease for each waiter
                        loader thread    event loop                 loader thread  event loop

Joins the policy (slots), the memory (bank) and the format (adapter package). Every decision is taken on the event loop
and all reading, checking and copying happens on loader threads, so neither the loop nor the engine waits for a load. A
load evicts only when its weights are read and checked: one that fails has changed nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest, manifest_of_adapter
from adapter.plan import MAX_RANK, plan
from adapter.values import describe_non_finite, non_finite_tensors
from inference.errors import (
    AdapterLoadFailed,
    AdapterMemoryFull,
    AdapterNotFound,
    Draining,
    InferenceError,
    InvalidRequest,
)
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.rows import find_rows
from inference.lora.slots import Slot, Slots
from inference.lora.weights import Layout, lay_out, read_slab
from inference.models.sites import SiteShape

LOADER_THREADS = 2  # one reads while the other checks; more would take processor time from the engine
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What an adapter must be, and a private copy of its files; None for one that is known to be loaded."""

    manifest: Manifest
    folder: Path | None

    @property
    def digest(self) -> str:
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter in memory. `leases` counts the requests that use it."""

    digest: str
    slot: int
    size_bytes: int
    rank: int
    leases: int
    is_pinned: bool
    is_retired: bool


class Lease:
    """The right to use a slot, until it is released. Releasing twice is harmless."""

    def __init__(self, adapters: Adapters, slot: Slot, traits: _Traits) -> None:
        self.slot = slot.index
        self.digest = slot.digest
        self.size_bytes = slot.extent.num_bytes
        self.rank = traits.rank
        self.is_composable = traits.is_composable
        """Whether it may be used at another weight than 1 and beside other adapters."""
        self.vocab_size = traits.vocab_size
        """Tokens that the adapter knows; None for those of the base model."""
        self._adapters = adapters
        self._entry: Slot | None = slot

    def release(self) -> None:
        """Gives the slot back; on the event loop, and after the engine has ended the request."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._adapters._release(entry)


@dataclass(slots=True)
class _Load:
    """A load under way and those who wait for it."""

    task: asyncio.Task[None] | None = None
    is_writing: bool = False
    waiters: list[asyncio.Future[Lease]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is remembered of a loaded adapter's plan."""

    rank: int
    is_composable: bool
    vocab_size: int | None


@dataclass(frozen=True, slots=True)
class _Weights:
    """An adapter read and checked, on its way to the arena."""

    slab: Tensor
    layout: Layout
    traits: _Traits


class Adapters:
    """Every adapter in memory. Used from one event loop; `close` ends the loads and joins the loader threads.

    `modules` are the base model's linear layers by name with (out_features, in_features): what an adapter is checked
    against. `base` gives their weights, which DoRA's column norms need. `wait_s` is how long a load waits for memory
    when everything loaded is in use.
    """

    def __init__(
        self,
        bank: Bank,
        slots: Slots,
        *,
        sites: Sequence[SiteShape],
        modules: Mapping[str, tuple[int, int]],
        base: BaseWeights,
        wait_s: float = 30.0,
        max_rank: int = MAX_RANK,
    ) -> None:
        self._bank = bank
        self._slots = slots
        self._sites = sites
        self._modules = modules
        self._base = base
        self._wait_s = wait_s
        self._max_rank = max_rank
        self._traits: dict[str, _Traits] = {}
        self._loads: dict[str, _Load] = {}
        self._threads = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="adapter-loader")
        self._slabs = asyncio.Semaphore(LOADER_THREADS)  # bounds the memory of adapters read and not placed yet
        self._turn = asyncio.Lock()  # loads are placed in order
        self._freed = asyncio.Event()

    async def close(self) -> None:
        """Ends every load that has not begun to write and waits for the threads."""
        tasks = [load.task for load in self._loads.values() if load.task is not None]
        for digest, load in list(self._loads.items()):
            self._give_up(digest, load)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown()

    async def acquire(self, files: AdapterFiles) -> Lease:
        """A lease on the adapter, loading it first if it is not in memory; many who wait share one load.

        Raises AdapterLoadFailed with every reason (metadata damaged=true if the files are not those of the manifest),
        AdapterTooLarge, and AdapterMemoryFull when nothing was freed in time.
        """
        digest = files.digest
        slot = self._slots.find(digest)
        if slot is not None and slot.is_loaded:
            return self._lease(slot)
        load = self._loads.get(digest)
        if load is None:
            load = self._loads[digest] = _Load()
            load.task = asyncio.create_task(self._load(files, load), name=f"load {digest}")
        waiter: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        load.waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().release()
            load.waiters.remove(waiter)
            if not load.waiters:
                self._give_up(digest, load)
            raise

    def is_loaded(self, digest: str) -> bool:
        slot = self._slots.find(digest)
        return slot is not None and slot.is_loaded

    def is_loading(self, digest: str) -> bool:
        return digest in self._loads

    @property
    def capacity_bytes(self) -> int:
        return self._slots.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._slots.used_bytes

    def fits_free(self, num_bytes: int) -> bool:
        """Whether so many bytes can be placed without evicting anything."""
        return num_bytes <= self._slots.largest_hole_bytes

    def loaded(self) -> list[LoadedAdapter]:
        """Every adapter in memory, least recently used first."""
        return [
            LoadedAdapter(
                digest=slot.digest,
                slot=slot.index,
                size_bytes=slot.extent.num_bytes,
                rank=self._traits[slot.digest].rank,
                leases=slot.leases,
                is_pinned=slot.is_pinned,
                is_retired=slot.is_retired,
            )
            for slot in self._slots
            if slot.is_loaded
        ]

    def pin(self, digest: str) -> None:
        """Keeps a loaded adapter in memory until it is unpinned. Raises AdapterNotFound if it is not loaded."""
        self._slots.pin(self._find_loaded(digest))

    def unpin(self, digest: str) -> None:
        """Lets an adapter be evicted again. Raises AdapterNotFound if it is not loaded and pinned."""
        slot = self._find_loaded(digest)
        if not slot.is_pinned:
            raise AdapterNotFound(f"{digest} is not pinned")
        self._after(slot, was_freed=self._slots.unpin(slot))

    def retire(self, digest: str) -> None:
        """Frees the adapter once nothing leases or pins it, at once if that is now; harmless if it is not loaded."""
        slot = self._slots.find(digest)
        if slot is not None and slot.is_loaded:
            self._after(slot, was_freed=self._slots.retire(slot))

    def evict(self, digest: str) -> None:
        """As retire, for one whom it matters to: raises AdapterNotFound if it is not loaded."""
        slot = self._find_loaded(digest)
        self._after(slot, was_freed=self._slots.retire(slot))

    def check_integrity(self) -> None:
        """Asserts that slots and bank agree on who is where."""
        self._slots.check_integrity()
        owners = {slot.index: slot.digest for slot in self._slots if slot.is_loaded}
        found = {index: digest for index, digest in enumerate(self._bank.owners) if digest is not None}
        assert owners == found, f"expected the owners {owners}, found {found}"
        assert self._traits.keys() == set(owners.values()), "traits are kept of an adapter that is not loaded"

    async def _load(self, files: AdapterFiles, load: _Load) -> None:
        """Runs as a task: gives a lease or an error to everybody who waits."""
        digest = files.digest
        try:
            slot, traits = await self._place(files, load)
        except InferenceError as error:
            log.warning("%s was not loaded: %s", digest, error)
            self._end(load, digest, error)
        except asyncio.CancelledError:
            self._end(load, digest, Draining())
            raise
        except Exception as error:
            log.exception("%s was not loaded", digest)
            self._end(load, digest, AdapterLoadFailed(f"{type(error).__name__}: {error}"))
        else:
            self._bank.publish(slot.index, digest)
            self._slots.publish(slot)
            self._traits[digest] = traits
            del self._loads[digest]
            for waiter in load.waiters:
                if not waiter.done():
                    waiter.set_result(self._lease(slot))
            self._release(slot)  # the load's own lease

    async def _place(self, files: AdapterFiles, load: _Load) -> tuple[Slot, _Traits]:
        """Reads an adapter and writes it to the arena. Returns its slot, which the load leases, and its traits."""
        loop = asyncio.get_running_loop()
        async with self._slabs:
            weights = await loop.run_in_executor(self._threads, self._read, files)
            slot = await self._reserve(files.digest, weights.slab.numel() * weights.slab.itemsize)
            load.is_writing = True  # from here on nobody cancels: a thread writes to the slot's bytes
            try:
                await loop.run_in_executor(
                    self._threads, self._bank.write, slot.index, slot.extent, weights.slab, weights.layout
                )
            except BaseException:
                self._slots.abandon(slot)
                raise
            return slot, weights.traits

    def _read(self, files: AdapterFiles) -> _Weights:
        """On a loader thread: verifies the files and reads the weights. Raises AdapterLoadFailed, AdapterTooLarge."""
        assert files.folder is not None, f"expected files, because {files.digest} is not loaded"
        weights = files.folder / WEIGHTS_FILE
        try:
            found = manifest_of_adapter(files.folder)
            _check_manifest(files.manifest, found)
            header = read_header(weights)
            planned = plan(read_config(files.folder / CONFIG_FILE), header, self._modules, max_rank=self._max_rank)
            rows = find_rows(weights, header, planned, base=self._base)
            layout = lay_out(planned, self._sites, self._bank.dtype, rows=rows)
            self._slots.check_fits(layout.num_elements * self._bank.dtype.itemsize)
            if names := non_finite_tensors(weights, header):
                raise AdapterRefused(describe_non_finite(names))
            slab = read_slab(weights, header, layout, self._bank.dtype, base=self._base, rows=rows)
            vocab_size = next((one.vocab_size for one in rows), None)
            return _Weights(slab, layout, _Traits(planned.rank, planned.is_composable and not rows, vocab_size))
        except AdapterRefused as refused:
            raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused

    async def _reserve(self, digest: str, num_bytes: int) -> Slot:
        """A slot of that size, waiting for a release if everything is in use. Raises AdapterMemoryFull."""
        full: AdapterMemoryFull | None = None
        try:
            async with asyncio.timeout(self._wait_s), self._turn:
                while True:
                    self._freed.clear()
                    try:
                        slot, evicted = self._slots.reserve(digest, num_bytes)
                    except AdapterMemoryFull as error:
                        full = error
                        await self._freed.wait()
                    else:
                        for victim in evicted:
                            self._forget(victim)
                        return slot
        except TimeoutError:
            raise full or AdapterMemoryFull(f"the adapter takes {num_bytes} bytes and others wait before it") from None

    def _end(self, load: _Load, digest: str, error: InferenceError) -> None:
        if self._loads.get(digest) is load:
            del self._loads[digest]
        for waiter in load.waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _give_up(self, digest: str, load: _Load) -> None:
        """Ends a load that nobody wants any more, unless it is writing; who comes later does not join it."""
        if self._loads.get(digest) is load and not load.is_writing and load.task is not None:
            del self._loads[digest]
            load.task.cancel()

    def _lease(self, slot: Slot) -> Lease:
        self._slots.lease(slot)
        return Lease(self, slot, self._traits[slot.digest])

    def _release(self, slot: Slot) -> None:
        self._after(slot, was_freed=self._slots.release(slot))

    def _after(self, slot: Slot, *, was_freed: bool) -> None:
        """A slot was freed, or may have become evictable: whoever waits for memory looks again."""
        if was_freed:
            self._forget(slot)
        self._freed.set()

    def _forget(self, slot: Slot) -> None:
        self._bank.disown(slot.index)
        del self._traits[slot.digest]

    def _find_loaded(self, digest: str) -> Slot:
        slot = self._slots.find(digest)
        if slot is None or not slot.is_loaded:
            raise AdapterNotFound(f"{digest} is not in memory")
        return slot


def check_composition(uses: Sequence[tuple[Lease, float]]) -> None:
    """Raises InvalidRequest unless these adapters at these weights have one meaning together."""
    for lease, weight in uses:
        if not lease.is_composable and (len(uses) > 1 or weight != 1.0):
            found = f"{len(uses)} adapters" if len(uses) > 1 else f"the weight {weight:g}"
            raise InvalidRequest(
                f"adapters: expected {lease.digest} alone and at the weight 1, because it scales or replaces what the "
                f"base model computes (DoRA, fully trained modules); found {found}",
                field="adapters",
            )


def _check_manifest(expected: Manifest, found: Manifest) -> None:
    """Raises AdapterLoadFailed, with metadata damaged=true, unless every file is the one of the manifest."""
    reasons = []
    for file in expected.files:
        actual = found.file(file.path)
        if actual != file:
            shown = f"{actual.digest} of {actual.size_bytes} bytes" if actual else "no such file"
            reasons.append(f"{file.path}: expected {file.digest} of {file.size_bytes} bytes, found {shown}")
    reasons += [f"{file.path}: expected no such file" for file in found.files if expected.file(file.path) is None]
    if reasons:
        raise AdapterLoadFailed(
            f"the files are not those of {expected.digest}: {reasons[0]}",
            reasons=tuple(reasons),
            metadata={"damaged": "true"},
        )
