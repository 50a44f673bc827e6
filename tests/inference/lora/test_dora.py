from __future__ import annotations

import numpy as np
import pytest
import torch

from adapter.errors import AdapterRefused
from inference.lora.dora import MAX_PRODUCT, embedding_gains, gains


@pytest.mark.parametrize(("rank", "width"), [(1, 8), (16, 576), (64, MAX_PRODUCT // 16)])
def test_a_gain_is_the_magnitude_over_the_norm_of_the_merged_row_whatever_the_blocks(rank, width):
    rng = np.random.default_rng(0)
    weight, a, b = (rng.standard_normal(shape, np.float32) for shape in ((37, width), (rank, width), (rank, 37)))
    magnitude = rng.random(37, np.float32)
    merged = torch.from_numpy(weight).double() + 0.5 * torch.from_numpy(b).double().T @ torch.from_numpy(a).double()
    expected = torch.from_numpy(magnitude).double() / merged.norm(dim=1)
    for step in (37, 10, 1):
        blocks = ((first, weight[first : first + step]) for first in range(0, 37, step))
        found = gains(blocks, a, b, scale=0.5, magnitude=magnitude, module="q")
        torch.testing.assert_close(torch.from_numpy(found), expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rank", "width"), [(1, 8), (16, 576)])
def test_a_gain_of_an_embedding_is_the_magnitude_over_the_norm_of_the_merged_column(rank, width):
    rng = np.random.default_rng(1)
    weight, a, b = (rng.standard_normal(shape, np.float32) for shape in ((37, width), (rank, 37), (rank, width)))
    magnitude = rng.random(width, np.float32)
    merged = torch.from_numpy(weight).double() + 0.5 * torch.from_numpy(a).double().T @ torch.from_numpy(b).double()
    expected = torch.from_numpy(magnitude).double() / merged.norm(dim=0)
    for step in (37, 10):
        blocks = ((first, weight[first : first + step]) for first in range(0, 37, step))
        found = embedding_gains(blocks, a, b, scale=0.5, magnitude=magnitude, module="embed_tokens")
        torch.testing.assert_close(torch.from_numpy(found), expected.float(), rtol=1e-5, atol=0)


def test_a_row_of_norm_zero_is_refused_by_the_modules_name():
    rows = np.zeros((2, 4), np.float32)
    with pytest.raises(AdapterRefused, match="module q: expected outputs of another norm than 0"):
        gains([(0, rows)], rows[:1], rows[:1, :2], scale=1.0, magnitude=rows[0, :2] + 1, module="q")
