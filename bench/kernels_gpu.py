"""The CUDA kernels beside torch's own ways and the memory's floor: `python -m bench.kernels_gpu [JSON]` on a GPU.

Never run yet: no device was at hand. What to expect follows from floors alone, the bytes that a call must move over the
bandwidth that the same run measures: with distinct adapters the streaming kernels should stay within 1.5 of it at 32
rows and more, and a launch's few microseconds should rule below.

The sides of a case run in turn, round after round; quoted are medians with the quartiles as their spread. Before every
call a buffer larger than the second cache is written, so that weights come from memory, as they do in a model of many
layers. The last cases replay the adapters' whole share of a decode step, captured once as a CUDA graph. Its layers have
the same weights, so that only more of them than the second cache holds (2.6 MB for each adapter) say something.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import kernels
from kernels import Segments, Site, UnsupportedDevice
from kernels.cuda.module import Facts, facts

ROUNDS = 50
FLUSH_BYTES = 256 << 20  # beyond the second cache of every device: a B200 has 126 MB
COPY_BYTES = 2 << 30  # what the bandwidth is measured on
RANK = 16
DTYPE = torch.bfloat16
# Shapes of Llama 3 8B, by site: features in, and the widths of the parts.
SITES = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
NUM_LAYERS = 32
BATCHES = ((1, 1), (8, 8), (32, 32), (128, 128), (32, 4), (128, 1), (2048, 1), (2048, 16))  # rows, adapters


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds: the median call, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}-{self.high:.1f})"


@dataclass(frozen=True, slots=True)
class Case:
    """Ways to the same result, ours first; `floor_bytes` are what any of them must move."""

    name: str
    floor_bytes: int
    sides: dict[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows over adapters of one rank at one site, and the same weights as torch's ways want them."""

    site: Site
    arena: Tensor
    segments: Segments
    x: Tensor
    y: Tensor
    slot_of_row: Tensor

    @property
    def max_rank(self) -> int:
        return RANK * (len(self.site.columns) - 1)


def main() -> None:
    if not torch.cuda.is_available():
        raise UnsupportedDevice(
            "expected an NVIDIA GPU and torch's CUDA build, found neither; this benchmark needs both"
        )
    torch.manual_seed(0)
    here = facts(torch.device("cuda", torch.cuda.current_device()))
    kernels.warm_up("cuda", [DTYPE])
    bandwidth, results = _measure_bandwidth(), []
    print(f"{here.name}, sm_{here.capability}, {here.num_processors} processors, copies {bandwidth / 1e9:.0f} GB/s")
    with torch.inference_mode():
        for case in _cases():
            floor_us = case.floor_bytes / bandwidth * 1e6
            timings = _measure(case.sides)
            shown = ", ".join(f"{side} {timing}" for side, timing in timings.items())
            ours = next(iter(timings.values()))
            print(f"{case.name:36} floor {floor_us:8.1f} us ({floor_us / ours.median:4.0%}): {shown}", flush=True)
            sides = {side: asdict(timing) for side, timing in timings.items()}
            results.append({"case": case.name, "floor_us": floor_us, "us": sides})
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(_report(here, bandwidth, results))


def _report(here: Facts, bandwidth: float, results: list[dict[str, object]]) -> str:
    device = {"name": here.name, "capability": here.capability, "processors": here.num_processors}
    return json.dumps({"device": device, "bytes_per_s": bandwidth, "cases": results}, indent=2) + "\n"


def _measure_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = _measure({"copy": lambda: target.copy_(source)})["copy"]
    return 2 * COPY_BYTES / timing.median * 1e6


def _measure(sides: dict[str, Callable[[], object]]) -> dict[str, Timing]:
    """Every side once per round, with cold caches, timed by the device's own events."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(ROUNDS + 3):  # the first three warm up
        for name, side in sides.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            side()
            end.record()
            end.synchronize()
            if index >= 3:
                rounds[name].append(begin.elapsed_time(end) * 1e3)
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in rounds.items()}
    return {name: Timing(median, low, high) for name, (low, median, high) in quartiles.items()}


def _cases() -> Iterator[Case]:
    for num_rows, num_adapters in BATCHES:
        for name in SITES:
            batch = _make_batch(name, num_rows, num_adapters)
            sides: dict[str, Callable[[], object]] = {
                "kernels": partial(_kernels, batch),
                "per adapter": partial(_per_adapter, batch),
            }
            if num_rows <= 128:  # more would gather gigabytes
                sides["gathered"] = partial(_gathered, batch)
            yield Case(f"{name}, {num_rows} rows, {num_adapters} adapters", _floor_bytes(batch), sides)
    for num_rows in (1, 8, 32, 128):
        batches = [_make_batch(name, num_rows, num_rows) for name in SITES]
        floor = NUM_LAYERS * sum(map(_floor_bytes, batches))
        yield Case(f"decode step, {num_rows} adapters", floor, {"graph": _captured(batches).replay})


def _make_batch(name: str, num_rows: int, num_adapters: int) -> Batch:
    in_features, widths = SITES[name]
    num_parts, columns = len(widths), [0]
    for width in widths:
        columns.append(columns[-1] + width)
    size = RANK * (num_parts * in_features + columns[-1])  # of one adapter: its A, then each B
    starts = torch.arange(num_adapters) * size
    b_start = starts[:, None] + RANK * (num_parts * in_features + torch.tensor(columns[:-1]))
    slot_of_row = torch.arange(num_rows) * num_adapters // num_rows
    segments = kernels.group([[(slot, 1.0)] for slot in slot_of_row.tolist()], device="cuda")
    assert segments is not None
    return Batch(
        site=Site(
            in_features=in_features,
            columns=tuple(columns),
            a_start=starts.cuda(),
            ranks=torch.full((num_adapters, num_parts), RANK, dtype=torch.int32, device="cuda"),
            b_start=b_start.cuda(),
            scales=torch.ones(num_adapters, num_parts, device="cuda"),
        ),
        arena=torch.randn(num_adapters * size, device="cuda").div_(64).to(DTYPE),
        segments=segments,
        x=torch.randn(num_rows, in_features, device="cuda").to(DTYPE),
        y=torch.zeros(num_rows, columns[-1], dtype=DTYPE, device="cuda"),
        slot_of_row=slot_of_row.cuda(),
    )


def _floor_bytes(batch: Batch) -> int:
    """The adapters' weights once, x once, y read and written."""
    return (batch.arena.numel() + batch.x.numel() + 2 * batch.y.numel()) * DTYPE.itemsize


def _kernels(batch: Batch) -> None:
    s = kernels.shrink(batch.x, batch.arena, batch.site, batch.segments, max_rank=batch.max_rank)
    kernels.expand(s, batch.arena, batch.site, batch.segments, batch.y)


def _weights(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """A [N, P * rank, D_in] and each part's B [N, rank, width], as views."""
    slots = batch.site.a_start.shape[0]
    each = batch.arena.view(slots, -1)
    at = batch.max_rank * batch.site.in_features
    b = []
    for begin, end in pairwise(batch.site.columns):
        b.append(each[:, at + RANK * begin : at + RANK * end].view(slots, RANK, end - begin))
    return each[:, :at].view(slots, batch.max_rank, -1), b


def _per_adapter(batch: Batch) -> None:
    """Two products for each adapter, over its rows."""
    a, b = _weights(batch)
    rows_each = batch.x.shape[0] // a.shape[0]
    for slot in range(a.shape[0]):
        here = slice(slot * rows_each, (slot + 1) * rows_each)
        s = batch.x[here] @ a[slot].T
        for part, weight in enumerate(b):
            columns = slice(batch.site.columns[part], batch.site.columns[part + 1])
            batch.y[here, columns] += s[:, part * RANK : (part + 1) * RANK] @ weight[slot]


def _gathered(batch: Batch) -> None:
    """Each row's weights copied beside one another, then batched products."""
    a, b = _weights(batch)
    s = torch.bmm(a[batch.slot_of_row], batch.x[:, :, None])[:, :, 0]
    for part, weight in enumerate(b):
        columns = slice(batch.site.columns[part], batch.site.columns[part + 1])
        share = s[:, None, part * RANK : (part + 1) * RANK]
        batch.y[:, columns] += torch.bmm(share, weight[batch.slot_of_row])[:, 0]


def _captured(batches: list[Batch]) -> torch.cuda.CUDAGraph:
    """Every site of every layer, 8 launches a layer; all layers have the same weights."""
    for batch in batches:
        _kernels(batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(NUM_LAYERS):
            for batch in batches:
                _kernels(batch)
    return graph


if __name__ == "__main__":
    main()
