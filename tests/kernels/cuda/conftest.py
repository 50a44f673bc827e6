"""The simulated device on which the kernels run, and a LoRA batch as the tests compare it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels.cuda
from kernels import Segments, group, reference
from kernels.cuda.families import Family
from tests.kernels.cuda.cases import Bench
from tests.kernels.cuda.outcome import Outcome
from tests.kernels.cuda.simulator.device import Device, installed

CHECKED = 1 << 20  # elements of an arena that are compared before and after: all of it, but for the largest


@pytest.fixture
def device() -> Iterator[Device]:
    with installed(Device()) as device:
        yield device


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@pytest.fixture(params=Family, ids=lambda family: family.value)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    """Every batch goes to this family, whatever its counts say."""
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: request.param)
    value: Family = request.param
    return value


@pytest.fixture
def run_lora(device: Device) -> Callable[..., Outcome]:
    """Shrinks and expands a batch both ways; the kernels get the segments as `launched` makes them.

    x and y are views of rows that are wider by `pad` elements on a side.
    """

    def run(
        adapters: Any, uses: Any, *, pad: int = 8, launched: Callable[[Segments], Segments] = lambda segments: segments
    ) -> Outcome:
        arena, site = adapters.arena, adapters.site
        segments = group(uses)
        assert segments is not None
        wide_x = torch.full((len(uses), site.in_features + pad), float("nan")).to(arena.dtype)
        x = wide_x[:, : site.in_features]
        x.copy_(torch.randn(x.shape))
        wide_y = torch.full((len(uses), site.out_features + 2 * pad), float("nan")).to(arena.dtype)
        y = wide_y[:, pad : pad + site.out_features]
        y.copy_(torch.randn(y.shape))
        y[:, ::7] = -0.0  # which adding nothing must not turn into 0
        before, arena_before, x_before = y.clone(), arena[-CHECKED:].clone(), x.clone()
        max_rank = adapters.max_rank
        s = kernels.cuda.shrink(x, arena, site, launched(segments), max_rank=max_rank)
        kernels.cuda.expand(s, arena, site, launched(segments), y)
        s_expected = reference.shrink(x, arena, site, segments, max_rank=max_rank)
        y_expected = before.clone()
        reference.expand(s_expected, arena, site, segments, y_expected)
        assert _same_bits(arena[-CHECKED:], arena_before)
        assert _same_bits(x, x_before)
        assert wide_y[:, :pad].isnan().all()
        assert wide_y[:, pad + site.out_features :].isnan().all()
        return Outcome(s, y, before, s_expected, y_expected, segments)

    return run


@pytest.fixture
def bench(
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    make_adapters: Callable[..., Any],
    run_lora: Callable[..., Outcome],
    assert_close: Callable[..., None],
) -> Bench:
    return Bench(device, monkeypatch, make_adapters, run_lora, assert_close)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))
