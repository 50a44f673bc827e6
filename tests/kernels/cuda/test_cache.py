"""write_kv, simulated, equals its definition to the bit."""

from __future__ import annotations

import pytest
import torch

import kernels.cuda
from kernels import UnsupportedTensor, reference

HEADS, SIZE = 3, 24


def make(num_rows: int, dtype: torch.dtype):
    """k and v as views of one fused projection; places of an empty cache, shuffled over its blocks."""
    fused = torch.randn(num_rows, 5 * HEADS, SIZE).to(dtype)
    k, v = fused[:, HEADS : 2 * HEADS], fused[:, 2 * HEADS : 3 * HEADS]
    caches = [torch.full((4, 8, HEADS, SIZE), float("nan"), dtype=dtype) for _ in range(2)]
    return k, v, caches, torch.randperm(32)[:num_rows]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize("num_rows", [0, 1, 7, 32])
def test_every_row_goes_to_its_place_and_nowhere_else(num_rows, dtype, device):
    k, v, (k_cache, v_cache), index = make(num_rows, dtype)
    k_expected, v_expected = k_cache.clone(), v_cache.clone()
    kernels.cuda.write_kv(k, v, k_cache, v_cache, index)
    reference.write_kv(k, v, k_expected, v_expected, index)
    assert same_bits(k_cache, k_expected)
    assert same_bits(v_cache, v_expected)


def test_padding_goes_nowhere(dtype, device):
    k, v, (k_cache, v_cache), index = make(3, dtype)
    index[1] = -1
    k_expected, v_expected = k_cache.clone(), v_cache.clone()
    kernels.cuda.write_kv(k, v, k_cache, v_cache, index)
    reference.write_kv(k[::2], v[::2], k_expected, v_expected, index[::2])
    assert same_bits(k_cache, k_expected)
    assert same_bits(v_cache, v_expected)


def test_each_byte_moves_once(dtype, device):
    """4 * H_kv * D * size bytes per row, and its index once per warp."""
    k, v, (k_cache, v_cache), index = make(32, dtype)
    kernels.cuda.write_kv(k.contiguous(), v.contiguous(), k_cache, v_cache, index)
    traffic = device.traffic("write_kv")
    floor = 32 * 4 * HEADS * SIZE * 2
    moved = sum(traffic.bytes_read.values()) + sum(traffic.bytes_written.values()) - index.numel() * 8
    assert floor <= moved <= 1.1 * floor


def test_rows_that_are_not_aligned_are_refused(device):
    k, v, (k_cache, v_cache), index = make(2, torch.bfloat16)
    with pytest.raises(UnsupportedTensor, match="each aligned to 16 bytes"):
        kernels.cuda.write_kv(k.flatten(1)[:, 1:].unflatten(1, (-1, 1)), v, k_cache, v_cache, index)


def test_a_cache_of_another_dtype_is_refused(device):
    k, v, (k_cache, v_cache), index = make(2, torch.bfloat16)
    with pytest.raises(UnsupportedTensor, match=r"dense rows of 72 torch\.float16"):
        kernels.cuda.write_kv(k, v, k_cache.half(), v_cache.half(), index)
