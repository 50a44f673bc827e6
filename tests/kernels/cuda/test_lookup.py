"""look_up, simulated, equals its definition to the bit."""

from __future__ import annotations

import pytest
import torch

import kernels.cuda
from kernels import UnsupportedTensor, group, reference

RANKS = [(4,), (1,), (9,), (200,)]
BATCHES = {
    "one": [[(0, 1.0)]],
    "distinct": [[(slot, 1.0)] for slot in range(4)],
    "with base rows": [[], [(2, 1.0)], [], [(0, 1.0)], [(2, 1.0)]],
    "composed": [[(0, 1.0), (3, -0.5)], [(1, 1.0)]],
}


@pytest.mark.parametrize("uses", BATCHES.values(), ids=BATCHES)
def test_a_token_is_looked_up_as_the_reference_does(uses, dtype, device, make_adapters):
    adapters = make_adapters(RANKS, 101, (24,), dtype)  # a vocabulary may have any size
    token_ids, segments = torch.randint(0, 101, (len(uses),)), group(uses)
    found = kernels.cuda.look_up(token_ids, adapters.arena, adapters.site, segments, max_rank=200)
    expected = reference.look_up(token_ids, adapters.arena, adapters.site, segments, max_rank=200)
    for m, segment in enumerate(segments.segment_of.tolist()):
        rank = RANKS[int(segments.slots[segment])][0]
        assert torch.equal(found[0, m, :rank], expected[m, :rank])
        assert found[0, m, rank:].isnan().all()


def test_an_element_costs_a_sector(device, make_adapters):
    adapters = make_adapters([(64,)], 1024, (24,), torch.bfloat16)
    kernels.cuda.look_up(torch.tensor([5]), adapters.arena, adapters.site, group([[(0, 1.0)]]), max_rank=64)
    assert device.traffic("look_up").bytes_read["look_up.1"] == 64 * 32


@pytest.mark.parametrize("token_ids", [torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)[::2]])
def test_token_ids_that_a_kernel_would_misread_are_refused(token_ids, device, make_adapters):
    adapters = make_adapters(RANKS, 104, (24,), torch.bfloat16)
    with pytest.raises(UnsupportedTensor, match="expected dense int64 token_ids"):
        kernels.cuda.look_up(token_ids, adapters.arena, adapters.site, group([[(0, 1.0)]] * 2), max_rank=4)
