from __future__ import annotations

import pytest
import torch

import kernels
from kernels import Affine, UnsupportedTensor, Vectors, group, reference

KINDS = [[0, 1, 2], [3, 0, 1], [1, 1, 1], [0, 0, 0], [2, 2, 2], [0, 2, 0]]  # by slot; the last two only shift
BATCHES = {
    "one": [[(0, 1.0)]],
    "distinct": [[(slot, 1.0)] for slot in range(6)],
    "with base rows": [[], [(1, 1.0)], [], [(1, 1.0)], [(2, 1.0)], []],
    "composed shifts": [[(4, 0.5), (5, -2.0)], [(2, 1.0)], [(5, 1.0), (3, 1.0), (4, 1.0)], []],
    "a long prompt": [[(1, 1.0)]] * 70 + [[(0, 1.0)]],
}


@pytest.fixture(params=[(576, 192, 192), (40, 8, 24)], ids=["wide", "ragged"])
def made(request, dtype):
    """An arena whose numbers outside the vectors are poisoned, and the tables of a site with three parts."""
    widths, per_number = request.param, 4 // dtype.itemsize
    pieces, starts, end = [torch.full((8,), torch.nan)], [], 8
    for kinds in KINDS:
        for kind, width in zip(kinds, widths, strict=True):
            starts.append(end)
            pieces += [torch.randn(kind.bit_count() * width), torch.full((8,), torch.nan)]
            end += kind.bit_count() * width + 8
    numbers = torch.cat(pieces)
    columns = (0, widths[0], widths[0] + widths[1], sum(widths))
    table = Affine(columns, torch.tensor(KINDS, dtype=torch.int32), torch.tensor(starts).view(-1, 3))
    arena = numbers.view(dtype)
    assert arena.numel() == numbers.numel() * per_number
    return arena, table


@pytest.mark.parametrize("uses", BATCHES.values(), ids=BATCHES)
def test_gains_and_shifts_equal_the_reference(uses, made, dtype, assert_close):
    arena, table = made
    y = torch.randn(len(uses), table.columns[-1]).to(dtype)
    expected, segments = y.clone(), group(uses)
    before = y.clone()
    kernels.rescale(y, arena, table, segments)
    reference.rescale(expected, arena, table, segments)
    assert_close(y, expected, dtype)
    for row, entries in enumerate(uses):
        for part in range(3):
            part_columns = slice(table.columns[part], table.columns[part + 1])
            is_touched = any(KINDS[slot][part] for slot, _ in entries)
            assert torch.equal(y[row, part_columns], before[row, part_columns]) != is_touched


def test_the_reference_is_gain_times_y_plus_shift(made, dtype, assert_close):
    arena, table = made
    y = torch.randn(1, table.columns[-1]).to(dtype)
    at, width = int(table.starts[1, 0]), table.columns[1]
    gain, shift = arena.view(torch.float32)[at : at + 2 * width].view(2, width)
    expected = gain * y[0, :width].float() + shift
    reference.rescale(y, arena, table, group([[(1, 1.0)]]))
    assert_close(y[0, :width].float(), expected, dtype)


def test_the_number_of_threads_changes_no_bit(made, dtype):
    arena, table = made
    uses = BATCHES["a long prompt"] * 20
    y = torch.randn(len(uses), table.columns[-1]).to(dtype)
    usual, outputs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            outputs.append(y.clone())
            kernels.rescale(outputs[-1], arena, table, group(uses))
    finally:
        torch.set_num_threads(usual)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_what_compiled_code_would_misread_is_refused(made):
    arena, table = made
    segments = group([[(0, 1.0)]])
    with pytest.raises(UnsupportedTensor, match="expected y of dense rows"):
        kernels.rescale(torch.zeros(1, table.columns[-1] - 1, dtype=arena.dtype), arena, table, segments)
    with pytest.raises(UnsupportedTensor, match="expected kinds of dense"):
        Affine(table.columns, table.kinds.long(), table.starts)
    with pytest.raises(UnsupportedTensor, match="expected starts of dense"):
        Affine(table.columns, table.kinds, table.starts[:2])


def test_vectors_of_both_kinds_are_gain_and_shift():
    assert Vectors(3) == Vectors.GAIN | Vectors.SHIFT
