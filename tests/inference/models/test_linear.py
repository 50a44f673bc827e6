"""A packed layer multiplies as a plain one does."""

from __future__ import annotations

import pytest
import torch

from inference.errors import InvalidRequest
from inference.models import linear
from inference.models.linear import LoraLinear, PackedLinear, TiledLinear
from inference.models.sites import SitePart, SiteShape

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to outputs of order 1, by bits of the mantissa


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_weights_give_the_product_of_plain_ones(dtype, rows, has_bias):
    torch.manual_seed(rows)
    weight, x = torch.randn(40, 24, dtype=dtype) / 5, torch.randn(rows, 24, dtype=dtype)
    bias = torch.randn(40, dtype=dtype) if has_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = PackedLinear(weight, bias)(x)
    assert y.dtype is dtype
    torch.testing.assert_close(y.double(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def test_without_the_packing_ops_the_plain_product_does_the_work(monkeypatch):
    weight, bias, x = torch.randn(40, 24), torch.randn(40), torch.randn(3, 24)
    packed = PackedLinear(weight, bias)(x)
    monkeypatch.setattr(linear, "can_pack", lambda dtype: False)
    torch.testing.assert_close(PackedLinear(weight, bias)(x), packed)


def test_a_dtype_that_cannot_be_packed_is_found_by_trying():
    assert not linear.can_pack(torch.float64)


class AddsItsSite:
    def add(self, site_index, x, y):
        y += site_index * x.sum()

    def merged(self, site_index):
        return None


def test_adapters_are_added_to_the_product_at_their_site():
    weight, x = torch.randn(8, 4), torch.randn(2, 4)
    plain = PackedLinear(weight)
    layer = LoraLinear(plain, site_index=5, shape=SiteShape("o", 4, (SitePart("o_proj", 8),)))
    assert torch.equal(layer(x, None), plain(x))
    torch.testing.assert_close(layer(x, AddsItsSite()), plain(x) + 5 * x.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tiled_product_gives_a_row_the_same_bits_in_any_company(dtype):
    torch.manual_seed(3)
    layer = TiledLinear(torch.randn(24, 1536, dtype=dtype), torch.randn(24, dtype=dtype))  # long sums are split by rows
    x = torch.randn(70, 1536, dtype=dtype)
    y = layer(x)
    plain = PackedLinear(layer._weight.to_dense() if layer._is_packed else layer._weight, layer._bias)(x)
    torch.testing.assert_close(y, plain, rtol=TOLERANCES[dtype], atol=40 * TOLERANCES[dtype])
    for first, last in [(0, 1), (5, 7), (0, 16), (3, 19), (1, 70), (69, 70)]:
        assert torch.equal(layer(x[first:last]), y[first:last])


def test_a_processor_whose_rows_depend_on_their_place_is_refused(monkeypatch):
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x: x + torch.arange(x.shape[0])[:, None])
    with pytest.raises(InvalidRequest, match="expected equal rows of a product"):
        TiledLinear(torch.ones(8, 8))
