"""NaN and infinity are found in every float type, in every chunk; large numbers are not mistaken for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapter import values
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.values import describe_non_finite, non_finite_tensors


def bf16(*numbers: float) -> bytes:
    return (np.array(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_float_type_is_searched(tmp_path: Path, write_safetensors: Any, bad: float) -> None:
    fine = [0.0, -1.5, 6e4, 6e-8]
    path = write_safetensors(
        tmp_path / "values.safetensors",
        {
            "f64": ("F64", [4], np.array([*fine[:3], bad], np.float64).tobytes()),
            "f64_fine": ("F64", [4], np.array(fine, np.float64).tobytes()),
            "f32": ("F32", [4], np.array([bad, *fine[1:]], np.float32).tobytes()),
            "f32_fine": ("F32", [4], np.array([*fine[:3], 3.4e38], np.float32).tobytes()),
            "f16": ("F16", [4], np.array([*fine[:3], bad], np.float16).tobytes()),
            "f16_fine": ("F16", [4], np.array([*fine[:3], 65504], np.float16).tobytes()),
            "bf16": ("BF16", [4], bf16(*fine[:3], bad)),
            "bf16_fine": ("BF16", [4], bf16(*fine[:3], 3.3e38)),
            "i8": ("I8", [4], b"\xff\x7f\x80\x00"),
        },
    )
    found = non_finite_tensors(path, read_header(path))
    assert found == ["f64", "f32", "f16", "bf16"]
    assert "expected finite numbers" in describe_non_finite(found)[0]


@pytest.mark.parametrize("position", [0, 1023, 1024, 2999])
def test_every_chunk_is_searched(
    tmp_path: Path, write_safetensors: Any, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    monkeypatch.setattr(values, "CHUNK_BYTES", 4096)
    numbers = np.ones(3000, np.float32)
    numbers[position] = np.nan
    path = write_safetensors(tmp_path / "long.safetensors", {"a": ("F32", [3000], numbers.tobytes())})
    assert non_finite_tensors(path, read_header(path)) == ["a"]


def test_a_file_that_became_shorter_is_refused(tmp_path: Path, write_safetensors: Any) -> None:
    path = write_safetensors(tmp_path / "cut.safetensors", {"a": ("F32", [64], bytes(256))})
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterRefused, match="found the end of the file"):
        non_finite_tensors(path, header)


@pytest.mark.parametrize("name", ["pirate", "sql", "json", "classify"])
def test_the_example_adapters_are_finite(name: str) -> None:
    path = Path("examples/adapters") / name / "adapter_model.safetensors"
    assert non_finite_tensors(path, read_header(path)) == []
