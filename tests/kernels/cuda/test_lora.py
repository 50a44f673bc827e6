"""The LoRA kernels, simulated through the product's own launch code, equal their definitions."""

from __future__ import annotations

import pytest
import torch

import kernels.cuda
from kernels.cuda.families import Family
from tests.kernels.cuda.cases import padded
from tests.kernels.cuda.outcome import assert_right
from tests.kernels.cuda.simulator.device import Device, installed

WIDTHS = (264, 8, 72)  # a tile and a ragged tail, the least, and a ragged tail alone
RANKS = [(16, 8, 8), (1, 0, 5), (3, 17, 2), (0, 0, 64)]

BASE: list[tuple[int, float]] = []
POPULARITIES = {
    "one row": [[(2, 1.0)]],
    "distinct": [[(slot, 0.5)] for slot in (3, 0, 2, 1)],
    "one adapter": [[(2, 1.0)]] * 7,
    "zipf with base rows": [[(s, 1.0)] if s is not None else BASE for s in (0, None, 0, 1, 0, 2, None, 0, 0, 1, 3)],
    "full units": [[(0, 1.0)]] * 8 + [[(1, 1.0)]] * 4,
}
COMPOSED = [[(0, 1.0), (2, -0.5)], BASE, [(1, 1.0)], [(0, 2.0), (1, 1.0), (3, 0.25)], [(3, 1.0)]]


@pytest.mark.parametrize("uses", POPULARITIES.values(), ids=POPULARITIES)
def test_every_popularity_equals_the_reference(uses, family, dtype, make_adapters, run_lora, assert_close):
    adapters = make_adapters(RANKS, 264, WIDTHS, dtype)
    assert_right(run_lora(adapters, uses), adapters.site, assert_close)


def test_composed_rows_equal_the_reference(family, dtype, make_adapters, run_lora, assert_close):
    adapters = make_adapters(RANKS, 264, WIDTHS, dtype)
    assert_right(run_lora(adapters, COMPOSED), adapters.site, assert_close)


MANY_COMPOSED = [COMPOSED[0]] * 66 + [BASE, COMPOSED[2]] * 3 + [COMPOSED[3]] * 9 + [COMPOSED[0]] * 7 + [COMPOSED[4]] * 5


def test_rows_of_the_same_adapters_are_multiplied_together(dtype, device, make_adapters, run_lora, assert_close):
    adapters = make_adapters(RANKS, 72, WIDTHS, dtype)
    assert_right(run_lora(adapters, MANY_COMPOSED), adapters.site, assert_close)
    assert {launch.name for launch in device.launches} == {"shrink_tiles", "expand_groups"}


@pytest.mark.parametrize(
    "ranks", [(1, 2, 3, 4, 5, 6, 7, 9, 15, 17), (31, 32, 33, 63, 65, 127, 128)], ids=["low", "high"]
)
def test_every_rank_equals_the_reference(ranks, family, dtype, make_adapters, run_lora, assert_close):
    adapters = make_adapters([(rank,) for rank in ranks], 72, (40,), dtype)
    uses = [[(slot, 1.0)] for slot in range(len(ranks))] + [[(len(ranks) - 1, 1.0)]] * 3
    assert_right(run_lora(adapters, uses), adapters.site, assert_close)


@pytest.mark.parametrize("counts", [(64,), (63, 2), (130, 1, 65)], ids=["whole", "cut", "many"])
def test_units_of_tiles_cover_every_entry_once(counts, make_adapters, run_lora, assert_close, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: Family.TILES)
    adapters = make_adapters([(5,), (16,), (40,)], 136, (72,), torch.bfloat16)
    uses = [[(slot, 1.0)] for slot, count in enumerate(counts) for _ in range(count)]
    uses = [uses[i] for i in torch.randperm(len(uses)).tolist()]
    assert_right(run_lora(adapters, uses), adapters.site, assert_close)


@pytest.mark.parametrize("in_features", [8, 64, 200, 576, 1032])
def test_every_width_is_summed_whole(in_features, family, make_adapters, run_lora, assert_close):
    adapters = make_adapters([(9,), (2,)], in_features, (16,), torch.bfloat16)
    assert_right(run_lora(adapters, [[(0, 1.0)], [(1, 1.0)], [(0, 0.5)]]), adapters.site, assert_close)


@pytest.mark.parametrize("architecture", ["compute_80", "compute_100"])
def test_other_architectures_compute_the_same(
    architecture, family, dtype, make_adapters, device, run_lora, assert_close
):
    with installed(Device(architecture=architecture)):
        adapters = make_adapters(RANKS, 264, WIDTHS, dtype)
        assert_right(run_lora(adapters, POPULARITIES["zipf with base rows"]), adapters.site, assert_close)


@pytest.mark.parametrize("composed", [False, True], ids=["plain", "composed"])
def test_values_past_the_range_of_float16_are_added_as_they_are(
    composed, family, make_adapters, run_lora, assert_close
):
    """Between shrink and expand a value is float32: 5e4 times s of about 1 is no element, and the answer is."""
    adapters = make_adapters([(40, 8, 3), (0, 5, 16), (3, 3, 3)], 136, (264, 264, 136), torch.float16)
    adapters.arena.mul_(0.5)
    uses = [[(slot, 5e4 if slot < 2 else 1.0)] for slot in (0, 0, 1, 2, 0, 1, 2, 2)]
    if composed:
        uses += [[(0, 5e4), (1, -5e4), (2, 1.0)]] * 21
    outcome = run_lora(adapters, uses)
    assert outcome.s_expected.abs().max() * 5e4 > 65504
    assert outcome.y_expected.isfinite().all()
    assert_right(outcome, adapters.site, assert_close)


def test_the_same_batch_gives_the_same_bits(family, make_adapters, run_lora):
    outcomes = []
    for _ in range(2):
        torch.manual_seed(1)
        outcomes.append(run_lora(make_adapters(RANKS, 264, WIDTHS, torch.bfloat16), POPULARITIES["distinct"]))
    assert torch.equal(outcomes[0].y.view(torch.int16), outcomes[1].y.view(torch.int16))


@pytest.mark.parametrize("uses", [POPULARITIES["zipf with base rows"], COMPOSED], ids=["plain", "composed"])
def test_padding_to_a_larger_batch_changes_nothing(uses, family, make_adapters, run_lora, assert_close):
    """A captured graph keeps its grids: entries of no segment, segments and rows without entries do nothing."""
    adapters = make_adapters(RANKS, 264, WIDTHS, torch.bfloat16)
    outcome = run_lora(adapters, uses, launched=lambda segments: padded(segments, by=70))
    assert_right(outcome, adapters.site, assert_close)
    assert outcome.s[:, outcome.segments.num_entries :].isnan().all()
