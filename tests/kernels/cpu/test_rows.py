from __future__ import annotations

import pytest
import torch

import kernels
from kernels import UnsupportedTensor, reference

SHAPES = [(0, 576), (1, 576), (7, 576), (3, 40), (130, 100)]


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rms_norm_equals_the_reference(rows, width, dtype, assert_close):
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    assert_close(kernels.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), dtype)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rms_norm_adds_to_the_residual_in_place(rows, width, dtype, assert_close):
    x, weight, residual = (torch.randn(*shape).to(dtype) for shape in ((rows, width), (width,), (rows, width)))
    expected = residual.clone()
    assert_close(kernels.rms_norm(x, weight, 1e-5, residual), reference.rms_norm(x, weight, 1e-5, expected), dtype)
    assert torch.equal(residual, expected)


def test_rms_norm_of_zeros_is_zeros(dtype):
    assert not kernels.rms_norm(torch.zeros(2, 48).to(dtype), torch.ones(48).to(dtype), 1e-5).any()


@pytest.mark.parametrize(("size", "half"), [(64, 32), (80, 40), (64, 8), (16, 8)])
@pytest.mark.parametrize("rows", [0, 1, 6, 300])
def test_rotary_turns_the_views_of_a_fused_projection_in_place(rows, size, half, dtype, assert_close):
    fused = torch.randn(rows, 6 * size).to(dtype)
    expected, angle = fused.clone(), torch.rand(rows, half) * 6
    for ops, qkv in ((kernels, fused), (reference, expected)):
        q, k = qkv[:, : 3 * size].unflatten(1, (3, size)), qkv[:, 3 * size : 4 * size].unflatten(1, (1, size))
        ops.rotary(q, k, angle.cos(), angle.sin())
    assert_close(fused, expected, dtype)


def test_rotary_refuses_more_angles_than_pairs():
    q = torch.zeros(1, 2, 32)
    with pytest.raises(UnsupportedTensor, match="at most 16 columns, found 32"):
        kernels.rotary(q, q.clone(), torch.zeros(1, 32), torch.zeros(1, 32))


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_silu_mul_equals_the_reference(rows, width, dtype, assert_close):
    gate_up = (5 * torch.randn(rows, 2 * width)).to(dtype)
    assert_close(kernels.silu_mul(gate_up), reference.silu_mul(gate_up), dtype)


def test_silu_mul_of_extreme_gates_is_finite(dtype, assert_close):
    gate = torch.tensor([-1e4, -100.0, -88.0, -87.0, -1e-30, 0.0, 1e-30, 87.0, 1e4] * 2)
    gate_up = torch.cat([gate, torch.ones(18)])[None].to(dtype)
    assert_close(kernels.silu_mul(gate_up), reference.silu_mul(gate_up), dtype)


def test_a_row_is_the_same_bits_alone_and_beside_others(dtype):
    x, weight = torch.randn(200, 576).to(dtype), torch.randn(576).to(dtype)
    together = kernels.rms_norm(x, weight, 1e-5), kernels.silu_mul(x)
    for row in (0, 3, 199):
        one = x[row : row + 1]
        assert torch.equal(kernels.rms_norm(one, weight, 1e-5)[0], together[0][row])
        assert torch.equal(kernels.silu_mul(one)[0], together[1][row])


def test_bfloat16_results_are_rounded_to_nearest_even_and_nan_stays_nan():
    values = torch.tensor([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, float("nan"), float("inf"), 3.4e38])
    expected = values.bfloat16()
    normed = torch.stack([values, torch.zeros(6)])
    q = torch.zeros(6, 1, 2, dtype=torch.bfloat16)
    q[:, 0, 0] = 1.0
    kernels.rotary(q, q.clone(), normed[0][:, None].contiguous(), normed[1][:, None].contiguous())
    torch.testing.assert_close(q[:, 0, 0], expected, rtol=0, atol=0, equal_nan=True)
