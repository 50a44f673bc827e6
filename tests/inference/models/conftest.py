"""Tolerances of the models' tests, in one place."""

from __future__ import annotations

import pytest
import torch

# Logits of the tiny models have a standard deviation of 1. In float32 two orders of summing differ by 5e-6; in bfloat16
# (8 bits) ours and those of transformers are each about 0.1 off the float32 ones, and up to 0.15 off each other.
TOLERANCES = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 0.02, "atol": 0.2}}


@pytest.fixture
def close() -> dict[torch.dtype, dict[str, float]]:
    """Keyword arguments of torch.testing.assert_close, by the dtype of the model."""
    return TOLERANCES
