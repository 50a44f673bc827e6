"""The tensors of one step. Knows chunks of sequences; models read it, the runner makes it.

chunks ─► HostBatch, numpy arrays ─► padded, for a captured step ─► one copy ─► Batch, tensors on the device
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.engine.sequence import Chunk
from kernels.transfer import num_bytes, send

if TYPE_CHECKING:
    from inference.lora.step import LoraPlan
    from inference.models.linear import LoraBatch


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows (tokens) of B sequences, sequence by sequence; B_sampled of the rows want logits.

    token_ids, positions, write_index: int64 [T]; write_index is the row's flat position in the KV cache
    (block * block_size + offset), which the step fills. query_starts: int32 [B + 1], where each sequence's rows begin.
    context_lens: int32 [B], positions of each sequence after this step. block_tables: int32 [B, max_blocks], the
    blocks of each sequence in order, padded with 0. logit_rows: int64 [B_sampled]. lora: None when no row has a slot.

    In a padded batch the rows past the last sequence's compute something that nobody reads and are written nowhere
    (write_index -1), and the sequences past the last have neither rows nor context.
    """

    token_ids: Tensor
    positions: Tensor
    write_index: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    lora: LoraBatch | None


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A Batch that is still on the host: arrays of the same names, dtypes and shapes, and the plan of its adapters."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    write_index: NDArray[np.int64]
    query_starts: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    logit_rows: NDArray[np.int64]
    lora: LoraPlan | None

    @property
    def num_rows(self) -> int:
        return self.token_ids.size

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one row, whose logits are wanted."""
        return self.num_rows == self.context_lens.size == self.logit_rows.size

    @property
    def is_capturable(self) -> bool:
        """Whether a captured step may compute it: a decode whose adapters leave nothing to the host."""
        return self.is_decode and (self.lora is None or self.lora.is_capturable)

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        return (
            self.token_ids,
            self.positions,
            self.write_index,
            self.query_starts,
            self.context_lens,
            self.block_tables,
            self.logit_rows,
            *(() if self.lora is None else self.lora.arrays),
        )

    @property
    def num_bytes(self) -> int:
        """What `send` needs."""
        return num_bytes(self.arrays)

    def send(self, device: torch.device | str, *, into: Tensor | None = None) -> Batch:
        """All tensors by one copy that nothing waits for: see `kernels.transfer.send`. Mutates: into."""
        tensors = send(self.arrays, device, into=into)
        token_ids, positions, write_index, query_starts, context_lens, block_tables, logit_rows, *rest = tensors
        return Batch(
            token_ids=token_ids,
            positions=positions,
            write_index=write_index,
            query_starts=query_starts,
            context_lens=context_lens,
            block_tables=block_tables,
            logit_rows=logit_rows,
            lora=None if self.lora is None else self.lora.restore(rest),
        )

    def padded(self, *, num_rows: int, num_blocks: int, num_entries: int = 0, num_segments: int = 0) -> HostBatch:
        """A decode in arrays of T = B = B_sampled = num_rows and max_blocks = num_blocks; its plan as LoraPlan's."""
        assert self.is_decode, "expected one row of each sequence"
        more, count = num_rows - self.num_rows, self.num_rows
        tables = np.zeros((num_rows, num_blocks), np.int32)
        tables[:count, : self.block_tables.shape[1]] = self.block_tables
        return dataclasses.replace(
            self,
            token_ids=np.pad(self.token_ids, (0, more)),
            positions=np.pad(self.positions, (0, more)),
            write_index=np.pad(self.write_index, (0, more), constant_values=-1),
            query_starts=np.pad(self.query_starts, (0, more), constant_values=count),
            context_lens=np.pad(self.context_lens, (0, more)),
            block_tables=tables,
            logit_rows=np.arange(num_rows),
            lora=self.lora and self.lora.padded(num_rows=num_rows, num_entries=num_entries, num_segments=num_segments),
        )


def lay_out(chunks: Sequence[Chunk], *, block_size: int) -> HostBatch:
    """Lays the chunks out, one after the other, without adapters. The work grows with rows and blocks of the step."""
    count = len(chunks)
    starts = np.fromiter((chunk.start for chunk in chunks), np.int64, count=count)
    lengths = np.fromiter((chunk.length for chunk in chunks), np.int64, count=count)
    ends = np.cumsum(lengths)
    num_rows = int(ends[-1])
    tokens = chain.from_iterable(chunk.token_ids for chunk in chunks)
    positions = np.arange(num_rows) + np.repeat(starts - (ends - lengths), lengths)

    num_blocks = np.fromiter((len(chunk.sequence.blocks) for chunk in chunks), np.int64, count=count)
    tables = np.zeros((count, int(num_blocks.max())), np.int32)
    blocks = chain.from_iterable(chunk.sequence.blocks for chunk in chunks)
    tables[np.arange(tables.shape[1]) < num_blocks[:, None]] = np.fromiter(blocks, np.int32, count=num_blocks.sum())
    block = tables[np.repeat(np.arange(count), lengths), positions // block_size].astype(np.int64)
    samples = np.fromiter((chunk.samples for chunk in chunks), np.bool_, count=count)
    logit_rows = ends[samples] - 1
    scored = np.fromiter((chunk.num_scored for chunk in chunks), np.int64, count=count)
    if scored.any():
        is_scored = np.arange(num_rows) < np.repeat(ends - lengths + scored, lengths)
        logit_rows = np.union1d(np.flatnonzero(is_scored), logit_rows)
    return HostBatch(
        token_ids=np.fromiter(tokens, np.int64, count=num_rows),
        positions=positions,
        write_index=block * block_size + positions % block_size,
        query_starts=np.concatenate(([0], ends)).astype(np.int32),
        context_lens=(starts + lengths).astype(np.int32),
        block_tables=tables,
        logit_rows=logit_rows,
        lora=None,
    )
