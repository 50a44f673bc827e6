"""Adapters in host memory: one slab each, checked and converted, one copy away from the arena. Keyed by digest.

    read ──add──► in use ──release──► kept ──the least recently used beyond the budget──► gone
                    ▲──────hold─────────┘

What it saves a load is the file's read, its hash, its checks and its conversion. On a CUDA device that leaves one copy
over the bus. On a CPU the arena is host memory too, so a slab that is kept here while it is loaded is in memory twice:
the budget buys loads of a few milliseconds, and a worker whose arena holds everything it serves is better off with 0.

A slab that a load copies from is never dropped, even beyond the budget. What leaves the arena is not copied back: its
slab is still here or it is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from inference.errors import AdapterMemoryFull, AdapterNotFound, AdapterTooLarge
from inference.lora.reading import Weights

MAX_ADAPTERS = 2**20  # as many as there is memory for


@dataclass(slots=True)
class HostSlab:
    """One adapter in host memory. `users` counts the loads that copy from it or wait to."""

    digest: str
    weights: Weights
    users: int = 0
    is_pinned: bool = False

    @property
    def num_bytes(self) -> int:
        return self.weights.num_bytes


class HostCache:
    """Slabs within `capacity_bytes` and `max_adapters`, the least recently used leaving first. Owned by the event loop.

    With a capacity of 0 nothing is kept that is not in use.
    """

    def __init__(self, capacity_bytes: int, *, max_adapters: int = MAX_ADAPTERS) -> None:
        self.capacity_bytes = capacity_bytes
        self._max_adapters = max_adapters
        self._slabs: OrderedDict[str, HostSlab] = OrderedDict()  # least recently used first
        self._used_bytes = 0

    def __iter__(self) -> Iterator[HostSlab]:
        """Every slab, least recently used first."""
        return iter(self._slabs.values())

    def __len__(self) -> int:
        return len(self._slabs)

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def find(self, digest: str) -> HostSlab | None:
        return self._slabs.get(digest)

    def add(self, digest: str, weights: Weights) -> HostSlab:
        """Takes in what was read, in use until it is released."""
        assert digest not in self._slabs, f"{digest} is in host memory already"
        slab = self._slabs[digest] = HostSlab(digest, weights, users=1)
        self._used_bytes += slab.num_bytes
        self._trim()
        return slab

    def hold(self, slab: HostSlab) -> None:
        """Keeps a slab in memory until it is released."""
        slab.users += 1
        self.touch(slab.digest)

    def release(self, slab: HostSlab) -> None:
        assert slab.users > 0, f"{slab.digest} is released more often than held"
        slab.users -= 1
        self._trim()

    def touch(self, digest: str) -> None:
        """Makes an adapter the most recently used, if it is here: it has left the arena, or is about to be loaded."""
        if digest in self._slabs:
            self._slabs.move_to_end(digest)

    def check_fits(self, num_bytes: int) -> None:
        """Raises AdapterTooLarge if so many bytes cannot be kept here at all."""
        if num_bytes > self.capacity_bytes:
            raise AdapterTooLarge(
                f"the adapter takes {num_bytes} bytes and the host cache is {self.capacity_bytes}",
                metadata={"adapter_bytes": str(num_bytes), "capacity_bytes": str(self.capacity_bytes)},
            )

    def pin(self, digest: str) -> None:
        """Keeps a slab until it is unpinned. Raises AdapterNotFound, and AdapterMemoryFull if pinned ones fill all."""
        slab = self._find(digest)
        others = sum(one.num_bytes for one in self if one.is_pinned and one is not slab)
        if others + slab.num_bytes > self.capacity_bytes:
            raise AdapterMemoryFull(
                f"the adapter takes {slab.num_bytes} bytes; of {self.capacity_bytes} of the host cache, "
                f"{others} are pinned",
                metadata={"adapter_bytes": str(slab.num_bytes), "capacity_bytes": str(self.capacity_bytes)},
            )
        slab.is_pinned = True

    def unpin(self, digest: str) -> None:
        """Lets a slab leave again. Raises AdapterNotFound if it is not here and pinned."""
        slab = self._find(digest)
        if not slab.is_pinned:
            raise AdapterNotFound(f"{digest} is not pinned in host memory")
        slab.is_pinned = False
        self._trim()

    def drop(self, digest: str) -> None:
        """Frees a slab that nobody uses or pins; harmless for any other."""
        slab = self._slabs.get(digest)
        if slab is not None and slab.users == 0 and not slab.is_pinned:
            self._remove(slab)

    def check_integrity(self) -> None:
        """Asserts that the bytes are those of the slabs and that only what is in use is beyond the budget."""
        assert self._used_bytes == sum(slab.num_bytes for slab in self), "bytes were lost, or counted twice"
        assert all(digest == slab.digest for digest, slab in self._slabs.items()), "a slab is under another's digest"
        assert all(slab.users >= 0 for slab in self), "a slab was released too often"
        is_over = self._used_bytes > self.capacity_bytes or len(self) > self._max_adapters
        assert not is_over or all(slab.users or slab.is_pinned for slab in self), "an idle slab is beyond the budget"

    def _find(self, digest: str) -> HostSlab:
        slab = self._slabs.get(digest)
        if slab is None:
            raise AdapterNotFound(f"{digest} is not in host memory")
        return slab

    def _trim(self) -> None:
        for slab in list(self._slabs.values()):
            if self._used_bytes <= self.capacity_bytes and len(self) <= self._max_adapters:
                return
            if slab.users == 0 and not slab.is_pinned:
                self._remove(slab)

    def _remove(self, slab: HostSlab) -> None:
        del self._slabs[slab.digest]
        self._used_bytes -= slab.num_bytes
