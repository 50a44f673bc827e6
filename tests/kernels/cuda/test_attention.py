"""Attention goes to torch with the arguments that its documentation asks for.

torch's kernel needs a device, so a stand-in takes its place that follows the documentation of
`torch.nn.attention.varlen.varlen_attn` word by word, with nothing of kernels.reference in it.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

import kernels.cuda
from kernels import UnsupportedTensor, reference
from kernels.cuda import attention


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


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("heads", [(4, 2), (2, 2)], ids=["grouped", "plain"])
def test_torchs_attention_as_documented_is_the_reference(window, heads, make_paged, assert_close, monkeypatch):
    monkeypatch.setattr(attention, "varlen_attn", documented)
    sequences = [(1, 300), (4, 4), (3, 10)]
    paged = make_paged(sequences, heads=heads, size=16, block_size=256, dtype=torch.bfloat16, window=window)
    actual = kernels.cuda.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
    expected = reference.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
    assert_close(actual, expected, torch.bfloat16)


def test_the_installed_torch_takes_these_arguments():
    expected = inspect.signature(documented).parameters
    assert set(expected) <= set(inspect.signature(varlen_attn).parameters)


@pytest.mark.parametrize(("block_size", "size", "what"), [(16, 64, "positions, found 16"), (256, 12, "found 12")])
def test_what_torchs_kernel_cannot_read_is_refused(block_size, size, what, make_paged):
    paged = make_paged([(1, 1)], heads=(2, 2), size=size, block_size=block_size, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedTensor, match=what):
        kernels.cuda.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
