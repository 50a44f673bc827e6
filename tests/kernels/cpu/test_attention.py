from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import UnsupportedTensor, reference

# (queries, context) of each sequence of a batch.
BATCHES = {
    "one decode": [(1, 1)],
    "ragged decodes": [(1, 37), (1, 1), (1, 16), (1, 17), (1, 90)],
    "a whole prompt": [(50, 50)],
    "a chunk with a past": [(20, 70)],
    "decodes and chunks": [(1, 33), (40, 41), (1, 7), (17, 17), (3, 64)],
    "a sequence without queries": [(1, 5), (0, 9), (2, 8)],
}


def attend(ops, paged):
    return ops.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)


@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("window", [None, 1, 13, 32])
def test_every_batch_equals_the_reference(sequences, window, dtype, make_paged, assert_close):
    paged = make_paged(sequences, heads=(9, 3), size=64, block_size=16, dtype=dtype, window=window)
    assert_close(attend(kernels, paged), attend(reference, paged), dtype)


@pytest.mark.parametrize("size", [8, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [8, 24, 64])
def test_every_head_and_block_size_equals_the_reference(size, block_size, dtype, make_paged, assert_close):
    paged = make_paged([(1, 70), (5, 30)], heads=(4, 2), size=size, block_size=block_size, dtype=dtype)
    assert_close(attend(kernels, paged), attend(reference, paged), dtype)


@pytest.mark.parametrize("heads", [(1, 1), (8, 8), (7, 1), (32, 4)], ids=str)
def test_every_group_of_heads_equals_the_reference(heads, dtype, make_paged, assert_close):
    paged = make_paged([(1, 20), (18, 19)], heads=heads, size=32, block_size=16, dtype=dtype)
    assert_close(attend(kernels, paged), attend(reference, paged), dtype)


def test_large_scores_neither_overflow_nor_vanish(dtype, make_paged, assert_close):
    paged = make_paged([(1, 40), (20, 20)], heads=(2, 2), size=64, block_size=16, dtype=dtype)
    paged.q.mul_(100)
    assert_close(attend(kernels, paged), attend(reference, paged), dtype)


def test_chunks_and_decodes_give_the_bits_of_one_plain_prefill(dtype, make_paged):
    paged = make_paged([(75, 75)], heads=(9, 3), size=64, block_size=16, dtype=dtype)
    whole = attend(kernels, paged)
    for begin, end in ((0, 20), (20, 53), (53, 74), (74, 75)):
        chunk = {
            **paged.arguments,
            "query_starts": torch.tensor([0, end - begin], dtype=torch.int32),
            "context_lens": torch.tensor([end], dtype=torch.int32),
        }
        assert torch.equal(kernels.attend(paged.q[begin:end], paged.k_cache, paged.v_cache, **chunk), whole[begin:end])


def test_a_sequence_is_the_same_bits_alone_and_beside_others(dtype, make_paged):
    sequences = BATCHES["decodes and chunks"]
    paged = make_paged(sequences, heads=(4, 2), size=64, block_size=16, dtype=dtype)
    together, row = attend(kernels, paged), 0
    for b, (queries, context) in enumerate(sequences):
        alone = kernels.attend(
            paged.q[row : row + queries],
            paged.k_cache,
            paged.v_cache,
            query_starts=torch.tensor([0, queries], dtype=torch.int32),
            context_lens=torch.tensor([context], dtype=torch.int32),
            block_tables=paged.arguments["block_tables"][b : b + 1],
            scale=paged.arguments["scale"],
        )
        assert torch.equal(alone, together[row : row + queries])
        row += queries


def test_queries_may_be_a_view_of_a_fused_projection(dtype, make_paged):
    paged = make_paged([(1, 20), (3, 9)], heads=(4, 2), size=32, block_size=8, dtype=dtype)
    fused = torch.randn(4, 4 * 32 + 40).to(dtype)
    fused[:, : 4 * 32] = paged.q.flatten(1)
    view = fused[:, : 4 * 32].unflatten(1, (4, 32))
    assert torch.equal(kernels.attend(view, paged.k_cache, paged.v_cache, **paged.arguments), attend(kernels, paged))


def test_heads_that_are_not_dense_are_refused(make_paged):
    paged = make_paged([(1, 20)], heads=(4, 2), size=32, block_size=8, dtype=torch.float32)
    spread = torch.zeros(1, 4, 64)[:, :, ::2]
    with pytest.raises(UnsupportedTensor, match="expected q of dense heads of 32"):
        kernels.attend(spread, paged.k_cache, paged.v_cache, **paged.arguments)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (5, 1)]),
    size=st.sampled_from([16, 32, 80]),
    block_size=st.sampled_from([8, 16, 40]),
    window=st.none() | st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_batch_equals_the_reference(make_paged, assert_close, sequences, **shape):
    torch.manual_seed(0)
    lengths = [(queries, past + queries) for queries, past in sequences]
    paged = make_paged(lengths, **shape)
    assert_close(attend(kernels, paged), attend(reference, paged), shape["dtype"])


@pytest.mark.parametrize(("heads", "size"), [(3, 64), (1, 32), (1, 1)])
def test_keys_and_values_go_where_the_index_says_and_nowhere_else(heads, size, dtype):
    fused = torch.randn(6, 3 * heads * size).to(dtype)
    k = fused[:, heads * size : 2 * heads * size].unflatten(1, (heads, size))
    v = fused[:, 2 * heads * size :].unflatten(1, (heads, size))
    caches = [torch.randn(5, 8, heads, size).to(dtype) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    index = torch.tensor([39, 0, 7, 8, 21, 13])
    kernels.write_kv(k, v, *caches, index)
    reference.write_kv(k, v, *expected, index)
    assert torch.equal(caches[0], expected[0])
    assert torch.equal(caches[1], expected[1])
