"""Attention goes to torch with the arguments that its documentation asks for.

torch's kernel needs a device, so a stand-in takes its place.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

import kernels.cuda
from kernels import UnsupportedTensor, reference
from kernels.cuda import attention
from tests.kernels.cuda.simulator.attention import documented


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
