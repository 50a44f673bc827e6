"""The tensors of one step. Knows chunks of sequences; models read it, the runner makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inference.engine.sequence import Chunk

if TYPE_CHECKING:
    from inference.models.linear import LoraBatch


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows (tokens) of B sequences, sequence by sequence; B_sampled of the rows want logits.

    token_ids, positions, write_index: int64 [T]; write_index is the row's flat position in the KV cache
    (block * block_size + offset), which the step fills. query_starts: int32 [B + 1], where each sequence's rows begin.
    context_lens: int32 [B], positions of each sequence after this step. block_tables: int32 [B, max_blocks], the
    blocks of each sequence in order, padded with 0. logit_rows: int64 [B_sampled]. lora: None when no row has a slot.
    """

    token_ids: Tensor
    positions: Tensor
    write_index: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    logit_rows: Tensor
    lora: LoraBatch | None


def build_batch(
    chunks: Sequence[Chunk], *, block_size: int, lora: LoraBatch | None, device: torch.device | str = "cpu"
) -> Batch:
    """Lays the chunks out, one after the other. The work grows with rows and blocks of the step, and nothing else."""
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

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        token_ids=to_device(np.fromiter(tokens, np.int64, count=num_rows)),
        positions=to_device(positions),
        write_index=to_device(block * block_size + positions % block_size),
        query_starts=to_device(np.concatenate(([0], ends)).astype(np.int32)),
        context_lens=to_device((starts + lengths).astype(np.int32)),
        block_tables=to_device(tables),
        logit_rows=to_device(ends[samples] - 1),
        lora=lora,
    )
