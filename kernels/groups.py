"""Rows of a composed batch that use the same adapters, side by side; so that they share the loads of each.

In prefill all rows of a request use the same slots. Sorted by these, the U rows with an entry form G groups; the
entries of a group's rows lie in each of its segments one after the other, in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Indices = NDArray[np.int32]

LEAST_SHARED = 4  # rows of a group, on average, up to which no device would work by groups: see cuda.families


@dataclass(frozen=True, slots=True)
class RowGroups:
    """On the device of the batch, all int32.

    rows: [U], rows of the batch; starts: [G + 1], where each group begins in them; group_of: [U]; member_starts:
    [G + 1], where each group's segments begin in first_entries: the entry of the group's first row in each of them.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    group_of: torch.Tensor
    member_starts: torch.Tensor
    first_entries: torch.Tensor


@dataclass(frozen=True, slots=True)
class HostGroups:
    """RowGroups still on the host: arrays of the same names."""

    rows: Indices
    starts: Indices
    group_of: Indices
    member_starts: Indices
    first_entries: Indices

    @property
    def arrays(self) -> tuple[Indices, ...]:
        return self.rows, self.starts, self.group_of, self.member_starts, self.first_entries

    def restore(self, tensors: Sequence[torch.Tensor]) -> RowGroups:
        """The groups of tensors that hold `arrays`."""
        return RowGroups(*tensors)


def group_of_rows(rows: Indices, slots: Indices) -> Indices:
    """For each entry the number of its row's group. Entries are sorted by slot and a row has each slot once."""
    by_row = np.argsort(rows, kind="stable")
    unique_rows, row_starts, counts = np.unique(rows[by_row], return_index=True, return_counts=True)
    used = np.full((unique_rows.size, int(counts.max())), -1, np.int32)
    row = np.repeat(np.arange(unique_rows.size), counts)
    used[row, np.arange(rows.size) - row_starts[row]] = slots[by_row]
    _, group = np.unique(used, axis=0, return_inverse=True)
    of_entry = np.empty(rows.size, np.int32)
    of_entry[by_row] = group.reshape(-1)[row]
    return of_entry


def host_groups(rows: Indices, group: Indices, by_row: Indices, row_starts: Indices) -> HostGroups | None:
    """The groups of entries that are sorted by slot, group and row; None where too few rows share one.

    by_row and row_starts as in Segments.
    """
    first_of_row = by_row[row_starts[:-1]]
    row_group = group[first_of_row]
    order = np.argsort(row_group, kind="stable")
    group_of = row_group[order]
    heads = np.flatnonzero(np.r_[True, group_of[1:] != group_of[:-1]])
    if order.size <= LEAST_SHARED * heads.size:
        return None
    counts = np.diff(row_starts)[order[heads]]
    member_starts = np.r_[0, np.cumsum(counts)]
    within = np.arange(member_starts[-1]) - np.repeat(member_starts[:-1], counts)
    return HostGroups(
        rows=rows[first_of_row][order],
        starts=np.r_[heads, order.size].astype(np.int32),
        group_of=np.repeat(np.arange(heads.size, dtype=np.int32), np.diff(heads, append=order.size)),
        member_starts=member_starts.astype(np.int32),
        first_entries=by_row[np.repeat(row_starts[order[heads]], counts) + within],
    )
