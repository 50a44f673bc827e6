"""The tests tested: a classic fault, put into a kernel on purpose, must be caught by the simulator or by a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import kernels.cuda
from kernels import Affine, group, reference
from kernels.cuda import module, source
from kernels.cuda.families import Family
from tests.kernels.cuda.mutants import AFFINE, CACHE, FAR, LOOKUP, ROWS, TILES, Mutant
from tests.kernels.cuda.outcome import SAME_BITS, assert_right
from tests.kernels.cuda.simulator.nvrtc import CompileError
from tests.kernels.cuda.simulator.ptx import PtxError

BASE: list[tuple[int, float]] = []


def mutate(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    right = source.flatten

    def flatten(file: str) -> str:
        text = right(file)
        if mutant.file.endswith(".cu") and mutant.file != file:
            return text
        assert text.count(mutant.right) == 1, f"{mutant.fault}: found {text.count(mutant.right)} times in {file}"
        return text.replace(mutant.right, mutant.wrong)

    monkeypatch.setattr(module, "flatten", flatten)


def run_rows(run_lora, make_adapters, assert_close, device) -> None:
    adapters = make_adapters([(16, 8, 8), (1, 0, 5), (21, 17, 2)], 776, (264, 8, 72), torch.bfloat16)
    shared = [[(0, 1.5)]] * 5 + [BASE] + [[(2, 0.5)]] * 2 + [[(1, 1.0)]]
    assert_right(run_lora(adapters, shared), adapters.site, assert_close)
    a_bytes = int(adapters.site.ranks.sum()) * adapters.site.in_features * 2
    read = device.launches[0].traffic.bytes_read["shrink_rows.2"]
    assert a_bytes <= read <= a_bytes + 3 * 64, "more of the arena was read than the slots' rank rows"
    composed = [BASE, [(0, 1.0), (2, -0.5)], [(2, 1.5), (0, 0.5), (1, 1.0)], [(1, 1.0)]]
    assert_right(run_lora(adapters, composed), adapters.site, assert_close)


@pytest.mark.parametrize("mutant", [None, *ROWS], ids=lambda m: m.fault if m else "none")
def test_a_fault_in_the_streaming_kernels_is_caught(mutant, run_lora, make_adapters, assert_close, device, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: Family.ROWS)
    if mutant is None:
        run_rows(run_lora, make_adapters, assert_close, device)
        return
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError, CompileError)) as caught:
        run_rows(run_lora, make_adapters, assert_close, device)
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"


def run_tiles(run_lora, make_adapters, assert_close) -> None:
    adapters = make_adapters([(17, 8, 8), (35, 0, 3), (4, 16, 33)], 328, (72, 8, 24), torch.bfloat16)
    uses = [[(0, 1.5)]] * 60 + [[(1, 0.5)]] * 12 + [BASE] + [[(2, 1.0)]] * 2  # the second crosses entry 64
    assert_right(run_lora(adapters, uses), adapters.site, assert_close)


@pytest.mark.parametrize("mutant", [None, *TILES], ids=lambda m: m.fault if m else "none")
def test_a_fault_in_the_tiled_kernels_is_caught(mutant, run_lora, make_adapters, assert_close, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: Family.TILES)
    if mutant is None:
        run_tiles(run_lora, make_adapters, assert_close)
        return
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError, CompileError)) as caught:
        run_tiles(run_lora, make_adapters, assert_close)
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"


def run_far(run_lora, make_adapters, assert_close) -> None:
    """A slot beyond 2³¹ elements, in memory that the system gives out as it is touched."""
    near = make_adapters([(5,)], 64, (16,), torch.bfloat16)
    arena = torch.from_numpy(np.empty((1 << 31) + near.arena.numel(), np.int16)).view(torch.bfloat16)
    arena[1 << 31 :] = near.arena
    site = replace(near.site, a_start=near.site.a_start + (1 << 31), b_start=near.site.b_start + (1 << 31))
    far = replace(near, arena=arena, site=site)
    assert_right(run_lora(far, [[(0, 1.0)]]), site, assert_close)


@pytest.mark.parametrize("family", Family)
def test_a_slot_beyond_two_to_the_31_elements_is_found(family, run_lora, make_adapters, assert_close, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: family)
    run_far(run_lora, make_adapters, assert_close)


@pytest.mark.parametrize(("family", "mutant"), FAR, ids=[f"{mutant.fault} {f.value}" for f, mutant in FAR])
def test_an_offset_of_32_bits_is_caught(family, mutant, run_lora, make_adapters, assert_close, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: family)
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError)) as caught:
        run_far(run_lora, make_adapters, assert_close)
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"


def run_affine() -> None:
    """Gains, shifts, both and neither, over a tile and a tail, on composed rows and on one that is not."""
    columns = (0, 1032, 1040)
    kinds = torch.tensor([[3, 2], [2, 0], [0, 1]], dtype=torch.int32)
    starts, size = torch.zeros(3, 2, dtype=torch.int64), 4
    for slot in range(3):
        for part in range(2):
            starts[slot, part] = size
            size += int(kinds[slot, part]).bit_count() * (columns[part + 1] - columns[part]) + 4
    arena = torch.randn(size).view(torch.bfloat16)
    segments = group([BASE, [(2, 1.0)], [(0, 1.0)], [(1, 0.5), (0, 1.0)]])
    assert segments is not None
    y = torch.randn(4, 1056).bfloat16()
    y[:, ::7] = -0.0
    expected = y.clone()
    affine = Affine(columns, kinds, starts)
    kernels.cuda.rescale(y[:, 8:1048], arena, affine, segments)
    reference.rescale(expected[:, 8:1048], arena, affine, segments)
    torch.testing.assert_close(y, expected, rtol=2**-8, atol=0)
    assert (y.view(torch.int16) == expected.view(torch.int16)).float().mean() >= SAME_BITS
    assert torch.equal(y[0].view(torch.int16), expected[0].view(torch.int16))


@pytest.mark.parametrize("mutant", [None, *AFFINE], ids=lambda m: m.fault if m else "none")
def test_a_fault_in_the_rescaling_kernel_is_caught(mutant, device, monkeypatch):
    if mutant is None:
        run_affine()
        return
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError, CompileError)) as caught:
        run_affine()
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"


def run_look_up(make_adapters, assert_close) -> None:
    adapters = make_adapters([(5,), (131,)], 40, (16,), torch.bfloat16)
    segments = group([BASE, [(1, 1.0)], [(0, 1.0)], [(1, 1.0)]])
    assert segments is not None
    where = adapters.arena, adapters.site, segments
    token_ids = torch.tensor([3, 39, 0, 17])
    s = kernels.cuda.look_up(token_ids, *where, max_rank=131)
    expected = reference.look_up(token_ids, *where, max_rank=131)
    for m, rank in enumerate((5, 131, 131)):
        assert torch.equal(s[0, m, :rank], expected[m, :rank])
        assert s[0, m, rank:].isnan().all()
    y = torch.zeros(4, 16, dtype=torch.bfloat16)
    y_expected = y.clone()
    kernels.cuda.expand(s, *where, y)
    reference.expand(expected, *where, y_expected)
    assert_close(y, y_expected, torch.bfloat16)


@pytest.mark.parametrize("mutant", [None, *LOOKUP], ids=lambda m: m.fault if m else "none")
def test_a_fault_in_the_lookup_is_caught(mutant, device, make_adapters, assert_close, monkeypatch):
    if mutant is None:
        run_look_up(make_adapters, assert_close)
        return
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError, CompileError)) as caught:
        run_look_up(make_adapters, assert_close)
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"


def run_cache() -> None:
    fused = torch.randn(5, 6, 24).bfloat16()
    k, v = fused[:, 2:4], fused[:, 4:6]
    index = torch.tensor([300, 7, -1, 150, 2])
    caches = [torch.full((20, 16, 2, 24), float("nan"), dtype=torch.bfloat16) for _ in range(4)]
    kernels.cuda.write_kv(k, v, caches[0], caches[1], index)
    used = index >= 0
    reference.write_kv(k[used], v[used], caches[2], caches[3], index[used])
    assert torch.equal(caches[0].view(torch.int16), caches[2].view(torch.int16))
    assert torch.equal(caches[1].view(torch.int16), caches[3].view(torch.int16))


@pytest.mark.parametrize("mutant", [None, *CACHE], ids=lambda m: m.fault if m else "none")
def test_a_fault_in_the_caches_kernel_is_caught(mutant, device, monkeypatch):
    if mutant is None:
        run_cache()
        return
    mutate(mutant, monkeypatch)
    with pytest.raises((PtxError, AssertionError, CompileError)) as caught:
        run_cache()
    assert "times in" not in str(caught.value), "the mutant does not fit the source any more"
