"""rescale, simulated, equals its definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import kernels.cuda
from kernels import Affine, UnsupportedTensor, Vectors, group, reference

COLUMNS = (0, 1032, 1040, 1112)  # a tile and a tail, the least, a tail alone
KINDS = [[0, 0, 3], [1, 2, 0], [3, 3, 3], [2, 0, 2]]
BATCHES = {
    "one row": [[(2, 1.0)]],
    "distinct": [[(slot, 1.0)] for slot in (3, 0, 2, 1)],
    "with base rows": [[], [(1, 1.0)], [], [(1, 1.0)], [(2, 1.0)]],
    "shifts composed": [[(3, 0.5), (0, 1.0)], [(3, -1.0)]],
}


def make_affine(dtype: torch.dtype) -> tuple[torch.Tensor, Affine]:
    """Vectors of float32 in an arena of `dtype`, with poison between."""
    pieces, starts, size = [torch.full((4,), float("nan"))], torch.full((4, 3), -1), 4
    for slot, kinds in enumerate(KINDS):
        for part, kind in enumerate(kinds):
            if kind:
                starts[slot, part] = size
                pieces.append(torch.randn(kind.bit_count() * (COLUMNS[part + 1] - COLUMNS[part])))
                pieces.append(torch.full((4,), float("nan")))
                size += pieces[-2].numel() + 4
    return torch.cat(pieces).view(dtype), Affine(COLUMNS, torch.tensor(KINDS, dtype=torch.int32), starts)


@pytest.mark.parametrize("uses", BATCHES.values(), ids=BATCHES)
def test_gains_and_shifts_equal_the_reference(uses, dtype, device, assert_close):
    arena, affine = make_affine(dtype)
    segments, y = group(uses), torch.randn(len(uses), COLUMNS[-1]).to(dtype)
    expected, before = y.clone(), y.clone()
    kernels.cuda.rescale(y, arena, affine, segments)
    reference.rescale(expected, arena, affine, segments)
    assert_close(y, expected, dtype)
    for row, entries in enumerate(uses):
        for part, (begin, end) in enumerate(pairwise(COLUMNS)):
            if not any(KINDS[slot][part] for slot, _ in entries):
                assert torch.equal(y[row, begin:end].view(torch.int16), before[row, begin:end].view(torch.int16))


def test_each_vector_and_each_row_moves_once(dtype, device):
    arena, affine = make_affine(dtype)
    y = torch.randn(1, COLUMNS[-1]).to(dtype)
    kernels.cuda.rescale(y, arena, affine, group([[(2, 1.0)]]))
    traffic = device.traffic("rescale")
    floor = COLUMNS[-1] * (2 + 2 + 4 * Vectors(3).bit_count())
    moved = sum(traffic.bytes_read.values()) + sum(traffic.bytes_written.values())
    assert floor <= moved <= 1.1 * floor


def test_y_of_another_dtype_than_the_arena_is_refused(device):
    arena, affine = make_affine(torch.bfloat16)
    with pytest.raises(UnsupportedTensor, match=r"expected y of dense rows of 1112 torch\.bfloat16"):
        kernels.cuda.rescale(torch.zeros(1, 1112, dtype=torch.float16), arena, affine, group([[(2, 1.0)]]))
