"""Rows of a batch grouped by adapter; the only place that does so.

A batch has T rows. Row t uses the adapters in slots n with weights w: M (row, slot, weight) entries in all, none for a
row of the base model. Sorted by slot, the entries form S segments of one slot each, so that the rows of one adapter
share the loads of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.groups import HostGroups, RowGroups, group_of_rows, host_groups
from kernels.transfer import send

_Number = TypeVar("_Number", np.int32, np.float32)


@dataclass(frozen=True, slots=True)
class Segments:
    """M entries sorted by slot, in S segments. Tensors live on the device of the batch.

    rows: int32 [M], the row of the batch, distinct within a segment; weights: float32 [M], multiplies the adapter's own
    scale; starts: int32 [S + 1], where each segment begins in the entries; slots: int32 [S]; segment_of: int32 [M].
    The other way round, for U rows with an entry: by_row: int32 [M], the entries in the order of their rows, those of
    one row in the order of the segments; row_starts: int32 [U + 1], where each of these rows begins in by_row.
    is_composed: False only where no row has two entries, which spares expand the sum over them. groups: of a composed
    batch in which many rows use the same slots.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    slots: torch.Tensor
    segment_of: torch.Tensor
    by_row: torch.Tensor
    row_starts: torch.Tensor
    is_composed: bool = True
    groups: RowGroups | None = None

    @property
    def num_entries(self) -> int:
        """M, the rows of the shrunk activations."""
        return self.rows.shape[0]


@dataclass(frozen=True, slots=True)
class Grouping:
    """Segments still on the host: arrays of the same names, dtypes and shapes.

    One that is `padded` to a bucket has entries, segments and rows that stand for nothing: entries with rows and
    segment_of -1, segments and rows without an entry. Ops pass over them.
    """

    rows: NDArray[np.int32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int32]
    slots: NDArray[np.int32]
    segment_of: NDArray[np.int32]
    by_row: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    is_composed: bool
    groups: HostGroups | None = None

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        fields = (self.rows, self.weights, self.starts, self.slots, self.segment_of, self.by_row, self.row_starts)
        return fields if self.groups is None else fields + self.groups.arrays

    @property
    def num_entries(self) -> int:
        return self.rows.size

    @property
    def num_segments(self) -> int:
        return self.slots.size

    def padded(self, *, num_entries: int, num_segments: int, num_rows: int) -> Grouping:
        """The same in arrays of M = num_entries, S = num_segments and U = num_rows, each at least what it has.

        Without groups: what is padded is a decode, whose composed rows go one by one.
        """
        end = self.num_entries
        return Grouping(
            rows=_pad(self.rows, num_entries, -1),
            weights=_pad(self.weights, num_entries, 0),
            starts=_pad(self.starts, num_segments + 1, end),
            slots=_pad(self.slots, num_segments, 0),  # a slot whose tables may be read; nothing is done with it
            segment_of=_pad(self.segment_of, num_entries, -1),
            by_row=_pad(self.by_row, num_entries, -1),
            row_starts=_pad(self.row_starts, num_rows + 1, end),
            is_composed=self.is_composed,
        )

    def restore(self, tensors: Sequence[torch.Tensor]) -> Segments:
        """Segments of tensors that hold `arrays`."""
        rows, weights, starts, slots, segment_of, by_row, row_starts, *rest = tensors
        return Segments(
            rows,
            weights,
            starts,
            slots,
            segment_of,
            by_row,
            row_starts,
            is_composed=self.is_composed,
            groups=None if self.groups is None else self.groups.restore(rest),
        )


def group(uses: Sequence[Sequence[tuple[int, float]]], *, device: torch.device | str = "cpu") -> Segments | None:
    """Groups the rows of a batch; `uses[t]` are row t's (slot, weight) pairs, empty for the base model.

    Returns None when no row uses an adapter. The order within a segment is that of the rows, in a composed batch after
    that of their groups; a slot that a row names twice has one entry there, with the sum of the weights.
    """
    rows = np.fromiter((t for t, row in enumerate(uses) for _ in row), dtype=np.int32)
    slots = np.fromiter((slot for row in uses for slot, _ in row), dtype=np.int32, count=rows.size)
    weights = np.fromiter((weight for row in uses for _, weight in row), dtype=np.float32, count=rows.size)
    grouping = group_entries(rows, slots, weights)
    return None if grouping is None else grouping.restore(send(grouping.arrays, device))


def group_entries(rows: NDArray[np.int32], slots: NDArray[np.int32], weights: NDArray[np.float32]) -> Grouping | None:
    """`group` for entries as arrays [M], in the order of the rows; on the host still."""
    if rows.size == 0:
        return None
    if slots.min() < 0:
        raise ValueError(f"expected slots >= 0, found {slots.min()}: a row without an adapter has no entry")
    is_composed = int(np.bincount(rows).max()) > 1
    group: NDArray[np.int32] | None = None
    if is_composed:
        entries, place = np.unique(slots.astype(np.int64) << 32 | rows, return_inverse=True)
        slots, rows = (entries >> 32).astype(np.int32), (entries & 0xFFFFFFFF).astype(np.int32)
        weights = np.bincount(place, weights=weights).astype(np.float32)
        group = group_of_rows(rows, slots)
        order = np.lexsort((rows, group, slots))
        slots, rows, weights, group = slots[order], rows[order], weights[order], group[order]
    else:
        order = np.argsort(slots, kind="stable")
        rows, slots, weights = rows[order], slots[order], weights[order]
    heads = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
    by_row = np.argsort(rows, kind="stable").astype(np.int32)
    sorted_rows = rows[by_row]
    row_starts = np.r_[np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]]), rows.size].astype(np.int32)
    return Grouping(
        rows=rows,
        weights=weights,
        starts=np.r_[heads, rows.size].astype(np.int32),
        slots=slots[heads],
        segment_of=np.repeat(np.arange(heads.size, dtype=np.int32), np.diff(heads, append=rows.size)),
        by_row=by_row,
        row_starts=row_starts,
        is_composed=is_composed,
        groups=None if group is None else host_groups(rows, group, by_row, row_starts),
    )


def group_rows(
    rows: NDArray[np.int32],
    slots: NDArray[np.int32],
    weights: NDArray[np.float32],
    *,
    wanted: NDArray[np.int64],
    num_rows: int,
) -> Grouping | None:
    """`group_entries` of the batch that has only the rows `wanted`, distinct and in order, of a batch of `num_rows`."""
    place = np.full(num_rows, -1, np.int32)
    place[wanted] = np.arange(wanted.size)
    is_kept = place[rows] >= 0
    return group_entries(place[rows[is_kept]], slots[is_kept], weights[is_kept])


def _pad(array: NDArray[_Number], size: int, value: int) -> NDArray[_Number]:
    assert size >= array.size, f"expected room for {array.size}, found {size}"
    return np.concatenate([array, np.full(size - array.size, value, array.dtype)])
