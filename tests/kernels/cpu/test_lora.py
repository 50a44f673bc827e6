from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import Segments, UnsupportedTensor, group, reference

WIDTHS = (576, 192, 192)
RANKS = [(16, 16, 16), (8, 0, 4), (1, 3, 7), (0, 0, 5), (64, 2, 33), (16, 16, 16)]

# Which slot each row uses: the popularity of adapters in a batch.
POPULARITIES = {
    "one adapter": [[(0, 1.0)]] * 9,
    "one row": [[(2, 1.0)]],
    "distinct adapters": [[(slot, 1.0)] for slot in (3, 1, 5, 0, 4, 2)],
    "a few rows each": [[(slot % 3, 1.0)] for slot in range(12)],
    "zipf": [[(slot, 1.0)] for slot in (0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 4)],
    "with base rows": [[], [(1, 1.0)], [], [], [(0, 1.0)], [(1, 1.0)], []],
    "weighted": [[(0, 0.25)], [(4, -1.5)], [(0, 2.0)], [(1, 0.0)]],
    "composed": [[(0, 0.5), (1, 0.5)], [], [(4, 1.0)], [(3, 1.0), (0, -1.0), (2, 0.3)], [(1, 1.0)]],
    "the same adapter twice in a row": [[(0, 0.5), (0, 0.25)], [(0, 1.0)]],
    "a long prompt beside decodes": [[(0, 1.0)]] * 130 + [[(1, 1.0)], [], [(2, 1.0)]],
}


def run(ops, adapters, x, y, segments):
    """Both ops with poisoned columns between them."""
    s = ops.shrink(x, adapters.arena, adapters.site, segments, max_rank=adapters.max_rank + 3)
    ranks = adapters.site.ranks.sum(dim=1)[segments.slots.long()]
    for i, rank in enumerate(ranks.tolist()):
        s[segments.starts[i] : segments.starts[i + 1], rank:] = float("nan")
    out = y.clone()
    ops.expand(s, adapters.arena, adapters.site, segments, out)
    return out


@pytest.mark.parametrize("uses", POPULARITIES.values(), ids=POPULARITIES)
@pytest.mark.parametrize("shape", [(576, WIDTHS), (200, (40, 8, 24))], ids=["wide", "ragged"])
def test_every_popularity_equals_the_reference(uses, shape, dtype, make_adapters, assert_close):
    in_features, widths = shape
    adapters = make_adapters(RANKS, in_features, widths, dtype)
    x, y = torch.randn(len(uses), in_features).to(dtype), torch.randn(len(uses), sum(widths)).to(dtype)
    segments = group(uses)
    assert segments is not None
    assert_close(run(kernels, adapters, x, y, segments), run(reference, adapters, x, y, segments), dtype)


def test_shrink_keeps_float32_accuracy_for_bfloat16_inputs(make_adapters, assert_close):
    adapters = make_adapters(RANKS, 1536, (576,) * 3, torch.bfloat16)
    x, segments = torch.randn(4, 1536).bfloat16(), group([[(0, 1.0)]] * 4)
    s = kernels.shrink(x, adapters.arena, adapters.site, segments, max_rank=48)
    expected = reference.shrink(x, adapters.arena, adapters.site, segments, max_rank=48)
    assert s.dtype == torch.float32
    assert_close(s, expected, torch.float32)


@pytest.mark.parametrize("rank", [*range(1, 18), 31, 48, 63, 100, 127, 128])
def test_every_rank_equals_the_reference(rank, make_adapters, assert_close):
    adapters = make_adapters([(rank,)], 72, (88,), torch.float32)
    x, y, segments = torch.randn(5, 72), torch.randn(5, 88), group([[(0, 1.0)]] * 5)
    assert_close(run(kernels, adapters, x, y, segments), run(reference, adapters, x, y, segments), torch.float32)


def test_an_empty_batch_is_nothing_to_do(dtype, make_adapters):
    adapters = make_adapters(RANKS, 64, (32, 16, 16), dtype)
    empty = torch.zeros(0, dtype=torch.int32)
    starts = torch.zeros(1, dtype=torch.int32)
    segments = Segments(
        rows=empty,
        weights=torch.zeros(0),
        starts=starts,
        slots=empty,
        segment_of=empty,
        by_row=empty,
        row_starts=starts,
    )
    y = torch.randn(3, 64).to(dtype)
    assert torch.equal(run(kernels, adapters, torch.randn(3, 64).to(dtype), y, segments), y)


@pytest.mark.parametrize("uses", [POPULARITIES["with base rows"], POPULARITIES["composed"]], ids=["plain", "composed"])
def test_rows_without_an_adapter_and_parts_of_rank_zero_keep_every_bit(uses, dtype, make_adapters):
    adapters = make_adapters(RANKS, 576, WIDTHS, dtype)
    x, y = torch.randn(len(uses), 576).to(dtype), torch.randn(len(uses), 960).to(dtype)
    out = run(kernels, adapters, x, y, group(uses))
    for row, entries in enumerate(uses):
        if not entries:
            assert torch.equal(out[row], y[row])
        if entries == [(1, 1.0)]:  # the slot whose second part has rank 0
            assert torch.equal(out[row, 576:768], y[row, 576:768])
            assert not torch.equal(out[row, :576], y[row, :576])


def test_a_row_is_the_same_bits_alone_and_beside_any_neighbours(dtype, make_adapters):
    adapters = make_adapters(RANKS, 576, WIDTHS, dtype)
    uses = [[(slot, 1.0)] for slot in [0] * 70 + [1, 4, 4, 2, 0, 3]]
    x, y = torch.randn(len(uses), 576).to(dtype), torch.randn(len(uses), 960).to(dtype)
    together = run(kernels, adapters, x, y, group(uses))
    for row in (0, 3, 69, 70, 71, 73, 75):
        alone = run(kernels, adapters, x[row : row + 1], y[row : row + 1], group([uses[row]]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("uses", [POPULARITIES["a long prompt beside decodes"], POPULARITIES["composed"] * 9])
def test_the_number_of_threads_changes_no_bit(uses, dtype, make_adapters):
    adapters = make_adapters(RANKS, 576, WIDTHS, dtype)
    x, y = torch.randn(len(uses), 576).to(dtype), torch.randn(len(uses), 960).to(dtype)
    usual, outputs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            outputs.append(run(kernels, adapters, x, y, group(uses)))
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_several_entries_of_a_row_are_rounded_once(make_adapters):
    adapters = make_adapters([(8,), (8,)], 64, (64,), torch.bfloat16)
    # 1 + 3/1024 + 3/1024: each addend alone is lost when a bfloat16 near 1 is rounded, their sum is not.
    for slot in range(2):
        start = int(adapters.site.b_start[slot, 0])
        adapters.arena[start : start + 64] = 3 / 1024
        adapters.site.scales[slot] = 1.0
    s = torch.zeros(2, 8)
    s[:, 0] = 1.0
    y = torch.ones(1, 64, dtype=torch.bfloat16)
    kernels.expand(s, adapters.arena, adapters.site, group([[(0, 1.0), (1, 1.0)]]), y)
    assert torch.equal(y, torch.full((1, 64), 1 + 1 / 128, dtype=torch.bfloat16))


def test_views_of_wider_rows_are_read_and_written_in_place(dtype, make_adapters, assert_close):
    adapters = make_adapters([(4, 4)], 64, (32, 32), dtype)
    wide_x, wide_y, segments = torch.randn(3, 96).to(dtype), torch.randn(3, 100).to(dtype), group([[(0, 1.0)]] * 3)
    before = wide_y.clone()
    expected = run(reference, adapters, wide_x[:, 32:], before[:, 7:71], segments)
    s = kernels.shrink(wide_x[:, 32:], adapters.arena, adapters.site, segments, max_rank=8)
    kernels.expand(s, adapters.arena, adapters.site, segments, wide_y[:, 7:71])
    assert_close(wide_y[:, 7:71], expected, dtype)
    assert torch.equal(wide_y[:, :7], before[:, :7])
    assert torch.equal(wide_y[:, 71:], before[:, 71:])


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 63), torch.zeros(2, 64, dtype=torch.bfloat16), torch.zeros(64, 2).T], ids=str
)
def test_what_compiled_code_would_misread_is_refused(x, make_adapters):
    adapters = make_adapters([(4,)], 64, (32,), torch.float32)
    with pytest.raises(UnsupportedTensor, match="expected x of dense rows of 64"):
        kernels.shrink(x, adapters.arena, adapters.site, group([[(0, 1.0)]] * 2), max_rank=4)


def test_a_dtype_without_native_code_is_refused(make_adapters):
    adapters = make_adapters([(4,)], 64, (32,), torch.float16)
    with pytest.raises(UnsupportedTensor, match=r"expected bfloat16 or float32 tensors on a CPU, found torch\.float16"):
        kernels.shrink(torch.zeros(1, 64).half(), adapters.arena, adapters.site, group([[(0, 1.0)]]), max_rank=4)


@st.composite
def batches(draw):
    parts = draw(st.integers(1, 3))
    ranks = draw(st.lists(st.tuples(*[st.integers(0, 20)] * parts), min_size=1, max_size=4))
    entry = st.tuples(st.integers(0, len(ranks) - 1), st.sampled_from([1.0, 0.5, -2.0]))
    uses = draw(st.lists(st.lists(entry, max_size=3), min_size=1, max_size=12))
    widths = draw(st.tuples(*[st.integers(1, 20).map(lambda n: 8 * n)] * parts))
    return ranks, uses, 8 * draw(st.integers(1, 12)), widths, draw(st.sampled_from([torch.float32, torch.bfloat16]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches())
def test_any_batch_equals_the_reference(make_adapters, assert_close, batch):
    ranks, uses, in_features, widths, dtype = batch
    torch.manual_seed(0)
    segments = group(uses)
    if segments is None:
        return
    adapters = make_adapters(ranks, in_features, widths, dtype)
    x, y = torch.randn(len(uses), in_features).to(dtype), torch.randn(len(uses), sum(widths)).to(dtype)
    assert_close(run(kernels, adapters, x, y, segments), run(reference, adapters, x, y, segments), dtype)
