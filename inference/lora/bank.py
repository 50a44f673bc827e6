"""The memory of adapters: one flat arena, the tables that say where each slot's weights lie, and who owns each slot.

    arena    [elements] ............|A A A B B B|.........|A B|......     extents, given out by slots.Slots
    tables   per site: a_start [N], ranks, b_start, scales, kinds, vector starts [N, P]     views of flat tensors
    owners   [N] digest or None

Knows no policy: it writes where it is told. A slot is written while nobody uses it and published afterwards, so the
engine reads the tables while other slots change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.lora.extents import Extent
from inference.lora.ordering import ordering_of
from inference.lora.slots import MAX_SLOTS
from inference.lora.step import LoraPlan, Tables
from inference.lora.vocabulary import RowsUse, SlotRows
from inference.lora.weights import Layout, RowsPlace
from inference.models.sites import SiteShape
from kernels.segments import group_entries, group_rows
from kernels.site import Affine, Site


class Bank:
    """Room for adapters over the sites of one model, in the model's dtype."""

    def __init__(
        self,
        sites: Sequence[SiteShape],
        *,
        capacity_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_slots: int = MAX_SLOTS,
    ) -> None:
        self.dtype = dtype
        self.owners: list[str | None] = [None] * max_slots
        """The digest whose weights a slot holds. One reader may be the engine's thread, so it is written last."""
        self._arena = torch.empty(capacity_bytes // dtype.itemsize, dtype=dtype, device=device)
        self._num_slots = max_slots
        self._ordering = ordering_of(self._arena.device)
        parts = [len(site.parts) for site in sites]
        self._first_part = np.array([0, *accumulate(parts)], np.int64)
        num_parts = int(self._first_part[-1])
        # Zeros that numpy asks from the system take no memory until a slot is written there.
        self._a_start = _zeros(len(sites) * max_slots, np.int64, device)
        self._ranks = _zeros(num_parts * max_slots, np.int32, device)
        self._b_start = _zeros(num_parts * max_slots, np.int64, device)
        self._scales = _zeros(num_parts * max_slots, np.float32, device)
        self._kinds = _zeros(num_parts * max_slots, np.int32, device)
        self._vector_start = _zeros(num_parts * max_slots, np.int64, device)
        self._rank_sums = np.zeros((max_slots, len(sites)), np.int32)  # of a slot's parts at a site
        self._has_vectors = np.zeros((max_slots, len(sites)), np.bool_)
        self._own_rows: dict[int, tuple[SlotRows, ...]] = {}  # of the slots that have any
        # A slot's entry in the flat tables, less what depends on the slot: see _places.
        self._site_places = np.arange(len(sites)) * max_slots
        self._part_widths = np.repeat(parts, parts)
        within = np.arange(num_parts) - np.repeat(self._first_part[:-1], parts)
        self._part_places = np.repeat(self._first_part[:-1], parts) * max_slots + within
        self._sites = tuple(self._view(site, index) for index, site in enumerate(sites))
        self._affines = tuple(self._view_affine(site, index) for index, site in enumerate(sites))

    @property
    def capacity_bytes(self) -> int:
        return self._arena.numel() * self._arena.itemsize

    def write(self, slot: int, extent: Extent, slab: Tensor, layout: Layout) -> None:
        """Copies a slab to its bytes and fills the slot's tables. Nobody may be using the slot or the bytes.

        Shapes: slab [num_elements] in the bank's dtype, on the CPU. Mutates: arena, tables.
        """
        assert self.owners[slot] is None, f"expected a slot without owner, found {self.owners[slot]} in {slot}"
        assert slab.dtype == self.dtype, f"expected a slab in {self.dtype}, found {slab.dtype}"
        assert slab.numel() * slab.itemsize <= extent.num_bytes, "the slab is larger than its extent"
        begin = extent.begin // self._arena.itemsize
        by_part = self._part_places + slot * self._part_widths
        # From elements to float32 numbers: see kernels.Affine.
        vector_start = (layout.vector_start + begin) * self.dtype.itemsize // 4
        with self._ordering.writing():
            _copy(slab, self._arena[begin : begin + slab.numel()])
            _put(self._a_start, self._site_places + slot, layout.a_start + begin)
            _put(self._ranks, by_part, layout.ranks)
            _put(self._b_start, by_part, layout.b_start + begin)
            _put(self._scales, by_part, layout.scales)
            _put(self._kinds, by_part, layout.kinds)
            _put(self._vector_start, by_part, vector_start)
        self._rank_sums[slot] = np.add.reduceat(layout.ranks, self._first_part[:-1])
        self._has_vectors[slot] = np.add.reduceat(layout.kinds, self._first_part[:-1]) > 0
        self._own_rows.pop(slot, None)
        if layout.rows:
            self._own_rows[slot] = tuple(self._view_rows(place, begin) for place in layout.rows)

    def mark_step(self) -> None:
        """On the engine's thread, when a step is queued, even if it failed: what it reads is not overwritten yet."""
        self._ordering.mark_step()

    def publish(self, slot: int, digest: str) -> None:
        """From here on the slot may be used, by requests for this digest."""
        self.owners[slot] = digest

    def disown(self, slot: int) -> None:
        """From here on no request may use the slot."""
        self.owners[slot] = None

    def lora_batch(
        self,
        chunks: Sequence[tuple[int, Sequence[tuple[int, float]]]],
        *,
        logit_rows: NDArray[np.int64] | None = None,
    ) -> LoraPlan | None:
        """What a step adds to the base model; made once and used at every site.

        `chunks` are the batch's rows in order: so many rows, each with these (slot, weight) pairs. `logit_rows` are
        those whose logits are wanted, distinct and in order; None for all. None when no row uses a slot.
        """
        uses = [(slot, weight, index) for index, (_, pairs) in enumerate(chunks) for slot, weight in pairs]
        if not uses:
            return None
        slots, weights, chunk = (np.array(column) for column in zip(*uses, strict=True))
        lengths = np.fromiter((length for length, _ in chunks), np.int32, count=len(chunks))
        first_row = np.cumsum(lengths) - lengths
        counts = lengths[chunk]
        total = int(counts.sum())
        within = np.arange(total, dtype=np.int32) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = (
            (np.repeat(first_row[chunk], counts) + within).astype(np.int32),
            np.repeat(slots, counts).astype(np.int32),
            np.repeat(weights, counts).astype(np.float32),
        )
        grouping = group_entries(*entries)
        assert grouping is not None
        own_rows = tuple(
            RowsUse(own, np.flatnonzero(np.bincount(entries[0][entries[1] == slot])))
            for slot in sorted({int(slot) for slot in slots} & self._own_rows.keys())
            for own in self._own_rows[slot]
        )
        return LoraPlan(
            Tables(self._arena, self._sites, self._affines),
            grouping,
            grouping if logit_rows is None else group_rows(*entries, wanted=logit_rows, num_rows=int(lengths.sum())),
            max_ranks=tuple(self._rank_sums[slots].max(axis=0).tolist()),
            has_vectors=tuple(self._has_vectors[slots].any(axis=0).tolist()),
            own_rows=own_rows,
            logit_own_rows=own_rows if logit_rows is None else tuple(use.of_logits(logit_rows) for use in own_rows),
        )

    def _view(self, shape: SiteShape, index: int) -> Site:
        """One site's tables, as parts of the flat ones."""
        n, parts = self._num_slots, len(shape.parts)
        first = int(self._first_part[index]) * n
        by_part = slice(first, first + n * parts)
        return Site(
            in_features=shape.in_features,
            columns=shape.columns,
            a_start=self._a_start[index * n : (index + 1) * n],
            ranks=self._ranks[by_part].view(n, parts),
            b_start=self._b_start[by_part].view(n, parts),
            scales=self._scales[by_part].view(n, parts),
        )

    def _view_rows(self, place: RowsPlace, begin: int) -> SlotRows:
        """A slot's own rows in the arena, whose slab begins there."""
        token_ids, weight = None, begin + place.weight_start
        if place.ids_start is not None:
            at = begin + place.ids_start
            token_ids = self._arena[at : at + place.count * 4 // self.dtype.itemsize].view(torch.int32)
        rows = self._arena[weight : weight + place.count * place.width].view(place.count, place.width)
        return SlotRows(place.site_index, place.vocab_size, token_ids, rows)

    def _view_affine(self, shape: SiteShape, index: int) -> Affine:
        n, parts = self._num_slots, len(shape.parts)
        first = int(self._first_part[index]) * n
        by_part = slice(first, first + n * parts)
        return Affine(shape.columns, self._kinds[by_part].view(n, parts), self._vector_start[by_part].view(n, parts))


def _zeros(size: int, dtype: type[np.generic], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.zeros(size, dtype)).to(device)


def _put(table: Tensor, places: NDArray[np.int64], values: NDArray[np.generic]) -> None:
    table[torch.from_numpy(places).to(table.device)] = torch.from_numpy(values).to(table.device)


def _copy(source: Tensor, target: Tensor) -> None:
    """On the CPU by numpy, which stays on this thread: see lora.weights."""
    if target.device.type == "cpu":
        _bytes(target)[:] = _bytes(source)
    else:
        target.copy_(source)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return array
