"""Adapters and headers made by hand, so that every defect can be put in on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Tensors = Mapping[str, tuple[str, list[int], bytes]]
WriteFile = Callable[[Path, Tensors], Path]
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}


def _encode(header: object) -> bytes:
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.fixture(scope="session")
def encode_header() -> Callable[[object], bytes]:
    """Eight bytes of length and the JSON."""
    return _encode


@pytest.fixture(scope="session")
def write_safetensors() -> WriteFile:
    """Writes name -> (dtype, shape, data) as a safetensors file."""

    def write(path: Path, tensors: Tensors) -> Path:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, (dtype, shape, data) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
            position += len(data)
        path.write_bytes(_encode(header) + b"".join(data for _, _, data in tensors.values()))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_modules() -> dict[str, tuple[int, int]]:
    """A base model of two layers: name -> (out_features, in_features)."""
    modules = {"model.embed_tokens": (32, 8), "lm_head": (32, 8)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        modules |= {
            f"{prefix}.self_attn.q_proj": (8, 8),
            f"{prefix}.self_attn.k_proj": (4, 8),
            f"{prefix}.self_attn.v_proj": (4, 8),
            f"{prefix}.self_attn.o_proj": (8, 8),
            f"{prefix}.mlp.gate_proj": (16, 8),
            f"{prefix}.mlp.up_proj": (16, 8),
            f"{prefix}.mlp.down_proj": (8, 16),
        }
    return modules


@pytest.fixture(scope="session")
def lora_tensors() -> Callable[..., dict[str, tuple[str, list[int], bytes]]]:
    """The A and B tensors of the named modules, with their shapes and ranks."""

    def make(
        modules: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], dtype: str = "F32"
    ) -> dict[str, tuple[str, list[int], bytes]]:
        tensors = {}
        for name, rank in ranks.items():
            out_features, in_features = modules[name]
            for part, shape in (("lora_A", [rank, in_features]), ("lora_B", [out_features, rank])):
                data = np.zeros(shape[0] * shape[1] * DTYPE_BYTES[dtype], dtype=np.uint8).tobytes()
                tensors[f"base_model.model.{name}.{part}.weight"] = (dtype, shape, data)
        return tensors

    return make
