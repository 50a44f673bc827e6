"""Small batches that together meet every branch of every kernel: what tells a right kernel from a faulty one.

Each takes a Bench and raises PtxError or AssertionError where a kernel does what it must not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import kernels.cuda
from kernels import Affine, group, reference
from kernels.cuda.families import Family
from kernels.segments import group_entries
from kernels.transfer import send
from tests.kernels.cuda.outcome import SAME_BITS, Outcome, assert_right
from tests.kernels.cuda.simulator.device import Device

BF16 = torch.bfloat16
BASE: list[tuple[int, float]] = []
UNUSED = (9, 2, 1)  # ranks of slot 0, which no row uses: a segment's number is never its slot's


@dataclass(frozen=True)
class Bench:
    """The fixtures that a case needs."""

    device: Device
    monkeypatch: pytest.MonkeyPatch
    make_adapters: Callable[..., Any]
    run_lora: Callable[..., Outcome]
    assert_close: Callable[..., None]

    def check(self, adapters: Any, uses: Any, **how: Any) -> Outcome:
        outcome = self.run_lora(adapters, uses, **how)
        assert_right(outcome, adapters.site, self.assert_close)
        return outcome

    def choose(self, family: Family) -> None:
        self.monkeypatch.setattr(kernels.cuda, "choose", lambda *_: family)


def rows(bench: Bench) -> None:
    """Units of one, two and four entries, one of them the last, parts of no rank, ragged slices, tails of columns."""
    bench.choose(Family.ROWS)
    adapters = bench.make_adapters([UNUSED, (16, 8, 8), (1, 0, 5), (21, 17, 2)], 776, (264, 8, 72), BF16)
    bench.check(adapters, [[(1, 1.5)]] * 5 + [BASE] + [[(2, 0.5)]] * 2 + [[(3, 1.0)]])
    a_bytes = int(adapters.site.ranks[1:].sum()) * adapters.site.in_features * 2
    read = bench.device.launches[-2].traffic.bytes_read["shrink_rows.2"]
    assert a_bytes <= read <= a_bytes + 3 * 64, "more of the arena was read than the slots' rank rows"


def composed_rows(bench: Bench) -> None:
    """Rows of two and three entries, and one that no entry touches in a part."""
    bench.choose(Family.ROWS)
    adapters = bench.make_adapters([UNUSED, (16, 8, 8), (1, 0, 5), (21, 17, 2)], 264, (264, 8, 72), BF16)
    bench.check(adapters, [BASE, [(1, 1.0), (3, -0.5)], [(3, 1.5), (1, 0.5), (2, 1.0)], [(2, 1.0)]])


def tiles(bench: Bench) -> None:
    """Windows that are cut by segments, a segment over a window's end, two chunks of ranks and six stages."""
    bench.choose(Family.TILES)
    adapters = bench.make_adapters([UNUSED, (17, 8, 8), (35, 0, 3), (4, 16, 33)], 328, (72, 8, 24), BF16)
    bench.check(adapters, [[(1, 1.5)]] * 60 + [[(2, 0.5)]] * 12 + [BASE] + [[(3, 1.0)]] * 2)


def groups(bench: Bench) -> None:
    """Composed rows by groups: one over a window's end, slots of two chunks, parts of no rank."""
    bench.choose(Family.TILES)
    adapters = bench.make_adapters([UNUSED, (17, 0, 8), (35, 0, 3), (4, 0, 33), (2, 5, 0)], 64, (72, 8, 24), BF16)
    uses = [[(1, 1.5), (2, -0.5)]] * 58 + [BASE] + [[(2, 1.0), (3, 0.5), (4, 2.0)]] * 12 + [[(3, 1.0)]] * 7
    bench.check(adapters, uses)


def groups_beyond_float16(bench: Bench) -> None:
    bench.choose(Family.TILES)
    adapters = bench.make_adapters([(40, 8), (3, 3)], 136, (264, 136), torch.float16)
    adapters.arena.mul_(0.5)
    outcome = bench.check(adapters, [[(0, 5e4)]] * 12 + [[(0, 5e4), (1, 1.0)]] * 21)
    assert outcome.s_expected.abs().max() * 5e4 > torch.finfo(torch.float16).max
    assert outcome.y_expected.isfinite().all()


def padded_rows(bench: Bench) -> None:
    bench.choose(Family.ROWS)
    _padded(bench)


def padded_tiles(bench: Bench) -> None:
    bench.choose(Family.TILES)
    _padded(bench)


def _padded(bench: Bench) -> None:
    """As a captured step has it: entries of no segment, segments of no entry, more of both than are used."""
    adapters = bench.make_adapters([(3, 17), (0, 5)], 72, (72, 8), BF16)
    for uses in ([[(0, 1.0)], BASE, [(1, 0.5)], [(0, 2.0)]], [[(0, 1.0), (1, 0.5)], BASE, [(1, 1.0)]]):
        outcome = bench.check(adapters, uses, launched=lambda segments: padded(segments, by=70))
        assert outcome.s[:, outcome.segments.num_entries :].isnan().all()


def padded(segments: kernels.Segments, *, by: int) -> kernels.Segments:
    """The same with so many more entries, segments and rows that stand for nothing."""
    entries = segments.segment_of.numpy()
    order = np.argsort(segments.rows.numpy(), kind="stable")
    grouping = group_entries(
        segments.rows.numpy()[order], segments.slots.numpy()[entries][order], segments.weights.numpy()[order]
    )
    assert grouping is not None
    rows = segments.row_starts.shape[0] - 1
    more = grouping.padded(
        num_entries=grouping.num_entries + by, num_segments=grouping.num_segments + by, num_rows=rows + by
    )
    return more.restore(send(more.arrays, "cpu"))


def far_slot(bench: Bench, family: Family) -> None:
    """A slot beyond 2³¹ elements, in memory that the system gives out as it is touched."""
    bench.choose(family)
    near = bench.make_adapters([(5,)], 64, (16,), BF16)
    arena = torch.from_numpy(np.empty((1 << 31) + near.arena.numel(), np.int16)).view(BF16)
    arena[1 << 31 :] = near.arena
    site = replace(near.site, a_start=near.site.a_start + (1 << 31), b_start=near.site.b_start + (1 << 31))
    bench.check(replace(near, arena=arena, site=site), [[(0, 1.0)]])


def far_rows(bench: Bench) -> None:
    _far_rows(bench, Family.ROWS)


def far_rows_of_tiles(bench: Bench) -> None:
    _far_rows(bench, Family.TILES)


def _far_rows(bench: Bench, family: Family) -> None:
    """Rows of x and of y that lie 2³¹ elements apart."""
    bench.choose(family)
    adapters = bench.make_adapters([(5,)], 64, (16,), BF16)
    segments = group([BASE, [(0, 1.0)]])
    assert segments is not None
    distance = (1 << 31) + 8
    memory = [torch.from_numpy(np.empty(distance + 64, np.int16)).view(BF16) for _ in range(2)]
    x, y = memory[0].as_strided((2, 64), (distance, 1)), memory[1].as_strided((2, 16), (distance, 1))
    x.copy_(torch.randn(2, 64))
    y.copy_(torch.randn(2, 16))
    expected = y.clone()
    s = kernels.cuda.shrink(x, adapters.arena, adapters.site, segments, max_rank=5)
    kernels.cuda.expand(s, adapters.arena, adapters.site, segments, y)
    s_expected = reference.shrink(x, adapters.arena, adapters.site, segments, max_rank=5)
    reference.expand(s_expected, adapters.arena, adapters.site, segments, expected)
    bench.assert_close(s.sum(dim=0)[:, :5], s_expected, torch.float32)
    bench.assert_close(y, expected, BF16)


def affine(bench: Bench) -> None:
    """Gains, shifts, both and neither, over a tile and a tail, on composed rows and on one that is not; padded."""
    columns = (0, 1032, 1040)
    kinds = torch.tensor([[3, 2], [2, 0], [0, 1]], dtype=torch.int32)
    starts, size = torch.zeros(3, 2, dtype=torch.int64), 4
    for slot in range(3):
        for part in range(2):
            starts[slot, part] = size
            size += int(kinds[slot, part]).bit_count() * (columns[part + 1] - columns[part]) + 4
    arena = torch.randn(size).view(BF16)
    segments = group([BASE, [(2, 1.0)], [(0, 1.0)], [(1, 0.5), (0, 1.0)]])
    assert segments is not None
    y = torch.randn(4, 1056).bfloat16()
    y[:, ::7] = -0.0
    expected = y.clone()
    vectors = Affine(columns, kinds, starts)
    kernels.cuda.rescale(y[:, 8:1048], arena, vectors, padded(segments, by=2))
    reference.rescale(expected[:, 8:1048], arena, vectors, segments)
    torch.testing.assert_close(y, expected, rtol=2**-8, atol=0)
    assert (y.view(torch.int16) == expected.view(torch.int16)).float().mean() >= SAME_BITS
    assert torch.equal(y[0].view(torch.int16), expected[0].view(torch.int16))


def look_up(bench: Bench) -> None:
    adapters = bench.make_adapters([(5,), (131,)], 40, (16,), BF16)
    segments = group([BASE, [(1, 1.0)], [(0, 1.0)], [(1, 1.0)]])
    assert segments is not None
    where = adapters.arena, adapters.site
    token_ids = torch.tensor([3, 39, 0, 17])
    s = kernels.cuda.look_up(token_ids, *where, padded(segments, by=2), max_rank=131)
    expected = reference.look_up(token_ids, *where, segments, max_rank=131)
    for m, rank in enumerate((5, 131, 131)):
        assert torch.equal(s[0, m, :rank], expected[m, :rank])
        assert s[0, m, rank:].isnan().all()
    assert s[0, 3:].isnan().all()
    y = torch.zeros(4, 16, dtype=BF16)
    y_expected = y.clone()
    kernels.cuda.expand(s[:, :3].contiguous(), *where, segments, y)
    reference.expand(expected, *where, segments, y_expected)
    bench.assert_close(y, y_expected, BF16)


def cache(bench: Bench) -> None:
    """Rows of a fused projection, k and v at another distance; a place that is padding."""
    fused = torch.randn(5, 6, 24).bfloat16()
    k, v = fused[:, 2:4], torch.randn(5, 5, 24).bfloat16()[:, 1:3]
    index = torch.tensor([300, 7, -1, 150, 2])
    caches = [torch.full((20, 16, 2, 24), float("nan"), dtype=BF16) for _ in range(4)]
    kernels.cuda.write_kv(k, v, caches[0], caches[1], index)
    reference.write_kv(k, v, caches[2], caches[3], index)
    assert torch.equal(caches[0].view(torch.int16), caches[2].view(torch.int16))
    assert torch.equal(caches[1].view(torch.int16), caches[3].view(torch.int16))


Case = Callable[[Bench], None]

OF_FILE: dict[str, tuple[Case, ...]] = {
    "rows.cu": (composed_rows, rows, padded_rows, far_rows),
    "tiles.cu": (tiles, groups, groups_beyond_float16, padded_tiles, far_rows_of_tiles),
    "affine.cu": (affine,),
    "lookup.cu": (look_up,),
    "cache.cu": (cache,),
    "site.cuh": (composed_rows, rows),
    "ptx.cuh": (composed_rows, tiles),
    "element.cuh": (composed_rows, groups_beyond_float16),
}
"""The cases that may tell a fault in a file, the cheapest first."""
