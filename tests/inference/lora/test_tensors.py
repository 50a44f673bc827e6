from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapter.errors import AdapterRefused
from adapter.header import read_header
from inference.lora.tensors import BFLOAT16, narrow, read_part, read_tensor, widen

FLOAT32 = np.dtype(np.float32)


def read(path, tensor, dtype):
    save_file({"x": tensor}, path)
    with path.open("rb", buffering=0) as file:
        return read_tensor(file, read_header(path), "x", dtype)


@pytest.mark.parametrize("kept_in", [torch.float16, torch.bfloat16, torch.float32])
def test_every_16_bit_number_is_read_exactly_subnormal_ones_too(kept_in, tmp_path):
    every = (
        torch.arange(65536, dtype=torch.int32)
        .to(torch.int16)
        .view(torch.bfloat16 if kept_in.itemsize == 4 else kept_in)
    )
    finite = every[torch.isfinite(every)].to(kept_in)
    found = read(tmp_path / "x.safetensors", finite, FLOAT32)
    assert torch.equal(torch.from_numpy(found), finite.float())


@pytest.mark.parametrize("kept_in", [torch.float16, torch.float32])
def test_numbers_become_the_bfloat16_that_torch_rounds_them_to(kept_in, tmp_path):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-40, 15, (4096,), generator=generator)
    numbers = torch.ldexp(torch.randn(4096, generator=generator), exponents).to(kept_in)
    halfway = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)], dtype=kept_in)
    numbers = torch.cat([numbers, halfway])
    found = read(tmp_path / "x.safetensors", numbers, BFLOAT16)
    assert torch.equal(torch.from_numpy(found).view(torch.bfloat16), numbers.to(torch.bfloat16))
    assert np.array_equal(widen(found), numbers.to(torch.bfloat16).float().numpy())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_narrowing_is_torchs_rounding_or_a_refusal(values):
    numbers = np.array(values, np.float32)
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    if torch.isfinite(expected).all():
        assert torch.equal(torch.from_numpy(narrow(numbers, BFLOAT16, what="x")).view(torch.bfloat16), expected)
    else:
        with pytest.raises(AdapterRefused, match="x: expected numbers that bfloat16 can hold, found a larger one"):
            narrow(numbers, BFLOAT16, what="x")
    assert narrow(numbers, FLOAT32, what="x") is numbers


def test_a_part_is_a_part(tmp_path):
    path, numbers = tmp_path / "x.safetensors", torch.arange(24, dtype=torch.float32).view(6, 4)
    save_file({"before": torch.zeros(3), "x": numbers}, path)
    header = read_header(path)
    with path.open("rb", buffering=0) as file:
        part = read_part(file, header, "x", 8, 20, dtype=FLOAT32)
    assert torch.equal(torch.from_numpy(part), numbers.flatten()[8:20])


def test_a_file_that_ends_early_is_no_tensor(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(64)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    with path.open("rb", buffering=0) as file, pytest.raises(EOFError, match="expected 4 more bytes of 'x'"):
        read_tensor(file, header, "x", FLOAT32)
