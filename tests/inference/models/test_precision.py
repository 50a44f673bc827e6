"""The dtype a model runs in, by what was asked, what was published, and what the machine does well."""

from __future__ import annotations

import pytest
import torch

from inference.errors import BaseModelRefused
from inference.models.precision import choose_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    """`processor("amx")`: a processor with this and nothing else."""

    def choose(feature):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: feature == "amx")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: feature == "avx512_bf16")

    return choose


@pytest.mark.parametrize("feature", ["amx", None])
def test_what_was_asked_for_is_used(processor, feature):
    processor(feature)
    for name in ("float32", "bfloat16"):
        assert choose_precision(name, published="float32", device=CPU).dtype is getattr(torch, name)


@pytest.mark.parametrize(
    ("published", "device", "feature", "dtype"),
    [
        ("bfloat16", CPU, "amx", torch.bfloat16),
        ("bfloat16", CPU, "avx512_bf16", torch.bfloat16),
        ("bfloat16", CPU, None, torch.float32),
        ("bfloat16", CUDA, None, torch.bfloat16),
        ("float16", CPU, "amx", torch.float32),
        ("float32", CPU, "amx", torch.float32),
    ],
)
def test_auto_takes_the_published_dtype_where_the_machine_does_it_well(processor, published, device, feature, dtype):
    processor(feature)
    precision = choose_precision("auto", published=published, device=device)
    assert precision.dtype is dtype
    assert precision.reason


def test_another_name_is_refused():
    with pytest.raises(BaseModelRefused, match="expected one of auto, bfloat16, float32, found 'int4'"):
        choose_precision("int4", published="bfloat16", device=CPU)
