"""Tolerances of the models' tests, in one place."""

from __future__ import annotations

import pytest
import torch

# Logits of the tiny models are of order 1 to 10. In bfloat16 (8 bits) each of their few layers may be off by an ulp.
TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.05, "atol": 0.25}}


@pytest.fixture
def close() -> dict[torch.dtype, dict[str, float]]:
    """Keyword arguments of torch.testing.assert_close, by the dtype of the model."""
    return TOLERANCES
