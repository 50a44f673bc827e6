from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.lora.bank import Bank
from inference.lora.extents import Extent
from inference.lora.weights import Layout

KIB = 1024


def random_layout(sites, rng):
    """An adapter of random ranks, as (layout, slab)."""
    end, a_start, b_start, ranks = 0, [], [], []
    for site in sites:
        drawn = [int(rng.integers(0, 4)) for _ in site.parts]
        a_start.append(end)
        end = -(-(end + sum(drawn) * site.in_features) // 8) * 8
        for rank, part in zip(drawn, site.parts, strict=True):
            b_start.append(end)
            end = -(-(end + rank * part.width) // 8) * 8
        ranks += drawn
    scales = rng.random(len(ranks)).astype(np.float32)
    kinds, vector_start = np.zeros(len(ranks), np.int32), np.zeros(len(ranks), np.int64)
    layout = Layout(
        end, np.array(a_start), np.array(ranks, np.int32), np.array(b_start), scales, kinds, vector_start, (), ()
    )
    return layout, torch.from_numpy(rng.standard_normal(end).astype(np.float32))


@pytest.fixture
def bank(sites):
    bank = Bank(sites, capacity_bytes=512 * KIB, dtype=torch.float32, max_slots=16)
    bank._arena.fill_(torch.nan)
    return bank


def fill(bank, sites, slot, extent_begin, rng):
    layout, slab = random_layout(sites, rng)
    bank.write(slot, Extent(extent_begin, extent_begin + 32 * KIB), slab, layout)
    bank.publish(slot, f"digest of {slot}")
    return layout, slab


def expected(sites, index, adapter, x, *, weight=1.0):
    """What one adapter adds to a row, by the book: scale · weight · B · A · x for each part."""
    layout, slab = adapter
    site, first = sites[index], sum(len(site.parts) for site in sites[:index])
    a_start, outputs = int(layout.a_start[index]), []
    for p, part in enumerate(site.parts):
        rank, b_start = int(layout.ranks[first + p]), int(layout.b_start[first + p])
        a = slab[a_start : a_start + rank * site.in_features].view(rank, site.in_features)
        b = slab[b_start : b_start + rank * part.width].view(rank, part.width)
        outputs.append(float(layout.scales[first + p]) * weight * (a @ x) @ b)
        a_start += rank * site.in_features
    return torch.cat(outputs)


def test_each_row_gets_its_own_adapters_and_no_other(bank, sites):
    rng = np.random.default_rng(0)
    adapters = {slot: fill(bank, sites, slot, n * 32 * KIB, rng) for n, slot in enumerate([3, 0, 7, 12])}
    chunks = [(1, [(3, 1.0)]), (2, []), (3, [(0, 0.5)]), (1, [(7, 1.0), (3, 2.0)]), (1, [(12, 1.0)]), (2, [(3, 1.0)])]
    rows = [pairs for length, pairs in chunks for _ in range(length)]
    lora = bank.lora_batch(chunks).send("cpu")
    for index, site in enumerate(sites):
        x = torch.randn(len(rows), site.in_features)
        y = torch.randn(len(rows), site.out_features)
        before = y.clone()
        lora.add(index, x, y)
        for row, pairs in enumerate(rows):
            total = before[row].clone()
            for slot, weight in pairs:
                total += expected(sites, index, adapters[slot], x[row], weight=weight)
            torch.testing.assert_close(y[row], total, rtol=1e-5, atol=1e-5)
            assert pairs or torch.equal(y[row], before[row])


def test_a_batch_of_the_base_model_has_no_adapters(bank):
    assert bank.lora_batch([(3, []), (1, [])]) is None


def test_a_site_that_no_adapter_of_the_batch_targets_is_left_alone(bank, sites):
    rng = np.random.default_rng(0)
    layout, slab = random_layout(sites, rng)
    layout.ranks[:3] = 0
    bank.write(1, Extent(0, 32 * KIB), slab, layout)
    lora = bank.lora_batch([(1, [(1, 1.0)])]).send("cpu")
    assert lora.max_ranks[0] == 0
    y = torch.full((1, sites[0].out_features), torch.nan)
    lora.add(0, torch.randn(1, sites[0].in_features), y)
    assert y.isnan().all()


def test_what_a_slot_held_before_is_forgotten(bank, sites):
    rng = np.random.default_rng(0)
    fill(bank, sites, 5, 0, rng)
    bank.disown(5)
    adapter = fill(bank, sites, 5, 64 * KIB, rng)
    x, y = torch.randn(1, sites[0].in_features), torch.zeros(1, sites[0].out_features)
    bank.lora_batch([(1, [(5, 1.0)])]).send("cpu").add(0, x, y)
    torch.testing.assert_close(y[0], expected(sites, 0, adapter, x[0]), rtol=1e-5, atol=1e-5)


def test_a_step_under_way_is_not_disturbed_by_a_write_to_another_slot(bank, sites):
    rng = np.random.default_rng(0)
    adapter = fill(bank, sites, 1, 0, rng)
    lora = bank.lora_batch([(1, [(1, 1.0)])]).send("cpu")
    fill(bank, sites, 2, 32 * KIB, rng)
    x, y = torch.randn(1, sites[0].in_features), torch.zeros(1, sites[0].out_features)
    lora.add(0, x, y)
    torch.testing.assert_close(y[0], expected(sites, 0, adapter, x[0]), rtol=1e-5, atol=1e-5)


def test_a_slot_that_has_an_owner_is_not_overwritten(bank, sites):
    rng = np.random.default_rng(0)
    fill(bank, sites, 1, 0, rng)
    with pytest.raises(AssertionError, match="expected a slot without owner, found digest of 1 in 1"):
        fill(bank, sites, 1, 32 * KIB, rng)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_between_any_two_parts_of_a_move_the_slot_answers_as_before(sites, dtype, monkeypatch) -> None:
    monkeypatch.setattr("inference.lora.bank.PART_BYTES", 256)
    rng = np.random.default_rng(0)
    bank = Bank(sites, capacity_bytes=1 << 18, dtype=dtype, max_slots=8, is_checked=True)
    bank._arena.fill_(torch.nan)
    layout, slab = random_layout(sites, rng)
    slab = slab.to(dtype)
    num_bytes = slab.numel() * slab.itemsize
    bank.write(3, Extent(1 << 16, (1 << 16) + num_bytes), slab, layout)
    bank.publish(3, "moving")
    xs = [torch.randn(2, site.in_features).to(dtype) for site in sites]

    def answer() -> list[torch.Tensor]:
        lora = bank.lora_batch([(2, [(3, 1.0)])]).send("cpu")
        ys = [torch.zeros(2, site.out_features, dtype=dtype) for site in sites]
        for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
            lora.add(index, x, y)
        return ys

    before = answer()
    # To overlapping bytes, and then to others.
    for begin in ((1 << 16) - 4 * 64, 64):
        parts = 0
        for _ in bank.move(3, Extent(begin, begin + num_bytes)):
            parts += 1
            for found, expected in zip(answer(), before, strict=True):
                assert torch.equal(found, expected)
        assert parts > 3


async def test_weights_that_are_not_those_that_were_written_end_a_step_that_is_checked(sites):
    rng = np.random.default_rng(0)
    bank = Bank(sites, capacity_bytes=512 * KIB, dtype=torch.float32, max_slots=16, is_checked=True)
    _, slab = fill(bank, sites, 2, 32 * KIB, rng)
    bank.lora_batch([(1, [(2, 1.0)])])
    bank._arena[32 * KIB // 4 + 1] += 1
    with pytest.raises(AssertionError, match="slot 2: expected the weights of digest of 2"):
        bank.lora_batch([(1, [(2, 1.0)])])
    bank._arena[32 * KIB // 4 + 1] = slab[1]
    bank._b_start[bank._part_places[0] + 2 * bank._part_widths[0]] += 8
    with pytest.raises(AssertionError, match="slot 2"):
        bank.lora_batch([(1, [(2, 1.0)])])
    bank.disown(2)
    with pytest.raises(AssertionError, match="expected the weights of digest of 2 as they were before"):
        fill(bank, sites, 2, 64 * KIB, rng)
