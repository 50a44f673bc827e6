"""On a real device: `pytest -m gpu`. The simulated cases again, and what no simulation shows.

Never run yet: no device was at hand when this was written. `make test-gpu` runs it also under the sanitizer, which sees
what a result hides. Whole decode steps are in tests/inference/lora/test_device.py.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

import kernels
from kernels import Affine, group, reference
from tests.kernels.cuda.outcome import Outcome, assert_right

pytestmark = pytest.mark.gpu

WIDTHS = (264, 8, 72)
RANKS = [(16, 8, 8), (1, 0, 5), (3, 17, 2), (0, 0, 64), (128, 31, 100)]
POPULARITIES = {
    "one row": [[(2, 1.0)]],
    "distinct": [[(slot, 0.5)] for slot in (3, 0, 2, 1, 4)],
    "one adapter": [[(4, 1.0)]] * 200,
    "zipf with base rows": [[(slot % 5, 1.0)] if slot % 7 else [] for slot in (n * n % 13 for n in range(90))],
    "composed": [[(0, 1.0), (2, -0.5)], [], [(1, 1.0)], [(0, 2.0), (1, 1.0), (3, 0.25)], [(4, 1.0)]],
    "composed prompts": [[(0, 1.0), (2, -0.5)]] * 70 + [[]] + [[(0, 2.0), (1, 1.0), (3, 0.25)]] * 20,
}


@pytest.fixture(autouse=True)
def _is_loaded(dtype: torch.dtype) -> None:
    kernels.warm_up("cuda", [dtype])


def to_cuda(made):
    """A frozen dataclass with its tensors, and those of the dataclasses within, on the device."""
    moved = {}
    for field in fields(made):
        value = getattr(made, field.name)
        if isinstance(value, torch.Tensor):
            moved[field.name] = value.cuda()
        elif hasattr(value, "__dataclass_fields__"):
            moved[field.name] = to_cuda(value)
    return replace(made, **moved)


def run(adapters, uses, x, y) -> torch.Tensor:
    segments = group(uses, device="cuda")
    s = kernels.shrink(x, adapters.arena, adapters.site, segments, max_rank=adapters.max_rank)
    kernels.expand(s, adapters.arena, adapters.site, segments, y)
    return s


def make_rows(adapters, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(count, adapters.site.in_features), torch.randn(count, adapters.site.out_features)
    return x.to(dtype).cuda(), y.to(dtype).cuda()


@pytest.mark.parametrize("uses", POPULARITIES.values(), ids=POPULARITIES)
def test_lora_on_the_device_equals_the_reference(uses, family, dtype, make_adapters, assert_close):
    adapters = make_adapters(RANKS, 264, WIDTHS, dtype)
    on_device = to_cuda(adapters)
    x, y = make_rows(adapters, len(uses), dtype)
    before = y.cpu().clone()
    s = run(on_device, uses, x, y)
    segments, expected = group(uses), before.clone()
    s_expected = reference.shrink(x.cpu(), adapters.arena, adapters.site, segments, max_rank=adapters.max_rank)
    reference.expand(s_expected, adapters.arena, adapters.site, segments, expected)
    s_before = torch.full_like(s, float("nan")).cpu()  # what lies past a rank is unspecified here
    for m, segment in enumerate(segments.segment_of.tolist()):
        rank = int(adapters.site.ranks[int(segments.slots[segment])].sum())
        s_before[:, m, :rank] = s[:, m, :rank].cpu()
    assert_right(Outcome(s_before, y.cpu(), before, s_expected, expected, segments), adapters.site, assert_close)


def test_the_same_batch_gives_the_same_bits_a_hundred_times(family, dtype, make_adapters):
    adapters = to_cuda(make_adapters(RANKS, 4096, (4096, 1024, 1024), dtype))
    uses = POPULARITIES["zipf with base rows"]
    x, y = make_rows(adapters, len(uses), dtype)
    answers = []
    for _ in range(100):
        answer = y.clone()
        run(adapters, uses, x, answer)
        answers.append(answer)
    assert all(torch.equal(answer.view(torch.int16), answers[0].view(torch.int16)) for answer in answers)


def captured(adapters, uses, x, y) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph that computes out = y + the adapters' share, and its out."""
    segments, out = group(uses, device="cuda"), torch.empty_like(y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(y)
        s = kernels.shrink(x, adapters.arena, adapters.site, segments, max_rank=adapters.max_rank)
        kernels.expand(s, adapters.arena, adapters.site, segments, out)
    return graph, out


def test_a_replayed_graph_is_the_eager_computation(family, dtype, make_adapters):
    adapters = to_cuda(make_adapters(RANKS, 264, WIDTHS, dtype))
    uses = POPULARITIES["distinct"]
    x, y = make_rows(adapters, len(uses), dtype)
    graph, out = captured(adapters, uses, x, y)
    for _ in range(3):
        x.normal_()
        graph.replay()
        expected = y.clone()
        run(adapters, uses, x, expected)
        assert torch.equal(out.view(torch.int16), expected.view(torch.int16))


def test_writes_to_other_extents_do_not_disturb_a_replay(family, dtype, make_adapters):
    adapters = to_cuda(make_adapters(RANKS, 264, WIDTHS, dtype))
    spare = torch.randn(1 << 22, device="cuda").to(dtype)
    arena = torch.cat([adapters.arena, spare])
    adapters = replace(adapters, arena=arena)
    begin = arena.numel() - spare.numel()
    uses = POPULARITIES["distinct"]
    x, y = make_rows(adapters, len(uses), dtype)
    graph, out = captured(adapters, uses, x, y)
    graph.replay()
    expected = out.clone()
    side = torch.cuda.Stream()
    for _ in range(50):
        with torch.cuda.stream(side):
            arena[begin:].copy_(spare)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))


def test_rows_reach_the_cache_on_the_device(dtype):
    k, v = torch.randn(2, 33, 4, 64).to(dtype).cuda()
    caches = [torch.zeros(4, 16, 4, 64, dtype=dtype, device="cuda") for _ in range(4)]
    index = torch.randperm(64, device="cuda")[:33]
    kernels.write_kv(k, v, caches[0], caches[1], index)
    reference.write_kv(k, v, caches[2], caches[3], index)
    assert torch.equal(caches[0], caches[2])
    assert torch.equal(caches[1], caches[3])


def test_gains_and_shifts_on_the_device_equal_the_reference(dtype, assert_close):
    arena = torch.randn(4096).view(dtype)
    affine = Affine((0, 264), torch.tensor([[3]], dtype=torch.int32), torch.tensor([[8]]))
    y = torch.randn(3, 264).to(dtype)
    uses = [[(0, 1.0)], [], [(0, 1.0)]]
    expected, actual = y.clone(), y.cuda()
    reference.rescale(expected, arena, affine, group(uses))
    kernels.rescale(actual, arena.cuda(), to_cuda(affine), group(uses, device="cuda"))
    assert_close(actual.cpu(), expected, dtype)


@pytest.mark.parametrize("window", [None, 100])
def test_torchs_attention_over_blocks_equals_the_reference(window, dtype, make_paged, assert_close):
    sequences = [(1, 700), (300, 300), (5, 261), (1, 1)]
    paged = make_paged(sequences, heads=(8, 2), size=64, block_size=256, dtype=dtype, window=window)
    expected = reference.attend(paged.q, paged.k_cache, paged.v_cache, **paged.arguments)
    # Places that nothing fills hold NaN, which attention may meet and weigh with 0.
    caches = [cache.nan_to_num(0).cuda() for cache in (paged.k_cache, paged.v_cache)]
    moved = {key: v.clamp(min=0).cuda() if isinstance(v, torch.Tensor) else v for key, v in paged.arguments.items()}
    assert_close(kernels.attend(paged.q.cuda(), *caches, **moved).cpu(), expected, dtype)
