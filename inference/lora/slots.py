"""Which adapter has which slot and which bytes. Pure policy: no tensors, no files, no threads.

    reserve ──► loading ──publish──► loaded ──evict, or the last release of a retired one──► free
                   └────abandon─────────────────────────────────────────────────────────────► free

A slot that is leased or pinned is never evicted; a loading one neither. Slots may be moved, whoever leases them, so
that free bytes in many holes are of use. Identity is the digest: no digest has two
slots, and a new version of an adapter has another digest, so it is loaded beside the old one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference.errors import AdapterMemoryFull, AdapterTooLarge
from inference.lora.compaction import find_slides
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
    is_moving: bool = False

    @property
    def is_evictable(self) -> bool:
        return self.leases == 0 and not self.is_pinned and not self.is_moving


@dataclass(frozen=True, slots=True)
class Move:
    """A slot's way to other bytes, nearer to the arena's beginning; they may overlap its own."""

    slot: Slot
    target: Extent


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

    def check_fits(self, sizes: Sequence[int]) -> None:
        """Raises AdapterTooLarge if adapters of these bytes do not even fit an empty arena together."""
        what = "the adapter takes" if len(sizes) == 1 else f"the request's {len(sizes)} adapters take together"
        if sum(map(rounded, sizes)) > self.capacity_bytes:
            raise AdapterTooLarge(
                f"{what} {sum(sizes)} bytes and all memory for adapters is {self.capacity_bytes}",
                metadata={"adapter_bytes": str(sum(sizes)), "capacity_bytes": str(self.capacity_bytes)},
            )
        if len(sizes) > self._max_slots:
            raise AdapterTooLarge(
                f"the request names {len(sizes)} adapters and at most {self._max_slots} may be in memory",
                metadata={"adapters": str(len(sizes)), "max_adapters": str(self._max_slots)},
            )

    def reserve(
        self, sizes: Mapping[str, int], *, beside: Collection[str] = (), awaited: Collection[str] = ()
    ) -> tuple[list[Slot], list[Slot]]:
        """A slot for each new digest of so many bytes, leased by its load, and the slots that were evicted for them.

        All or nothing. Those of `beside` stay: the same request uses them. Those that are `awaited` by others leave
        only when nothing else can. Raises AdapterTooLarge, or AdapterMemoryFull when too much is in use; then nothing
        has changed.
        """
        assert not any(digest in self._slots for digest in sizes), "expected digests without a slot"
        kept = [self._slots[digest].extent.num_bytes for digest in beside]
        self.check_fits([*sizes.values(), *kept])
        found = self._find_room(list(sizes.values()), self._candidates(beside, awaited))
        if found is None:
            raise self._full(list(sizes.values()))
        extents, evicted = found
        for victim in evicted:
            self._drop(victim)
        reserved = []
        for digest, extent in zip(sizes, extents, strict=True):
            self._extents.take_at(extent)
            reserved.append(Slot(self._take_index(), digest, extent))
            self._slots[digest] = reserved[-1]
        return reserved, evicted

    def next_to_leave(self, sizes: Mapping[str, int], beside: Collection[str] = ()) -> set[str]:
        """The least recently used digests, leased or not, whose end would make room for these sizes."""
        leaving: set[str] = set()
        missing_bytes = sum(rounded(size) for size in sizes.values()) - self._extents.free_bytes
        missing_slots = len(self._slots) + len(sizes) - self._max_slots
        for slot in self:
            if missing_bytes <= 0 and missing_slots <= 0:
                break
            if not slot.is_pinned and slot.digest not in beside:
                leaving.add(slot.digest)
                missing_bytes, missing_slots = missing_bytes - slot.extent.num_bytes, missing_slots - 1
        return leaving

    def begin_compaction(
        self, sizes: Mapping[str, int], *, beside: Collection[str] = (), awaited: Collection[str] = ()
    ) -> tuple[list[Move], list[Slot]] | None:
        """What has to move so that `reserve` finds room, in this order, and the slots that were evicted for it.

        None, and nothing has changed, if no move helps: there are too few bytes, or a load writes in between. Nothing
        may be reserved until `end_compaction`.
        """
        num_bytes = sum(rounded(size) for size in sizes.values())
        candidates = self._candidates(beside, awaited)
        for num_evicted in range(len(candidates) + 1):
            evicted, kept = candidates[:num_evicted], [slot for slot in self if slot not in candidates[:num_evicted]]
            if len(kept) + len(sizes) > self._max_slots:
                continue
            if sum(slot.extent.num_bytes for slot in kept) + num_bytes > self.capacity_bytes:
                continue
            fixed = [slot.extent for slot in kept if not slot.is_loaded]
            slides = find_slides([slot.extent for slot in kept], self.capacity_bytes, num_bytes, fixed=fixed)
            if slides is None:
                continue
            for slot in evicted:
                self._drop(slot)
            by_extent = {slot.extent: slot for slot in kept}
            moves = [Move(by_extent[slide.source], slide.target) for slide in slides]
            for move in moves:
                move.slot.is_moving = True
            return moves, evicted
        return None

    def end_compaction(self, moves: Sequence[Move]) -> list[Slot]:
        """The weights are where they should be. Returns the slots that were waited for to be freed."""
        for move in moves:
            self._extents.give_back(move.slot.extent)
            self._extents.take_at(move.target)
            move.slot.extent, move.slot.is_moving = move.target, False
        return [move.slot for move in moves if self._drop_if_done(move.slot)]

    def publish(self, slot: Slot) -> None:
        """The weights are in place. The load keeps its own lease until it releases it."""
        assert not slot.is_loaded, f"slot {slot.index} is loaded already"
        slot.is_loaded = True

    def abandon(self, slot: Slot) -> None:
        """The load failed; the slot is free again, and the leases of those who waited for it are void."""
        assert not slot.is_loaded, f"slot {slot.index} is loaded and others may use it"
        self._drop(slot)

    def lease(self, slot: Slot) -> None:
        """Keeps a slot, loaded or loading, until it is released; it is wanted again if it was retired."""
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
        assert len(used) <= self._max_slots, f"expected at most {self._max_slots} slots, found {len(used)}"
        assert all(digest == slot.digest for digest, slot in self._slots.items()), "a slot is under another's digest"
        assert all(slot.leases >= 0 for slot in self), "a slot was released too often"
        assert not any(slot.is_retired and slot.is_evictable for slot in self), "a retired slot was not freed"
        self._extents.check_integrity(slot.extent for slot in self)

    def _candidates(self, beside: Collection[str], awaited: Collection[str]) -> list[Slot]:
        """What may be evicted, in that order."""
        idle = [slot for slot in self if slot.is_evictable and slot.digest not in beside]
        return sorted(idle, key=lambda slot: slot.digest in awaited)

    def _find_room(self, sizes: Sequence[int], candidates: Sequence[Slot]) -> tuple[list[Extent], list[Slot]] | None:
        """Where the sizes go and which slots leave for that; None if evicting all that may go is not enough."""
        trial = self._extents.copy()
        num_freed = 0
        while (extents := trial.take_all(sizes)) is None:
            if num_freed == len(candidates):
                return None
            trial.give_back(candidates[num_freed].extent)
            num_freed += 1
        # Only those that lie in the new extents need to go, and as many more as entries of the table are short.
        needed = [slot for slot in candidates[:num_freed] if any(slot.extent.overlaps(one) for one in extents)]
        too_many = len(self._slots) - len(needed) + len(sizes) - self._max_slots
        others = [slot for slot in candidates if slot not in needed]
        return None if too_many > len(others) else (extents, needed + others[: max(0, too_many)])

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

    def _full(self, sizes: Sequence[int]) -> AdapterMemoryFull:
        in_use = sum(slot.extent.num_bytes for slot in self if not slot.is_evictable)
        what = "the adapter takes {} bytes" if len(sizes) == 1 else "the adapters take {} bytes together"
        return AdapterMemoryFull(
            f"{what.format(sum(sizes))}; of {self.capacity_bytes} for adapters, {in_use} are in use or pinned",
            metadata={
                "adapter_bytes": str(sum(sizes)),
                "capacity_bytes": str(self.capacity_bytes),
                "bytes_in_use": str(in_use),
            },
            retry_after_s=1.0,
        )
