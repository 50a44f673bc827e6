"""Adapters in memory, for the event loop: verified files in, leases on slots out.

    acquire ──all in memory──────────────────────────────────────────────────────────► leases
       └──into the line──► stage ──► reserve (evicts, or waits) ──► write ──► publish ──► leases
                           loader    event loop: room for all that   copier    event loop
                           threads   a request misses, or for none   thread

Joins the policy (slots), the memory (bank, host cache) and the reader. Every decision is taken on the event loop and
all reading, checking and copying happens on threads, so neither the loop nor the engine waits for a load.

A request that waits holds no slot, so requests that need several adapters never wait for each other. Who has been read
is placed in the order of arrival. Who needs nothing new passes by, unless somebody has waited for long: then what has
to leave for that one is closed to newcomers. A load evicts only when its weights are read and checked: one that fails
has changed nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

from inference.errors import (
    AdapterLoadFailed,
    AdapterMemoryFull,
    AdapterNotFound,
    AdapterTooLarge,
    Draining,
    InferenceError,
)
from inference.lora.bank import Bank
from inference.lora.host_cache import HostCache, HostSlab
from inference.lora.lease import Lease, LoadedAdapter
from inference.lora.line import Claim, Line
from inference.lora.moving import Mover, RunBetweenSteps, run_at_once
from inference.lora.priority import stand_back
from inference.lora.reading import AdapterFiles, Reader, Traits
from inference.lora.slots import Move, Slot, Slots
from inference.lora.staging import LOADER_THREADS, Staging

STAGED_AHEAD = 2 * LOADER_THREADS  # adapters read before they can be placed; bounds their memory, keeps threads busy
log = logging.getLogger(__name__)


class Adapters:
    """Every adapter in memory. Used from one event loop; `close` ends the loads and joins the threads.

    `wait_s` is how long a load waits for memory when everything loaded is in use. `run_between_steps` is the engine's:
    slots in use are moved there when the free bytes suffice and no hole does. `niceness` is that of the threads.
    """

    def __init__(
        self,
        bank: Bank,
        slots: Slots,
        reader: Reader,
        *,
        host: HostCache,
        run_between_steps: RunBetweenSteps = run_at_once,
        niceness: int = 0,
        wait_s: float = 30.0,
    ) -> None:
        self.host = host
        self.mover = Mover(bank, run_between_steps)
        self._bank = bank
        self._slots = slots
        self._staging = Staging(reader, host, niceness=niceness)
        self._traits: dict[str, Traits] = {}
        self._line = Line(wait_s, self._advance)
        self._stagings: set[asyncio.Task[None]] = set()
        self._writes: dict[str, asyncio.Task[InferenceError | None]] = {}
        self._copier = ThreadPoolExecutor(
            1, thread_name_prefix="adapter-copier", initializer=stand_back, initargs=(niceness,)
        )
        self._closed: set[str] = set()  # to newcomers, for the sake of who has waited for long
        self._compaction: asyncio.Task[None] | None = None
        self.compactions = 0
        self._is_closed = False

    async def close(self) -> None:
        """Ends every load that has not begun to write and waits for the threads."""
        self._is_closed = True
        for claim in self._line:
            self._refuse(claim, Draining())
        self._line.note_blocked(None)
        if self._compaction is not None:
            await self._compaction
        await self._staging.close()
        await asyncio.gather(*self._stagings, return_exceptions=True)
        await asyncio.gather(*self._writes.values())
        self._copier.shutdown()

    async def acquire(self, files: AdapterFiles) -> Lease:
        """`acquire_all` of one."""
        (lease,) = await self.acquire_all([files])
        return lease

    async def acquire_all(self, files: Sequence[AdapterFiles]) -> list[Lease]:
        """Leases on these adapters, all of them or none, loading those that are not in memory; loads are shared.

        Raises AdapterLoadFailed with every reason (metadata damaged=true if the files are not those of the manifest),
        AdapterTooLarge if they do not fit together, AdapterMemoryFull when nothing was freed in time, FilesNeeded.
        """
        if self._is_closed:
            raise Draining
        claim = self._line.join({one.digest: one for one in files})
        granted = claim.granted
        if self._may_pass(claim):
            self._grant(claim)
        else:
            self._advance()
        try:
            slots = await granted
        except asyncio.CancelledError:
            if not granted.cancelled() and granted.exception() is None:
                self._release_all(granted.result())
            else:
                self._leave(claim)
                self._advance()
            raise
        try:
            await self._wait_until_written(slots)
        except BaseException:
            self._release_all(slots)
            raise
        return self._leases(files, {slot.digest: slot for slot in slots})

    async def stage(self, files: AdapterFiles) -> int:
        """Brings an adapter to host memory and no further. Returns its bytes. Raises as acquire_all."""
        slab = await self._staging.hold(files)
        try:
            self.host.check_fits(slab.num_bytes)
            return slab.num_bytes
        finally:
            self.host.release(slab)

    def is_loaded(self, digest: str) -> bool:
        slot = self._slots.find(digest)
        return slot is not None and slot.is_loaded

    def is_loading(self, digest: str) -> bool:
        return digest in self._line.awaited or digest in self._writes or self._staging.is_reading(digest)

    def needs_files(self, digest: str) -> bool:
        """Whether a load would have to read the adapter's files."""
        return self._slots.find(digest) is None and self.host.find(digest) is None

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
        """Frees the adapter once nothing leases or pins it, at once if that is now; harmless if it is not loaded.

        Its slab stays in host memory for as long as there is room, for a way back.
        """
        slot = self._slots.find(digest)
        if slot is not None and slot.is_loaded:
            self._after(slot, was_freed=self._slots.retire(slot))

    def evict(self, digest: str) -> None:
        """As retire, for one whom it matters to: raises AdapterNotFound if it is not loaded."""
        slot = self._find_loaded(digest)
        self._after(slot, was_freed=self._slots.retire(slot))

    def check_integrity(self) -> None:
        """Asserts that slots and bank agree on who is where, and that nothing waits that could go on."""
        self._slots.check_integrity()
        self.host.check_integrity()
        owners = {slot.index: slot.digest for slot in self._slots if slot.is_loaded}
        found = {index: digest for index, digest in enumerate(self._bank.owners) if digest is not None}
        assert owners == found, f"expected the owners {owners}, found {found}"
        assert self._traits.keys() == set(owners.values()), "traits are kept of an adapter that is not loaded"
        loading = {slot.digest for slot in self._slots if not slot.is_loaded}
        assert loading == self._writes.keys(), f"expected writes of {loading}, found {set(self._writes)}"
        assert self._line.awaited == Counter(digest for claim in self._line for digest in claim.files)
        held = Counter(digest for claim in self._line for digest in claim.slabs) + Counter(self._writes.keys())
        assert all(slab.users >= held[slab.digest] for slab in self.host), "a slab is used and not held"
        assert not any(self._may_pass(claim) for claim in self._line), "a claim waits for what is in memory"

    def _advance(self) -> None:
        """Gives slots to who is first in the line and staged, for as long as there is room; called on every change."""
        full: AdapterMemoryFull | None = None
        self._closed = set()
        self._stage_ahead()
        while self._compaction is None and full is None and (claim := self._first_staged()) is not None:
            try:
                self._place(claim)
            except AdapterTooLarge as error:
                self._refuse(claim, error)
            except AdapterMemoryFull as error:
                if self._begin_compaction(claim):
                    break
                if self._line.has_waited_too_long(claim):
                    self._refuse(claim, error)
                else:
                    full = error
                    if self._line.has_waited_long(claim):
                        self._closed = self._slots.next_to_leave(*self._lacks(claim))
            self._stage_ahead()
        self._let_pass()
        self._line.note_blocked(claim if full is not None else None)

    def _stage_ahead(self) -> None:
        """Begins to read for the first of the line, and for those behind it up to a bound."""
        ahead: set[str] = set()
        for claim in self._line:
            missing = self._missing(claim)
            if ahead and len(ahead | missing) > STAGED_AHEAD:
                return
            ahead |= missing
            if claim.staging is None and not missing <= claim.slabs.keys():
                claim.staging = asyncio.create_task(self._stage(claim, missing - claim.slabs.keys()))
                self._stagings.add(claim.staging)
                claim.staging.add_done_callback(self._stagings.discard)

    async def _stage(self, claim: Claim, missing: set[str]) -> None:
        """Runs as a task: brings what a claim misses to host memory, or ends the claim with the error."""

        async def hold(digest: str) -> None:
            slab = await self._staging.hold(claim.files[digest])
            if claim.is_waiting:
                claim.slabs[digest] = slab
            else:  # it left the line in the meantime, and whoever takes it out of the line ends this task too late
                self.host.release(slab)

        error: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for digest in missing:
                    group.create_task(hold(digest))
        except ExceptionGroup as errors:
            error = errors.exceptions[0]
        claim.staging = None
        if error is not None:
            self._refuse(claim, error)
        self._advance()

    def _first_staged(self) -> Claim | None:
        """Who has been read is placed in the order of arrival; who is still being read does not hold it up."""
        return next((one for one in self._line if one.staging is None and self._missing(one) <= one.slabs.keys()), None)

    def _place(self, claim: Claim) -> None:
        """Reserves room for all that a claim misses and begins to write. Raises AdapterTooLarge, AdapterMemoryFull."""
        sizes, beside = self._lacks(claim)
        reserved, evicted = self._slots.reserve(sizes, beside=beside, awaited=self._line.awaited)
        for victim in evicted:
            self._forget(victim)
        for slot in reserved:
            write = self._write(slot, claim.slabs.pop(slot.digest))
            self._writes[slot.digest] = asyncio.create_task(write, name=f"write {slot.digest}")
        self._let_pass()

    def _begin_compaction(self, claim: Claim) -> bool:
        """Whether moving slots together makes room for a claim; if so, that is under way, and nobody is placed."""
        sizes, beside = self._lacks(claim)
        found = self._slots.begin_compaction(sizes, beside=beside, awaited=self._line.awaited)
        if found is None:
            return False
        moves, evicted = found
        for victim in evicted:
            self._forget(victim)
        self._compaction = asyncio.create_task(self._compact(moves), name="compaction")
        return True

    async def _compact(self, moves: Sequence[Move]) -> None:
        """Runs as a task, which nobody cancels."""
        await self.mover.move(moves)
        for slot in self._slots.end_compaction(moves):
            self._forget(slot)
        self.compactions += 1
        self._compaction = None
        self._advance()

    def _lacks(self, claim: Claim) -> tuple[dict[str, int], AbstractSet[str]]:
        """The bytes of what a staged claim misses, and what it has."""
        missing = self._missing(claim)
        sizes = {digest: claim.slabs[digest].num_bytes for digest in claim.files if digest in missing}
        return sizes, claim.files.keys() - missing

    def _may_pass(self, claim: Claim) -> bool:
        """Whether a claim needs no memory and is in nobody's way."""
        return not self._missing(claim) and self._closed.isdisjoint(claim.files)

    def _let_pass(self) -> None:
        for claim in [claim for claim in self._line if self._may_pass(claim)]:
            self._grant(claim)

    def _grant(self, claim: Claim) -> None:
        """Everything that a claim needs is in memory or on its way there from a thread that nothing holds up."""
        self._leave(claim)
        if not claim.granted.done():
            slots = [slot for digest in claim.files if (slot := self._slots.find(digest)) is not None]
            for slot in slots:
                self._slots.lease(slot)
            claim.granted.set_result(slots)

    def _refuse(self, claim: Claim, error: Exception) -> None:
        self._leave(claim)
        if not claim.granted.done():
            claim.granted.set_exception(error)

    def _leave(self, claim: Claim) -> None:
        """Takes a claim out of the line, if it is there, with all that it holds."""
        if not self._line.leave(claim):
            return
        while claim.slabs:
            self.host.release(claim.slabs.popitem()[1])

    def _missing(self, claim: Claim) -> set[str]:
        """The claim's digests that have no slot."""
        return {digest for digest in claim.files if self._slots.find(digest) is None}

    async def _write(self, slot: Slot, slab: HostSlab) -> InferenceError | None:
        """Runs as a task, which nobody cancels: a thread writes to the slot's bytes. Returns what went wrong."""
        weights, error = slab.weights, None
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._copier, self._bank.write, slot.index, slot.extent, weights.slab, weights.layout
            )
        except Exception as failure:
            log.exception("%s was not written", slot.digest)
            error = AdapterLoadFailed(f"{type(failure).__name__}: {failure}")
            self._slots.abandon(slot)
        else:
            self._bank.publish(slot.index, slot.digest)
            self._slots.publish(slot)
            self._traits[slot.digest] = weights.traits
        del self._writes[slot.digest]
        self.host.release(slab)
        if error is None:
            self._release(slot)  # the load's own lease
        else:
            self._advance()
        return error

    async def _wait_until_written(self, slots: Sequence[Slot]) -> None:
        """Raises AdapterLoadFailed if a slot's weights did not get there."""
        writes = [self._writes[slot.digest] for slot in slots if not slot.is_loaded]
        if writes:
            await asyncio.wait(writes)
        for write in writes:
            if (error := write.result()) is not None:
                raise error

    def _leases(self, files: Sequence[AdapterFiles], slots: Mapping[str, Slot]) -> list[Lease]:
        """One for each of `files`; the slots are leased once already, and once more where an adapter is named again."""
        leases: list[Lease] = []
        seen: set[str] = set()
        for one in files:
            slot = slots[one.digest]
            if one.digest in seen:
                self._slots.lease(slot)
            seen.add(one.digest)
            leases.append(Lease(self, slot, self._traits[one.digest]))
        return leases

    def _release_all(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if self._slots.find(slot.digest) is slot:  # not one whose write failed
                self._release(slot)

    def _release(self, slot: Slot) -> None:
        self._after(slot, was_freed=self._slots.release(slot))

    def _after(self, slot: Slot, *, was_freed: bool) -> None:
        """A slot was freed, or may have become evictable: whoever waits for memory looks again."""
        if was_freed:
            self._forget(slot)
        self._advance()

    def _forget(self, slot: Slot) -> None:
        self._bank.disown(slot.index)
        del self._traits[slot.digest]
        self.host.touch(slot.digest)

    def _find_loaded(self, digest: str) -> Slot:
        slot = self._slots.find(digest)
        if slot is None or not slot.is_loaded:
            raise AdapterNotFound(f"{digest} is not in memory")
        return slot
