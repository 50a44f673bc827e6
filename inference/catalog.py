"""What a request may name on this worker, and where each thing stands. Joins what is known with what is in memory."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from inference.lora.loader import Adapters
from inference.resolver import KnownVersion
from inference.resolver.cache import FileCache
from inference.tiers import Tier


class ModelState(enum.Enum):
    """Where a model is."""

    KNOWN = "known"
    """It can be loaded; the first request for it does."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Model:
    """One line of a model listing. `parent` is empty for the base model; sizes are bytes in memory.

    `tier` is the nearest that holds it; None for nowhere here, and for the base model.
    """

    reference: str
    parent: str
    digest: str
    version: int
    state: ModelState
    failure: str
    size_bytes: int
    rank: int
    is_pinned: bool
    tier: Tier | None = None


class Catalog:
    """Lists the base model first, then every known reference in order."""

    def __init__(
        self,
        base_model: str,
        digest: str,
        *,
        adapters: Adapters,
        disk: FileCache,
        known: Callable[[], Iterable[KnownVersion]],
    ) -> None:
        self._base_model = base_model
        self._digest = digest
        self._adapters = adapters
        self._disk = disk
        self._known = known

    def models(self) -> list[Model]:
        """Everything that a request may name."""
        memory = {adapter.digest: adapter for adapter in self._adapters.loaded()}
        base = Model(self._base_model, "", self._digest, 0, ModelState.READY, "", 0, 0, is_pinned=True)
        listed = [base]
        for item in sorted(self._known(), key=lambda item: item.reference):
            version, loaded = item.version, memory.get(item.version.digest)
            if loaded is not None:
                state = ModelState.READY
            elif item.failure:
                state = ModelState.FAILED
            elif self._adapters.is_loading(version.digest):
                state = ModelState.LOADING
            else:
                state = ModelState.KNOWN
            listed.append(
                Model(
                    reference=item.reference,
                    parent=self._base_model,
                    digest=version.digest,
                    version=version.number,
                    state=state,
                    failure=item.failure,
                    size_bytes=loaded.size_bytes if loaded else 0,
                    rank=loaded.rank if loaded else version.rank,
                    is_pinned=loaded.is_pinned if loaded else False,
                    tier=Tier.ARENA if loaded else self._farther_tier(version.digest),
                )
            )
        return listed

    def _farther_tier(self, digest: str) -> Tier | None:
        """The nearest tier that holds what is not in the arena."""
        if self._adapters.host.find(digest) is not None:
            return Tier.HOST
        return Tier.DISK if self._disk.has(digest) else None
