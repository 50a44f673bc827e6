"""The tensors of one step. Knows no requests; models read it, the runner makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

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
