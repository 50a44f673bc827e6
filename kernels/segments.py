"""Rows of a batch grouped by adapter; the only place that does so.

A batch has T rows. Row t uses the adapters in slots n with weights w: M (row, slot, weight) entries in all, none for a
row of the base model. Sorted by slot, the entries form S segments of one slot each, so that the rows of one adapter
share the loads of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Segments:
    """M entries sorted by slot, in S segments. Tensors live on the device of the batch.

    rows: int32 [M], the row of the batch, distinct within a segment; weights: float32 [M], multiplies the adapter's own
    scale; starts: int32 [S + 1], where each segment begins in the entries; slots: int32 [S]; segment_of: int32 [M].
    The other way round, for U rows with an entry: by_row: int32 [M], the entries in the order of their rows, those of
    one row in the order of the segments; row_starts: int32 [U + 1], where each of these rows begins in by_row.
    is_composed: False only where no row has two entries, which spares expand the sum over them.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor
    slots: torch.Tensor
    segment_of: torch.Tensor
    by_row: torch.Tensor
    row_starts: torch.Tensor
    is_composed: bool = True

    @property
    def num_entries(self) -> int:
        """M, the rows of the shrunk activations."""
        return self.rows.shape[0]


def group(uses: Sequence[Sequence[tuple[int, float]]], *, device: torch.device | str = "cpu") -> Segments | None:
    """Groups the rows of a batch; `uses[t]` are row t's (slot, weight) pairs, empty for the base model.

    Returns None when no row uses an adapter. The order within a segment is the order of the rows; a slot that a row
    names twice has one entry there, with the sum of the weights.
    """
    rows = np.fromiter((t for t, row in enumerate(uses) for _ in row), dtype=np.int32)
    slots = np.fromiter((slot for row in uses for slot, _ in row), dtype=np.int32, count=rows.size)
    weights = np.fromiter((weight for row in uses for _, weight in row), dtype=np.float32, count=rows.size)
    return group_entries(rows, slots, weights, device=device)


def group_entries(
    rows: np.ndarray, slots: np.ndarray, weights: np.ndarray, *, device: torch.device | str = "cpu"
) -> Segments | None:
    """`group` for entries as arrays: int32 [M], int32 [M], float32 [M], in the order of the rows."""
    if rows.size == 0:
        return None
    if slots.min() < 0:
        raise ValueError(f"expected slots >= 0, found {slots.min()}: a row without an adapter has no entry")
    is_composed = int(np.bincount(rows).max()) > 1
    if is_composed:
        entries, place = np.unique(slots.astype(np.int64) << 32 | rows, return_inverse=True)
        slots, rows = (entries >> 32).astype(np.int32), (entries & 0xFFFFFFFF).astype(np.int32)
        weights = np.bincount(place, weights=weights).astype(np.float32)
    else:
        order = np.argsort(slots, kind="stable")
        rows, slots, weights = rows[order], slots[order], weights[order]
    heads = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
    by_row = np.argsort(rows, kind="stable")
    sorted_rows = rows[by_row]
    columns = (
        rows,
        weights.view(np.int32),
        np.r_[heads, rows.size],
        slots[heads],
        np.repeat(np.arange(heads.size), np.diff(heads, append=rows.size)),
        by_row,
        np.r_[np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]]), rows.size],
    )
    moved = _move(columns, torch.device(device))
    return Segments(
        rows=moved[0],
        weights=moved[1].view(torch.float32),
        starts=moved[2],
        slots=moved[3],
        segment_of=moved[4],
        by_row=moved[5],
        row_starts=moved[6],
        is_composed=is_composed,
    )


def _move(columns: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays as int32 tensors, by one copy that nothing waits for. Torch keeps the pinned memory until it is done."""
    packed = torch.from_numpy(np.concatenate(columns, dtype=np.int32, casting="same_kind"))
    if device.type == "cuda":
        packed = packed.pin_memory()
    return list(torch.split(packed.to(device, non_blocking=True), [column.size for column in columns]))
