"""The adapters of one step's rows, as models ask for them: planned on the host, sent with the rest of the batch.

    Bank.lora_batch ─► LoraPlan ─► padded, for a captured step ─► arrays ─► one copy ─► LoraStep, the models' LoraBatch

Knows the arena's tables and a batch; writes neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import kernels
from inference.lora.merging import Linear, Merged
from inference.lora.vocabulary import RowsUse, replace_embedded, replace_logits
from inference.models.linear import Multiply
from kernels.segments import Grouping, Segments
from kernels.site import Affine, Site
from kernels.transfer import send

LEAST_RANK = 16  # to which ranks are rounded up for a captured step: a tile of rank rows in decode


@dataclass(frozen=True, slots=True)
class Tables:
    """The arena and where everything lies in it, on the device; the bank's own, at fixed addresses."""

    arena: Tensor
    sites: tuple[Site, ...]
    affines: tuple[Affine, ...]


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """What a step adds to the base model, still on the host.

    grouping: of all rows. logit_grouping: of the rows whose logits are wanted, numbered anew; None if none of them has
    an entry, and the same object as `grouping` where all rows are wanted. max_ranks: for each site the largest sum of
    ranks among the slots of the step, 0 where none of them acts. has_vectors: for each site whether any of them has
    gains or shifts there. own_rows, logit_own_rows: the slots with rows of their own of the embedding or the head, and
    whose they are, in the numbers of either grouping. merged: the adapter that all rows use, if it is merged; what it
    merges counts neither as ranks nor as vectors.
    """

    tables: Tables
    grouping: Grouping
    logit_grouping: Grouping | None
    max_ranks: tuple[int, ...]
    has_vectors: tuple[bool, ...]
    own_rows: tuple[RowsUse, ...] = ()
    logit_own_rows: tuple[RowsUse, ...] = ()
    merged: Merged | None = None

    @property
    def is_capturable(self) -> bool:
        """Whether everything that it decides on the host is in its `key`."""
        return not self.own_rows

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """What the device has to be sent."""
        if self.logit_grouping is None or self.logit_grouping is self.grouping:
            return self.grouping.arrays
        return self.grouping.arrays + self.logit_grouping.arrays

    def restore(self, tensors: Sequence[Tensor]) -> LoraStep:
        """The step of tensors that hold `arrays`."""
        count = len(self.grouping.arrays)
        segments = self.grouping.restore(tensors[:count])
        logit_segments: Segments | None = None
        if self.logit_grouping is self.grouping:
            logit_segments = segments
        elif self.logit_grouping is not None:
            logit_segments = self.logit_grouping.restore(tensors[count:])
        return LoraStep(
            self.tables,
            segments,
            logit_segments,
            self.max_ranks,
            self.has_vectors,
            self.own_rows,
            self.logit_own_rows,
            {} if self.merged is None else self.merged.linears,
        )

    def send(self, device: torch.device | str) -> LoraStep:
        return self.restore(send(self.arrays, device))

    def padded(self, *, num_rows: int, num_entries: int, num_segments: int) -> LoraPlan:
        """The same for a captured step of these sizes, all of whose rows' logits are wanted; ranks rounded up.

        So plans of alike batches launch the same kernels on the same grids: see `kernels.segments.Grouping`.
        """
        assert self.logit_grouping is self.grouping, "expected a step that wants the logits of all rows"
        assert self.is_capturable, "expected no adapter with rows of its own"
        grouping = self.grouping.padded(num_entries=num_entries, num_segments=num_segments, num_rows=num_rows)
        return dataclasses.replace(
            self, grouping=grouping, logit_grouping=grouping, max_ranks=tuple(map(_rounded_rank, self.max_ranks))
        )

    def with_merged(self, merged: Merged) -> LoraPlan:
        """The same where all rows use the merged adapter, alone and at the weight 1."""
        return dataclasses.replace(
            self,
            merged=merged,
            max_ranks=tuple(0 if site in merged.linears else rank for site, rank in enumerate(self.max_ranks)),
            has_vectors=tuple(has and site not in merged.linears for site, has in enumerate(self.has_vectors)),
        )

    @property
    def key(self) -> tuple[object, ...]:
        """What a captured step has of its plan for good, beside the shapes of the arrays."""
        number = 0 if self.merged is None else self.merged.number
        return self.grouping.is_composed, self.max_ranks, self.has_vectors, number


@dataclass(frozen=True, slots=True)
class LoraStep:
    """The adapters of one step's rows; the LoraBatch that models ask at each site. Fields as LoraPlan's."""

    tables: Tables
    segments: Segments
    logit_segments: Segments | None
    max_ranks: tuple[int, ...]
    has_vectors: tuple[bool, ...]
    own_rows: tuple[RowsUse, ...] = ()
    logit_own_rows: tuple[RowsUse, ...] = ()
    linears: Mapping[int, Linear] = field(default_factory=dict)

    def merged(self, site_index: int) -> Linear | None:
        """What takes the place of the base model's product and its adapters at one site, if one adapter is merged."""
        return self.linears.get(site_index)

    def add(self, site_index: int, x: Tensor, y: Tensor) -> None:
        """y [T, D_out] += each row's adapters applied to x [T, D_in]. Mutates: y."""
        arena, max_rank = self.tables.arena, self.max_ranks[site_index]
        if max_rank > 0:
            site = self.tables.sites[site_index]
            s = kernels.shrink(x, arena, site, self.segments, max_rank=max_rank)
            kernels.expand(s, arena, site, self.segments, y)
        if self.has_vectors[site_index]:
            kernels.rescale(y, arena, self.tables.affines[site_index], self.segments)

    def add_tokens(self, site_index: int, token_ids: Tensor, y: Tensor) -> None:
        """`add` where row t's features are its token, int64 [T], and an adapter's own rows in the place of y's.

        Tokens may be beyond the base model's vocabulary in the rows whose adapter knows them. Mutates: y.
        """
        arena, max_rank = self.tables.arena, self.max_ranks[site_index]
        own = [use for use in self.own_rows if use.own.site_index == site_index]
        if max_rank > 0:
            site = self.tables.sites[site_index]
            known = token_ids.clamp(max=site.in_features - 1) if own else token_ids
            s = kernels.look_up(known, arena, site, self.segments, max_rank=max_rank)
            kernels.expand(s, arena, site, self.segments, y)
        if self.has_vectors[site_index]:
            kernels.rescale(y, arena, self.tables.affines[site_index], self.segments)
        for use in own:
            replace_embedded(use, token_ids, y)

    def has_whole_rows(self, site_index: int, num_rows: int) -> bool:
        """Whether each of the rows has an adapter that leaves nothing of the base model's weight at this site."""
        own = [use for use in self.own_rows if use.own.site_index == site_index and use.own.is_whole]
        return sum(use.rows.size for use in own) == num_rows

    def replace_logits(self, site_index: int, x: Tensor, logits: Tensor, multiply: Multiply) -> Tensor:
        """The logits of x [T, D] where adapters with rows of their own have had their say: float32 [T, V'].

        `multiply` is the head's own way to a product. V' is the largest vocabulary among those of the base model, V,
        and of the adapters; what a row does not know has the logit -inf.
        Shapes: logits float32 [T, V]. Mutates: logits.
        """
        own = [use for use in self.own_rows if use.own.site_index == site_index]
        size = max((use.own.vocab_size for use in own), default=0)
        if size > logits.shape[1]:
            logits = torch.nn.functional.pad(logits, (0, size - logits.shape[1]), value=-torch.inf)
        for use in own:
            replace_logits(use, x, logits, multiply)
        return logits

    def renorm(self, site_index: int, h: Tensor, eps: float, y: Tensor) -> None:
        """y [T, D] = w · h / rms(h) in the rows whose adapter has a norm's weight w of its own. Mutates: y."""
        if self.has_vectors[site_index]:
            affine, segments = self.tables.affines[site_index], self.segments
            has_weight = affine.kinds[:, 0][segments.slots[segments.segment_of]] != 0
            is_replaced = torch.zeros(y.shape[0] + 1, dtype=torch.bool, device=y.device)
            is_replaced[segments.rows] = has_weight  # the last one takes the entries of padding, whose row is -1
            normed = kernels.rms_norm(h, h.new_ones(h.shape[1]), eps)
            torch.where(is_replaced[:-1, None], normed, y, out=y)
            kernels.rescale(y, self.tables.arena, affine, segments)

    def of_logits(self) -> LoraStep | None:
        """The same for the rows whose logits are wanted; None where none of them has an adapter."""
        if self.logit_segments is None:
            return None
        return dataclasses.replace(self, segments=self.logit_segments, own_rows=self.logit_own_rows)


def _rounded_rank(rank: int) -> int:
    """The next power of two, 0 for 0: few kinds of steps, and rank rows past a slot's own cost a block that leaves."""
    return 0 if rank == 0 else max(LEAST_RANK, min(1 << (rank - 1).bit_length(), kernels.MAX_RANK))
