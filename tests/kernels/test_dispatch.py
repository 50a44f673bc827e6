from __future__ import annotations

import pytest
import torch

import kernels
from kernels import Site, UnsupportedDevice, UnsupportedTensor


def test_a_device_without_kernels_is_refused_by_name():
    with pytest.raises(UnsupportedDevice, match="expected tensors on the device 'cpu' or 'cuda', found 'meta'"):
        kernels.silu_mul(torch.zeros(1, 8, device="meta"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranks": torch.ones(2, 1, dtype=torch.int64)},
        {"ranks": torch.ones(3, 1, dtype=torch.int32)},
        {"a_start": torch.ones(4, dtype=torch.int64)[::2]},
        {"scales": torch.ones(2, 2)},
    ],
    ids=["dtype", "slots", "strides", "parts"],
)
def test_a_site_refuses_tables_that_kernels_would_misread(wrong):
    right = {
        "a_start": torch.zeros(2, dtype=torch.int64),
        "ranks": torch.zeros(2, 1, dtype=torch.int32),
        "b_start": torch.zeros(2, 1, dtype=torch.int64),
        "scales": torch.ones(2, 1),
    }
    with pytest.raises(UnsupportedTensor, match=f"expected {next(iter(wrong))} of dense"):
        Site(in_features=8, columns=(0, 8), **{**right, **wrong})
