"""Rotary angles are those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from inference.models.config import RopeConfig, RopeKind
from inference.models.layers import RotaryAngles

ROPES = {
    "default": RopeConfig(RopeKind.DEFAULT, theta=10_000.0),
    "linear": RopeConfig(RopeKind.LINEAR, theta=10_000.0, factor=4.0),
    "llama3": RopeConfig(RopeKind.LLAMA3, 500_000.0, 8.0, 1.0, 4.0, 8192),  # the numbers of Llama 3.1
    "yarn": RopeConfig(RopeKind.YARN, 1e6, 4.0, original_max_positions=32_768, attention_factor=1.1386294361119891),
    "yarn of other turns": RopeConfig(
        RopeKind.YARN, 1e4, 16.0, original_max_positions=4096, attention_factor=0.9, beta_fast=20.0, beta_slow=3.0,
        is_truncated=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosines_and_sines_equal_those_of_transformers(kind, dtype):
    rope = ROPES[kind]
    parameters = {"rope_type": rope.kind.value, "rope_theta": rope.theta}
    if kind != "default":
        parameters["factor"] = rope.factor
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind.startswith("yarn"):  # of which the first takes every default
        parameters["original_max_position_embeddings"] = rope.original_max_positions
    if kind == "yarn of other turns":
        parameters |= {"beta_fast": 20.0, "beta_slow": 3.0, "attention_factor": 0.9, "truncate": False}
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=131_072, rope_parameters=parameters
    )
    positions = torch.tensor([0, 1, 17, 8191, 100_000])
    expected = LlamaRotaryEmbedding(config)(torch.empty(0, dtype=dtype), positions[None])
    angles = RotaryAngles(rope, head_dim=128, dtype=dtype, device=torch.device("cpu"))(positions)
    for ours, theirs in zip(angles, expected, strict=True):
        assert torch.equal(ours, theirs[0, :, :64].float())
