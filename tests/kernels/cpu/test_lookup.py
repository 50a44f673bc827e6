from __future__ import annotations

import pytest
import torch

import kernels
from kernels import UnsupportedTensor, group, reference

RANKS = [(4,), (1,), (9,), (16,)]
BATCHES = {
    "one": [[(0, 1.0)]],
    "distinct": [[(slot, 1.0)] for slot in range(4)],
    "with base rows": [[], [(2, 1.0)], [], [(0, 1.0)], [(2, 1.0)]],
    "composed": [[(0, 1.0), (3, -0.5)], [(1, 1.0)]],
    "a long prompt": [[(3, 1.0)]] * 200 + [[(0, 1.0)]],
}


@pytest.mark.parametrize("uses", BATCHES.values(), ids=BATCHES)
def test_a_token_is_looked_up_as_the_reference_does_and_as_a_row_of_zeros_and_one_is_shrunk(uses, dtype, make_adapters):
    adapters = make_adapters(RANKS, 104, (24,), dtype)
    token_ids, segments = torch.randint(0, 104, (len(uses),)), group(uses)
    one_hot = torch.nn.functional.one_hot(token_ids, 104).to(dtype)
    found = kernels.look_up(token_ids, adapters.arena, adapters.site, segments, max_rank=20)
    expected = reference.look_up(token_ids, adapters.arena, adapters.site, segments, max_rank=20)
    shrunk = reference.shrink(one_hot, adapters.arena, adapters.site, segments, max_rank=20)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape == (segments.num_entries, 20)
    for m, segment in enumerate(segments.segment_of.tolist()):
        rank = RANKS[int(segments.slots[segment])][0]
        assert torch.equal(found[m, :rank], expected[m, :rank])
        assert torch.equal(found[m, :rank], shrunk[m, :rank])


@pytest.mark.parametrize("token_ids", [torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)[::2]])
def test_what_compiled_code_would_misread_is_refused(token_ids, make_adapters):
    adapters = make_adapters(RANKS, 104, (24,), torch.float32)
    with pytest.raises(UnsupportedTensor, match="expected dense int64 token_ids"):
        kernels.look_up(token_ids, adapters.arena, adapters.site, group([[(0, 1.0)]] * 2), max_rank=4)
