"""Putting a worker together: what is refused before anything large is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference.app import open_core
from inference.errors import InvalidRequest
from inference.settings import Settings


async def test_cuda_on_a_machine_without_it_is_refused_before_the_model_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings(model=Path("/no/such/model"), device="cuda")
    with pytest.raises(InvalidRequest, match=r"device: expected a CUDA device and its driver, torch .* finds none"):
        async with open_core(settings):
            pass


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "cuda"}, "deterministic: expected the device cpu, found cuda"),
        ({}, "deterministic: expected heads of a multiple of 16 features, found 8"),
    ],
)
async def test_determinism_is_refused_where_it_cannot_be_had(monkeypatch, tiny_served_dir, fields, message):
    monkeypatch.setattr("inference.app._device", lambda settings: torch.device(settings.device))
    settings = Settings(model=tiny_served_dir, deterministic=True, **fields)
    with pytest.raises(InvalidRequest, match=message):
        async with open_core(settings):
            pass


@pytest.mark.parametrize("field", ["adapter_memory", "kv_memory"])
async def test_more_memory_than_there_is_is_refused_with_the_field(tiny_served_dir, field):
    settings = Settings(model=tiny_served_dir, **{field: 2**60})
    with pytest.raises(InvalidRequest, match=f"{field}: expected no more bytes than this machine can give, found 1152"):
        async with open_core(settings):
            pass
