"""Attention on a CUDA device: torch's own, over the blocks where they lie. Never timed here.

Source: `torch.nn.attention.varlen.varlen_attn` of torch 2.13, whose kernel is FlashAttention 2 (arXiv 2307.08691). It
wants blocks of a multiple of 256 positions and heads of a multiple of 8 up to 256, in bfloat16 or float16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from kernels.errors import UnsupportedTensor

BLOCK_STEP = 256  # positions
HEAD_STEP, MAX_HEAD = 8, 256


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """kernels.reference.attend.

    The longest query and context are known to the device only: their bounds, all rows and a whole block table, go in
    their place, and cost blocks that leave at once. Contexts are never split, so that a sequence's answer does not
    depend on its neighbours.
    """
    block_size, head_size = k_cache.shape[1], q.shape[2]
    if block_size % BLOCK_STEP:
        raise UnsupportedTensor(f"expected blocks of a multiple of {BLOCK_STEP} positions, found {block_size}")
    if head_size % HEAD_STEP or head_size > MAX_HEAD:
        raise UnsupportedTensor(f"expected heads of a multiple of {HEAD_STEP} up to {MAX_HEAD}, found {head_size}")
    out = varlen_attn(
        q,
        k_cache,
        v_cache,
        query_starts,
        torch.nn.functional.pad(context_lens.cumsum(0, dtype=torch.int32), (1, 0)),
        q.shape[0],
        block_tables.shape[1] * block_size,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k_cache.shape[2],
        seqused_k=context_lens,
        block_table=block_tables,
        num_splits=1,
    )
    assert isinstance(out, Tensor)
    return out
