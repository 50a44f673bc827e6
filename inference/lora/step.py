"""The adapters of one step's rows, as models ask for them. Knows the arena's tables and a batch; writes neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import kernels
from kernels.segments import Segments, group_entries
from kernels.site import Affine, Site


@dataclass(frozen=True, slots=True)
class LoraStep:
    """The adapters of one step's rows; the LoraBatch that models ask at each site.

    max_ranks: for each site the largest sum of ranks among the slots of the step, 0 where none of them acts.
    has_vectors: for each site whether any of them has gains or shifts there.
    """

    arena: Tensor
    sites: tuple[Site, ...]
    affines: tuple[Affine, ...]
    segments: Segments
    max_ranks: list[int]
    has_vectors: list[bool]

    def add(self, site_index: int, x: Tensor, y: Tensor) -> None:
        """y [T, D_out] += each row's adapters applied to x [T, D_in]. Mutates: y."""
        max_rank = self.max_ranks[site_index]
        if max_rank > 0:
            site = self.sites[site_index]
            s = kernels.shrink(x, self.arena, site, self.segments, max_rank=max_rank)
            kernels.expand(s, self.arena, site, self.segments, y)
        if self.has_vectors[site_index]:
            kernels.rescale(y, self.arena, self.affines[site_index], self.segments)

    def add_tokens(self, site_index: int, token_ids: Tensor, y: Tensor) -> None:
        """`add` where row t's features are its token, token_ids int64 [T]. Mutates: y."""
        max_rank = self.max_ranks[site_index]
        if max_rank > 0:
            site = self.sites[site_index]
            s = kernels.look_up(token_ids, self.arena, site, self.segments, max_rank=max_rank)
            kernels.expand(s, self.arena, site, self.segments, y)

    def renorm(self, site_index: int, h: Tensor, eps: float, y: Tensor) -> None:
        """y [T, D] = w · h / rms(h) in the rows whose adapter has a norm's weight w of its own. Mutates: y."""
        if self.has_vectors[site_index]:
            affine, segments = self.affines[site_index], self.segments
            has_weight = affine.kinds[:, 0][segments.slots[segments.segment_of]] != 0
            is_replaced = torch.zeros(y.shape[0], dtype=torch.bool, device=y.device)
            is_replaced[segments.rows] = has_weight
            normed = kernels.rms_norm(h, h.new_ones(h.shape[1]), eps)
            torch.where(is_replaced[:, None], normed, y, out=y)
            kernels.rescale(y, self.arena, affine, segments)

    def select(self, rows: Tensor, site_indices: Sequence[int]) -> LoraStep | None:
        """The same for rows int64 [T'], distinct and in order; None where nothing is to be done at these sites."""
        if not any(self.max_ranks[index] or self.has_vectors[index] for index in site_indices):
            return None
        entry_rows, segment_of = self.segments.rows.cpu().numpy(), self.segments.segment_of.cpu().numpy()
        wanted = rows.cpu().numpy()
        place = np.full(max(entry_rows.max(), wanted.max()) + 1, -1, np.int32)
        place[wanted] = np.arange(len(wanted))
        kept = place[entry_rows] >= 0
        segments = group_entries(
            place[entry_rows[kept]],
            self.segments.slots.cpu().numpy()[segment_of[kept]],
            self.segments.weights.cpu().numpy()[kept],
            device=self.arena.device,
        )
        return None if segments is None else dataclasses.replace(self, segments=segments)
