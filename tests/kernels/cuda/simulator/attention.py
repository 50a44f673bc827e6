"""A stand-in for torch's attention on a device: `torch.nn.attention.varlen.varlen_attn` as torch 2.13 documents it.

Written from the documentation word by word, with nothing of kernels.reference in it. Slow: it goes row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    """Pages in a pool; the first seqused_k tokens count; windows (left, right) around the aligned last positions."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == seqused_k.dtype == block_table.dtype == torch.int32
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    assert num_splits == 1
    assert enable_gqa == (query.shape[1] != key.shape[2])
    out = torch.empty_like(query)
    for n in range(len(seqused_k)):
        begin, end, used = int(cu_seq_q[n]), int(cu_seq_q[n + 1]), int(seqused_k[n])
        assert end - begin <= max_q
        assert used <= max_k
        pages = [int(block_table[n, i // key.shape[1]]) for i in range(used)]
        at = [i % key.shape[1] for i in range(used)]
        for t in range(begin, end):
            position = used - (end - t)
            left, right = window_size
            first = 0 if left < 0 else max(0, position - left)
            last = used if right < 0 else min(used, position + right + 1)
            for head in range(query.shape[1]):
                kv_head = head // (query.shape[1] // key.shape[2])
                k = key[pages, at, kv_head][first:last].float()
                v = value[pages, at, kv_head][first:last].float()
                out[t, head] = ((k @ query[t, head].float() * scale).softmax(0) @ v).to(query.dtype)
    return out
