"""The places of a model where adapters act: one site for each fused projection of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class SitePart:
    """One projection inside a fused one: its module's name in the Hugging Face model and its output width."""

    module: str
    width: int
    has_bias: bool = False


@dataclass(frozen=True, slots=True)
class SiteShape:
    """A fused projection, x [T, in_features] to y [T, out_features]; its parts lie side by side in y, in this order."""

    name: str
    in_features: int
    parts: tuple[SitePart, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        """P + 1 numbers: where each part begins in y, and the end of the last one."""
        return tuple(accumulate((part.width for part in self.parts), initial=0))

    @property
    def out_features(self) -> int:
        return self.columns[-1]
