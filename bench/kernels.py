"""The kernels beside plain torch and beside what this machine's memory can stream: `python -m bench.kernels [JSON]`.

The sides of a case run in turn, round after round, so that a busy moment hits both; quoted are medians, with the first
and third quartile of the rounds as their spread. An op over adapters uses copies of them in turn, more than the caches
hold, as a model of many layers does. "of floor" is the time to read the adapters' weights once at the bandwidth
measured in the same run, over the time taken.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import kernels
from bench import machine
from kernels import Segments, Site, reference

ROUNDS, CALLS = 15, 10
SPREAD_BYTES = 256 << 20  # of all copies of a case's adapters: beyond the caches that a core can count on
RANK = 16
DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call: the median round, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}-{self.high:.1f})"


@dataclass(frozen=True, slots=True)
class Case:
    """An op and the same by torch alone; `weights_bytes` are what it cannot do without reading, 0 if not adapters."""

    name: str
    weights_bytes: int
    kernel: Callable[[], object]
    plain: Callable[[], object]


def main() -> None:
    torch.manual_seed(0)
    kernels.warm_up(dtypes=[DTYPE])
    here, results = machine.measure(), []
    print(f"{here.processor}, {here.threads} threads, reads {here.read_bytes_per_s / 1e9:.1f} GB/s, {DTYPE}")
    print(f"{'case':40} {'kernel, us':>26} {'torch, us':>28} {'ratio':>6} {'of floor':>9}")
    with torch.inference_mode():
        for case in itertools.chain(_lora_cases(), _attention_cases(), _row_cases()):
            kernel, plain = _measure(case.kernel, case.plain)
            floor = case.weights_bytes / here.read_bytes_per_s * 1e6 / kernel.median
            ratio = plain.median / kernel.median
            shown = f"{floor:.0%}" if case.weights_bytes else ""
            print(f"{case.name:40} {kernel!s:>26} {plain!s:>28} {ratio:6.1f} {shown:>9}", flush=True)
            results.append({"case": case.name, "kernel_us": asdict(kernel), "torch_us": asdict(plain), "floor": floor})
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"machine": asdict(here), "cases": results}, indent=2) + "\n")


def _measure(*sides: Callable[[], object]) -> list[Timing]:
    rounds: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS):
        for side, times in zip(sides, rounds, strict=True):
            began = time.perf_counter()
            for _ in range(CALLS):
                side()
            times.append((time.perf_counter() - began) / CALLS * 1e6)
    quartiles = [statistics.quantiles(times, n=4) for times in rounds]
    return [Timing(median, low, high) for low, median, high in quartiles]


def _lora_cases() -> Iterator[Case]:
    for num_rows, num_adapters in ((1, 1), (32, 32), (32, 8), (32, 1), (512, 1)):
        for name, in_features, widths in (
            ("qkv", 576, (576, 192, 192)),
            ("gate_up", 576, (1536, 1536)),
            ("down", 1536, (576,)),
            ("qkv 4096", 4096, (4096, 1024, 1024)),
        ):
            site, length = _site(num_adapters, in_features, widths)
            weights = length * DTYPE.itemsize
            arenas = [torch.randn(length).div_(64).to(DTYPE)]
            arenas += [arenas[0].clone() for _ in range(min(64, SPREAD_BYTES // weights))]
            segments = kernels.group([[(row * num_adapters // num_rows, 1.0)] for row in range(num_rows)])
            assert segments is not None
            x, y = torch.randn(num_rows, in_features).to(DTYPE), torch.zeros(num_rows, sum(widths), dtype=DTYPE)
            yield Case(
                f"{name}, {num_rows} rows, {num_adapters} adapters",
                weights,
                _both(kernels.shrink, kernels.expand, arenas, site, segments, x, y),
                _both(_torch_shrink, _torch_expand, arenas, site, segments, x, y),
            )


def _both(  # noqa: PLR0917  # the two ops' own arguments
    shrink: Callable[..., Tensor],
    expand: Callable[..., None],
    arenas: list[Tensor],
    site: Site,
    segments: Segments,
    x: Tensor,
    y: Tensor,
) -> Callable[[], None]:
    turn, max_rank = itertools.cycle(arenas), RANK * (len(site.columns) - 1)

    def step() -> None:
        arena = next(turn)
        expand(shrink(x, arena, site, segments, max_rank=max_rank), arena, site, segments, y)

    return step


def _torch_shrink(x: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """A matrix product per segment over views of the arena: what torch does best, in its own dtype."""
    s = torch.empty(segments.num_entries, max_rank, dtype=x.dtype)
    starts, begins = segments.starts.tolist(), site.a_start.tolist()
    for i, slot in enumerate(segments.slots.tolist()):
        a = arena[begins[slot] : begins[slot] + max_rank * site.in_features].view(max_rank, site.in_features)
        torch.mm(x[starts[i] : starts[i + 1]], a.T, out=s[starts[i] : starts[i + 1]])
    return s


def _torch_expand(s: Tensor, arena: Tensor, site: Site, segments: Segments, y: Tensor) -> None:
    starts, begins, scales = segments.starts.tolist(), site.b_start.tolist(), site.scales.tolist()
    for i, slot in enumerate(segments.slots.tolist()):
        for part, (first, last) in enumerate(itertools.pairwise(site.columns)):
            b = arena[begins[slot][part] : begins[slot][part] + RANK * (last - first)].view(RANK, last - first)
            part_s = s[starts[i] : starts[i + 1], part * RANK : (part + 1) * RANK]
            y[starts[i] : starts[i + 1], first:last].addmm_(part_s, b, alpha=scales[slot][part])


def _site(num_adapters: int, in_features: int, widths: tuple[int, ...]) -> tuple[Site, int]:
    sizes = [RANK * len(widths) * in_features, *(RANK * width for width in widths)]
    starts = torch.tensor([0, *itertools.accumulate(sizes * num_adapters)])[:-1].view(num_adapters, -1)
    site = Site(
        in_features=in_features,
        columns=(0, *itertools.accumulate(widths)),
        a_start=starts[:, 0].contiguous(),
        ranks=torch.full((num_adapters, len(widths)), RANK, dtype=torch.int32),
        b_start=starts[:, 1:].contiguous(),
        scales=torch.ones(num_adapters, len(widths)) / RANK,
    )
    return site, sum(sizes) * num_adapters


def _attention_cases() -> Iterator[Case]:
    heads, key_heads, size, block_size = 9, 3, 64, 16
    for batch, queries, context in ((1, 1, 256), (32, 1, 256), (1, 512, 512)):
        blocks = context // block_size
        cache = torch.randn(2, batch * blocks, block_size, key_heads, size).to(DTYPE)
        q = torch.randn(batch * queries, heads, size).to(DTYPE)
        tables = torch.randperm(batch * blocks).view(batch, blocks)
        yield Case(
            f"attend, {batch} x {queries} of {context}",
            0,
            partial(
                kernels.attend,
                q,
                cache[0],
                cache[1],
                query_starts=torch.arange(0, batch * queries + 1, queries, dtype=torch.int32),
                context_lens=torch.full((batch,), context, dtype=torch.int32),
                block_tables=tables.int(),
                scale=size**-0.5,
            ),
            partial(_torch_attend, q, cache[0], cache[1], tables),
        )


def _torch_attend(q: Tensor, k_cache: Tensor, v_cache: Tensor, tables: Tensor) -> Tensor:
    """Gathers the blocks of sequences of one length and gives them to torch's attention."""
    k, v = (cache[tables].flatten(1, 2).transpose(1, 2) for cache in (k_cache, v_cache))
    queries = q.view(tables.shape[0], -1, *q.shape[1:]).transpose(1, 2)
    is_causal = queries.shape[2] > 1
    return functional.scaled_dot_product_attention(queries, k, v, is_causal=is_causal, enable_gqa=True)


def _row_cases() -> Iterator[Case]:
    for rows in (1, 8, 512):
        x, residual = torch.randn(rows, 576).to(DTYPE), torch.zeros(rows, 576, dtype=DTYPE)
        weight, gate_up = torch.ones(576, dtype=DTYPE), torch.randn(rows, 3072).to(DTYPE)
        qkv, cos, sin = torch.randn(rows, 960).to(DTYPE), torch.ones(rows, 32), torch.zeros(rows, 32)
        q = qkv[:, :576].view(rows, 9, 64)
        k = qkv[:, 576:768].view(rows, 3, 64)
        norm = partial(kernels.rms_norm, x, weight, 1e-5, residual)
        yield Case(f"rms_norm, {rows} rows", 0, norm, partial(_torch_rms_norm, x, weight, 1e-5, residual))
        turn = partial(kernels.rotary, q, k, cos, sin)
        yield Case(f"rotary, {rows} rows", 0, turn, partial(reference.rotary, q, k, cos, sin))
        yield Case(f"silu_mul, {rows} rows", 0, partial(kernels.silu_mul, gate_up), partial(_torch_silu_mul, gate_up))


def _torch_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    residual += x
    return functional.rms_norm(residual, weight.shape, weight, eps)


def _torch_silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


if __name__ == "__main__":
    main()
