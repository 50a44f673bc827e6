"""Which adapter has which slot and which bytes. Pure policy: no tensors, no files, no threads.

    reserve ──► loading ──publish──► loaded ──evict, or the last release of a retired one──► free
                   └────abandon─────────────────────────────────────────────────────────────► free

A slot that is leased or pinned is never evicted; a loading one neither. Identity is the digest: no digest has two
slots, and a new version of an adapter has another digest, so it is loaded beside the old one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from inference.errors import AdapterMemoryFull, AdapterTooLarge
from inference.lora.extents import Extent, Extents, rounded

MAX_SLOTS = 4096  # an entry takes a few kilobytes in the bank's tables; the arena is full long before


@dataclass(slots=True)
class Slot:
    """One entry. `leases` counts the requests that use it or wait for it, and its own load."""

    index: int
    digest: str
    extent: Extent
    leases: int = 1
    is_loaded: bool = False
    is_pinned: bool = False
    is_retired: bool = False

    @property
    def is_evictable(self) -> bool:
        return self.leases == 0 and not self.is_pinned


class Slots:
    """Slots over an arena of `capacity_bytes`. Not thread-safe: the event loop owns it."""

    def __init__(self, capacity_bytes: int, *, max_slots: int = MAX_SLOTS) -> None:
        self._extents = Extents(capacity_bytes)
        self._max_slots = max_slots
        self._slots: OrderedDict[str, Slot] = OrderedDict()  # least recently used first
        self._free: list[int] = []  # indices given back, lowest first
        self._never_used = 0  # indices from here on

    def __iter__(self) -> Iterator[Slot]:
        """Every slot, least recently used first."""
        return iter(self._slots.values())

    @property
    def capacity_bytes(self) -> int:
        return self._extents.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._extents.capacity_bytes - self._extents.free_bytes

    @property
    def largest_hole_bytes(self) -> int:
        """The most bytes that can be reserved without an eviction."""
        return self._extents.largest_hole_bytes

    def find(self, digest: str) -> Slot | None:
        """The slot of a digest, loaded or loading."""
        return self._slots.get(digest)

    def check_fits(self, num_bytes: int) -> None:
        """Raises AdapterTooLarge if so many bytes do not even fit an empty arena."""
        if rounded(num_bytes) > self.capacity_bytes:
            raise AdapterTooLarge(
                f"the adapter takes {num_bytes} bytes and all memory for adapters is {self.capacity_bytes}",
                metadata={"adapter_bytes": str(num_bytes), "capacity_bytes": str(self.capacity_bytes)},
            )

    def reserve(self, digest: str, num_bytes: int) -> tuple[Slot, list[Slot]]:
        """A slot for a new digest, leased by its load, and the slots that were evicted for it.

        Raises AdapterTooLarge, or AdapterMemoryFull when too much is in use; then nothing has changed.
        """
        assert digest not in self._slots, f"{digest} has a slot already"
        self.check_fits(num_bytes)
        evicted = self._choose_victims(num_bytes)
        if evicted is None:
            raise self._full(num_bytes)
        for victim in evicted:
            self._drop(victim)
        extent = self._extents.take(num_bytes)
        assert extent is not None, "the victims left no hole"
        slot = Slot(self._take_index(), digest, extent)
        self._slots[digest] = slot
        return slot, evicted

    def publish(self, slot: Slot) -> None:
        """The weights are in place: leases may be taken. The load keeps its own until it releases it."""
        assert not slot.is_loaded, f"slot {slot.index} is loaded already"
        slot.is_loaded = True

    def abandon(self, slot: Slot) -> None:
        """The load failed; the slot is free again."""
        assert not slot.is_loaded, f"slot {slot.index} is loaded and others may use it"
        self._drop(slot)

    def lease(self, slot: Slot) -> None:
        """Keeps a loaded slot from being evicted until it is released; it is wanted again if it was retired."""
        assert slot.is_loaded, f"slot {slot.index} is not loaded yet"
        slot.leases += 1
        slot.is_retired = False
        self._slots.move_to_end(slot.digest)

    def release(self, slot: Slot) -> bool:
        """Ends a lease; True if it was the last one of a retired slot, which is free now."""
        assert slot.leases > 0, f"slot {slot.index} is released more often than leased"
        slot.leases -= 1
        self._slots.move_to_end(slot.digest)
        return self._drop_if_done(slot)

    def pin(self, slot: Slot) -> None:
        """Keeps a slot until it is unpinned; it is wanted again if it was retired."""
        slot.is_pinned, slot.is_retired = True, False

    def unpin(self, slot: Slot) -> bool:
        """Lets the slot be evicted again; True if it was retired and is free now."""
        slot.is_pinned = False
        return self._drop_if_done(slot)

    def retire(self, slot: Slot) -> bool:
        """Frees the slot as soon as nothing uses or pins it; True if that is now."""
        slot.is_retired = True
        return self._drop_if_done(slot)

    def check_integrity(self) -> None:
        """Asserts that indices are distinct and that extents cover the arena without overlap."""
        used = [slot.index for slot in self]
        assert sorted(used + self._free) == list(range(self._never_used)), "a slot is lost, or used twice"
        assert all(digest == slot.digest for digest, slot in self._slots.items()), "a slot is under another's digest"
        assert all(slot.leases >= 0 for slot in self), "a slot was released too often"
        assert not any(slot.is_retired and slot.is_evictable for slot in self), "a retired slot was not freed"
        self._extents.check_integrity(slot.extent for slot in self)

    def _choose_victims(self, num_bytes: int) -> list[Slot] | None:
        """The slots to evict so that a hole of `num_bytes` exists; None if evicting all that may go is not enough."""
        trial = self._extents.copy()
        candidates = [slot for slot in self if slot.is_evictable]
        freed: list[Slot] = []
        has_index = len(self._slots) < self._max_slots
        while not (has_index and (hole := trial.take(num_bytes))):
            if len(freed) == len(candidates):
                return None
            freed.append(candidates[len(freed)])
            trial.give_back(freed[-1].extent)
            has_index = True
        # Of these, only those that lie in the hole need to go, and one more if the indices were all taken.
        needed = [slot for slot in freed if slot.extent.begin < hole.end and hole.begin < slot.extent.end]
        return needed if needed or len(self._slots) < self._max_slots else freed[:1]

    def _take_index(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._never_used += 1
        return self._never_used - 1

    def _drop_if_done(self, slot: Slot) -> bool:
        is_done = slot.is_retired and slot.is_evictable
        if is_done:
            self._drop(slot)
        return is_done

    def _drop(self, slot: Slot) -> None:
        del self._slots[slot.digest]
        self._extents.give_back(slot.extent)
        heapq.heappush(self._free, slot.index)

    def _full(self, num_bytes: int) -> AdapterMemoryFull:
        in_use = sum(slot.extent.num_bytes for slot in self if not slot.is_evictable)
        return AdapterMemoryFull(
            f"the adapter takes {num_bytes} bytes; of {self.capacity_bytes} for adapters, "
            f"{in_use} are in use or pinned",
            metadata={
                "adapter_bytes": str(num_bytes),
                "capacity_bytes": str(self.capacity_bytes),
                "bytes_in_use": str(in_use),
            },
            retry_after_s=1.0,
        )
