"""The right to use an adapter's slot, and what several of them mean together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.errors import InvalidRequest
from inference.lora.reading import Traits
from inference.lora.slots import Slot

if TYPE_CHECKING:
    from inference.lora.loader import Adapters


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

    def __init__(self, adapters: Adapters, slot: Slot, traits: Traits) -> None:
        self.slot = slot.index
        self.digest = slot.digest
        self.size_bytes = slot.extent.num_bytes
        self.rank = traits.rank
        self.is_composable = traits.is_composable
        """Whether it may be used at another weight than 1 and beside other adapters."""
        self.vocab_size = traits.vocab_size
        """Tokens that the adapter knows; None for those of the base model."""
        self.follows = ""
        """A name whose next weights this lease may be moved to while it is held, see AdapterDesk; mostly none."""
        self._adapters = adapters
        self._entry: Slot | None = slot

    @property
    def is_held(self) -> bool:
        return self._entry is not None

    def again(self) -> Lease:
        """Another lease on the same slot."""
        assert self._entry is not None, f"the lease on {self.digest} was released"
        self._adapters._slots.lease(self._entry)
        return Lease(self._adapters, self._entry, self._adapters._traits[self.digest])

    def exchange(self, other: Lease) -> None:
        """Each is on from now on what the other was on. Whoever holds one keeps it, and releases that."""
        for name in ("slot", "digest", "size_bytes", "rank", "is_composable", "vocab_size", "_entry"):
            mine = getattr(self, name)
            setattr(self, name, getattr(other, name))
            setattr(other, name, mine)

    def release(self) -> None:
        """Gives the slot back; on the event loop, and after the engine has ended the request."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._adapters._release(entry)


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
