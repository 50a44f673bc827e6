"""Where the adapters of one site lie in the arena; knows offsets and ranks, not who wrote the weights there.

The arena is one flat tensor per device, in the dtype of the model. A *site* is one fused projection of one layer, made
of P parts (qkv has three, o one). At a site, the slot n of an adapter holds

    A   [ranks[n].sum(), in_features]    from a_start[n]: the parts' rank rows, one part after the other
    B_p [ranks[n, p], width of part p]   from b_start[n, p]: the part's B, transposed, so that it is rank rows too

A part that the adapter leaves alone has rank 0 and no rank rows. Some adapters also hold vectors as wide as a part,
a gain, a shift, or both one after the other: they are float32 whatever the arena's dtype.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.errors import UnsupportedTensor

MAX_RANK = 1536
"""Of a slot's sum at a site: 512 for each of three parts. On CUDA 24 KB of shared memory beside 16 KB of sums."""


@dataclass(frozen=True, slots=True)
class Site:
    """One site's tables over N slots, on the arena's device; views of the tables that the arena's owner keeps.

    in_features: D_in. columns: P + 1 numbers, where each part begins in the output, the last one is D_out.
    a_start: int64 [N] and b_start: int64 [N, P], offsets in elements of the arena, multiples of 8 so that A and each B
    begin aligned to 16 bytes. ranks: int32 [N, P]. scales: float32 [N, P], the adapter's own alpha / rank. The tables
    of a slot that no segment names are never read, nor is the arena beyond a slot's rank rows.

    Raises UnsupportedTensor where a table has another dtype or shape or is not dense: kernels read them as they are.
    """

    in_features: int
    columns: tuple[int, ...]
    a_start: Tensor
    ranks: Tensor
    b_start: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        slots, parts = self.a_start.shape[0], len(self.columns) - 1
        _check_table("a_start", self.a_start, torch.int64, (slots,))
        _check_table("ranks", self.ranks, torch.int32, (slots, parts))
        _check_table("b_start", self.b_start, torch.int64, (slots, parts))
        _check_table("scales", self.scales, torch.float32, (slots, parts))

    @property
    def out_features(self) -> int:
        """D_out, the width of the site's output."""
        return self.columns[-1]


class Vectors(enum.IntFlag):
    """Which vectors a slot holds for a part of a site; where both, the gain lies before the shift."""

    GAIN = 1
    SHIFT = 2


@dataclass(frozen=True, slots=True)
class Affine:
    """One site's vectors over N slots, on the arena's device; beside the `Site` of the same columns.

    kinds: int32 [N, P], the `Vectors` of each part, 0 for none. starts: int64 [N, P], where the first of them begins,
    counted in float32 numbers from the arena's beginning; a multiple of 4, so that it is aligned to 16 bytes. The
    starts of parts without vectors are never read.

    Raises UnsupportedTensor as Site.
    """

    columns: tuple[int, ...]
    kinds: Tensor
    starts: Tensor

    def __post_init__(self) -> None:
        shape = self.kinds.shape[0], len(self.columns) - 1
        _check_table("kinds", self.kinds, torch.int32, shape)
        _check_table("starts", self.starts, torch.int64, shape)


def _check_table(name: str, table: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if table.dtype != dtype or table.shape != shape or not table.is_contiguous():
        raise UnsupportedTensor(
            f"expected {name} of dense {dtype} {shape}, "
            f"found {table.dtype} {tuple(table.shape)}, strides {table.stride()}"
        )
