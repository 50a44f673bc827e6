"""The memory of adapters: one flat arena, the tables that say where each slot's weights lie, and who owns each slot.

    arena    [elements] ............|A A A B B B|.........|A B|......     extents, given out by slots.Slots
    tables   per site: a_start [N], ranks, b_start, scales, kinds, vector starts [N, P]     views of flat tensors
    owners   [N] digest or None

Knows no policy: it writes where it is told. A slot is written while nobody uses it and published afterwards, so the
engine reads the tables while other slots change. A slot in use is moved between steps, a part at a time.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.lora.extents import Extent
from inference.lora.merging import Merged
from inference.lora.ordering import ordering_of
from inference.lora.slots import MAX_SLOTS
from inference.lora.step import LoraPlan, Tables
from inference.lora.vocabulary import RowsUse, SlotRows
from inference.lora.weights import Layout, RowsPlace
from inference.models.sites import SiteShape
from kernels.segments import Grouping, group_entries, group_rows
from kernels.site import Affine, Site

PART_BYTES = 2**20  # of a move, at least: larger parts cost a step time, smaller ones spend it on the tables


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
        is_checked: bool = False,
    ) -> None:
        """With `is_checked` every step reads the weights that it uses once more and asserts that they are the right
        ones: for tests and for the hunt for a defect, since it takes as long as the step."""
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
        self._merged: Merged | None = None
        self._layouts: dict[int, Layout] = {}
        self._begins: dict[int, int] = {}  # where each slot's slab begins in the arena, in elements
        self._is_checked = is_checked
        self._checksums: dict[int, int] = {}  # of each slot's slab, where they are checked
        self._checksum_of: dict[str, int] = {}  # of each digest that ever was here
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
        self._layouts[slot], self._begins[slot] = layout, begin
        if self._is_checked:
            self._checksums[slot] = zlib.crc32(_bytes(slab).data)

    def move(self, slot: int, target: Extent) -> Iterator[int]:
        """Moves a slot's weights towards the arena's beginning; yields the bytes of each part that has moved.

        Iterate on the engine's thread while no step runs. Between two parts the slot can be used: tables and weights
        agree, though the weights lie at two ends. The target may overlap the slot's own bytes and nobody else's.
        Mutates: arena, tables.
        """
        layout, source = self._layouts[slot], self._begins[slot]
        begin = target.begin // self._arena.itemsize
        assert begin <= source, f"expected a move towards the beginning, found one from {source} to {begin}"
        by_part = self._part_places + slot * self._part_widths
        done = 0
        for end in (*_starts(layout)[1:], layout.num_elements):
            if (end - done) * self.dtype.itemsize < PART_BYTES and end < layout.num_elements:
                continue
            part = self._arena[source + done : source + end]
            # On the CPU numpy minds the overlap, on a device the copy in between does.
            _copy(part if part.device.type == "cpu" else part.clone(), self._arena[begin + done : begin + end])
            for table, places, first in (
                (self._a_start, self._site_places + slot, layout.a_start),
                (self._b_start, by_part, layout.b_start),
            ):
                is_here = (done <= first) & (first < end)
                _put(table, places[is_here], first[is_here] + begin)
            is_here = (done <= layout.vector_start) & (layout.vector_start < end)
            vector_start = (layout.vector_start[is_here] + begin) * self.dtype.itemsize // 4
            _put(self._vector_start, by_part[is_here], vector_start)
            if layout.rows:
                self._own_rows[slot] = tuple(
                    self._view_rows(place, begin if _first(place) < end else source) for place in layout.rows
                )
            self._ordering.mark_step()  # who writes to the bytes that are left waits for this copy too
            yield (end - done) * self.dtype.itemsize
            done = end
        self._begins[slot] = begin

    def mark_step(self) -> None:
        """On the engine's thread, when a step is queued, even if it failed: what it reads is not overwritten yet."""
        self._ordering.mark_step()

    def merge(self, merged: Merged | None) -> None:
        """Between steps: the adapter whose merged layers steps may use from now on that are all for it."""
        self._merged = merged

    def publish(self, slot: int, digest: str) -> None:
        """From here on the slot may be used, by requests for this digest."""
        if self._is_checked:
            checksum = self._checksums[slot]
            known = self._checksum_of.setdefault(digest, checksum)
            assert checksum == known, f"slot {slot}: expected the weights of {digest} as they were before"
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
        if self._is_checked:
            self._check_contents(sorted(set(slots.tolist())))
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
        grouping, logit_grouping = self._group(*entries, logit_rows=logit_rows, num_rows=int(lengths.sum()))
        own_rows = tuple(
            RowsUse(own, np.flatnonzero(np.bincount(entries[0][entries[1] == slot])))
            for slot in sorted(self._own_rows.keys() & set(slots.tolist()) if self._own_rows else ())
            for own in self._own_rows[slot]
        )
        plan = LoraPlan(
            Tables(self._arena, self._sites, self._affines),
            grouping,
            logit_grouping,
            max_ranks=tuple(self._rank_sums[slots].max(axis=0).tolist()),
            has_vectors=tuple(self._has_vectors[slots].any(axis=0).tolist()),
            own_rows=own_rows,
            logit_own_rows=own_rows if logit_rows is None else tuple(use.of_logits(logit_rows) for use in own_rows),
        )
        if self._merged is not None and self._is_all_for(self._merged, chunks):
            return plan.with_merged(self._merged)
        return plan

    def _is_all_for(self, merged: Merged, chunks: Sequence[tuple[int, Sequence[tuple[int, float]]]]) -> bool:
        """Whether every row uses the merged adapter, alone and at the weight 1."""
        return all(
            len(pairs) == 1 and pairs[0][1] == 1.0 and self.owners[pairs[0][0]] == merged.digest for _, pairs in chunks
        )

    def _group(
        self,
        rows: NDArray[np.int32],
        slots: NDArray[np.int32],
        weights: NDArray[np.float32],
        *,
        logit_rows: NDArray[np.int64] | None,
        num_rows: int,
    ) -> tuple[Grouping, Grouping | None]:
        """The entries of all rows, and of those whose logits are wanted.

        A row's adapters are added up in the order of their digests: its bits do not depend on where they lie.
        """
        used = np.unique(slots).tolist()
        order = np.array(sorted(used, key=lambda slot: (self.owners[slot] or "", slot)), np.int32)
        place = np.zeros(used[-1] + 1, np.int32)
        place[order] = np.arange(order.size, dtype=np.int32)
        found = group_entries(rows, place[slots], weights)
        assert found is not None
        grouping = dataclasses.replace(found, slots=order[found.slots])
        if logit_rows is None:
            return grouping, grouping
        wanted = group_rows(rows, place[slots], weights, wanted=logit_rows, num_rows=num_rows)
        return grouping, None if wanted is None else dataclasses.replace(wanted, slots=order[wanted.slots])

    def _check_contents(self, slots: Sequence[int]) -> None:
        """Asserts that the tables of these slots lead to the bytes that were written for them."""
        for slot in slots:
            layout = self._layouts[slot]
            checksum, starts = 0, _starts(layout)
            found = self._found_starts(slot)
            for start, end in zip(starts, (*starts[1:], layout.num_elements), strict=True):
                block = self._arena[found[start] : found[start] + end - start]
                checksum = zlib.crc32(_bytes(block.cpu()).data, checksum)
            assert checksum == self._checksums[slot], f"slot {slot}: expected the weights of {self.owners[slot]}"

    def _found_starts(self, slot: int) -> dict[int, int]:
        """Where the tables say that each block of a slot begins in the arena, by where it begins in the slab."""
        layout = self._layouts[slot]
        by_part = torch.from_numpy(self._part_places + slot * self._part_widths)
        acts, has_vectors = self._rank_sums[slot] > 0, layout.kinds > 0
        a_start = self._a_start.cpu()[torch.from_numpy(self._site_places + slot)].numpy()
        b_start = self._b_start.cpu()[by_part].numpy()
        vector_start = self._vector_start.cpu()[by_part].numpy() * 4 // self.dtype.itemsize
        found = dict(zip(layout.a_start[acts].tolist(), a_start[acts].tolist(), strict=True))
        found |= dict(zip(layout.b_start[layout.ranks > 0].tolist(), b_start[layout.ranks > 0].tolist(), strict=True))
        found |= dict(zip(layout.vector_start[has_vectors].tolist(), vector_start[has_vectors].tolist(), strict=True))
        for place, rows in zip(layout.rows, self._own_rows.get(slot, ()), strict=True):
            first = rows.weight if rows.token_ids is None else rows.token_ids
            found[_first(place)] = (first.data_ptr() - self._arena.data_ptr()) // self.dtype.itemsize
        return found

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


def _starts(layout: Layout) -> list[int]:
    """Where the blocks begin that a table points to, in elements of the slab, in order; the first begins at 0."""
    vectors, rows = layout.vector_start[layout.kinds > 0], [_first(place) for place in layout.rows]
    starts = np.unique(np.concatenate((layout.a_start, layout.b_start[layout.ranks > 0], vectors, rows)))
    return [int(start) for start in starts if start < layout.num_elements]


def _first(place: RowsPlace) -> int:
    """Where an end's own rows begin in the slab."""
    return place.weight_start if place.ids_start is None else place.ids_start


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
