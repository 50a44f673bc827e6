"""What can be said of the CUDA kernels without a GPU: `python -m bench.kernels_static [JSON]`. Nothing here is a time.

Three tables: what the compiler gave each kernel on each architecture, and how much of a processor its threads fill by
calculation; what each kernel moves in simulation, against the bytes that it must; how often the host launches anything
for one layer of a decode step, and for a whole captured step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

import kernels.cuda
from kernels import Affine, Segments, Site, group
from kernels.cuda import source
from kernels.cuda.families import Family
from tests.kernels.cuda.simulator import nvrtc
from tests.kernels.cuda.simulator.device import CUPY_OPTIONS, Device, installed
from tests.kernels.cuda.simulator.occupancy import MAX_WARPS, WARP, blocks_per_processor

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
RANK, IN, OUT = 32, 2048, 512  # of the simulated batches: small, and many times every tile
NUM_SITES = 4  # of a layer: qkv, o, gate_up, down
# Shared memory that a launch adds, at rank 64 and the longest slice.
ADDED_BYTES = {"shrink_rows": 4 * 2048 * 2, "expand_rows": 4 * 64 * 4, "expand_composed": 64 * 4}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel on one architecture; bytes of shared memory with what a launch adds, occupancy as a share of warps."""

    kernel: str
    architecture: str
    dtype: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    blocks: int
    occupancy: float


@dataclass(frozen=True, slots=True)
class Moved:
    """One simulated launch. floor_bytes must move, memory_bytes are touched, cache_bytes are what warps ask for."""

    kernel: str
    batch: str
    floor_bytes: int
    memory_bytes: int
    cache_bytes: int


def main() -> None:
    torch.manual_seed(0)
    compiled = list(_compile())
    print(f"{'kernel':16} {'arch':7} {'dtype':9} registers  shared  spills  blocks  occupancy (calculated)")
    for one in compiled:
        print(
            f"{one.kernel:16} {one.architecture:7} {one.dtype:9} {one.registers:9} {one.shared_bytes:7} "
            f"{one.spill_bytes:7} {one.blocks:7} {one.occupancy:10.0%}"
        )
    moved = list(_simulate())
    print(f"\n{'kernel':16} {'batch':42} {'must move':>10} {'of memory':>10} {'of caches':>10} (simulated)")
    for two in moved:
        of_memory, of_caches = two.memory_bytes / two.floor_bytes, two.cache_bytes / two.floor_bytes
        print(f"{two.kernel:16} {two.batch:42} {two.floor_bytes:8} B {of_memory:9.2f}x {of_caches:9.2f}x")
    launches = _launches_of_a_layer()
    print(f"\nLoRA launches of a layer: {launches} (4 sites); launches of a captured decode step from the host: 1")
    if len(sys.argv) > 1:
        tables = {"compiled": [asdict(one) for one in compiled], "moved": [asdict(two) for two in moved]}
        Path(sys.argv[1]).write_text(json.dumps({**tables, "launches_of_a_layer": launches}, indent=2) + "\n")


def _compile() -> Iterator[Compiled]:
    for architecture in ARCHITECTURES:
        for dtype in source.ELEMENTS:
            options = (*source.options(dtype), *CUPY_OPTIONS)
            for file in sorted({kernel.file for kernel in kernels.cuda.KERNELS}):
                _, found = nvrtc.compile_cubin(source.flatten(file), architecture, options, name=file)
                for name, used in found.items():
                    blocks = blocks_per_processor(
                        used,
                        num_threads=kernels.cuda.NUM_THREADS,
                        capability=int(architecture.removeprefix("sm_")),
                        dynamic_shared_bytes=ADDED_BYTES.get(name, 0),
                    )
                    yield Compiled(
                        name,
                        architecture,
                        str(dtype).removeprefix("torch."),
                        used.registers,
                        used.shared_bytes + ADDED_BYTES.get(name, 0),
                        used.spill_stores + used.spill_loads,
                        blocks,
                        blocks * kernels.cuda.NUM_THREADS / WARP / MAX_WARPS,
                    )


def _simulate() -> Iterator[Moved]:
    yield from _lora("4 rows, 4 adapters of rank 32", [[(n, 1.0)] for n in range(4)], Family.ROWS)
    yield from _lora("4 rows, 1 adapter of rank 32", [[(0, 1.0)]] * 4, Family.ROWS)
    yield from _lora("64 rows, 1 adapter of rank 32", [[(0, 1.0)]] * 64, Family.TILES)
    composed = [[(0, 1.0), (1, 1.0)]]
    yield from _lora("2 rows on 2 adapters each", composed * 2, Family.ROWS)
    yield from _lora("64 rows on 2 adapters each", composed * 64, Family.TILES)
    yield from _others()


def _lora(batch: str, uses: list[list[tuple[int, float]]], family: Family) -> Iterator[Moved]:
    slots, rows = len({slot for pairs in uses for slot, _ in pairs}), len(uses)
    arena, site = _adapters(slots)
    segments = group(uses)
    assert segments is not None
    device = Device(num_processors=1)
    x, y = torch.randn(rows, IN).bfloat16(), torch.zeros(rows, OUT, dtype=torch.bfloat16)
    with installed(device), _chosen(family):
        s = kernels.cuda.shrink(x, arena, site, segments, max_rank=RANK)
        kernels.cuda.expand(s, arena, site, segments, y)
    s_bytes = s.shape[0] * segments.num_entries * RANK * 4
    yield _moved(device, 0, batch, (slots * RANK * IN + rows * IN) * 2 + s_bytes)
    yield _moved(device, 1, batch, (slots * RANK * OUT + 2 * rows * OUT) * 2 + s_bytes)


def _others() -> Iterator[Moved]:
    """Ops of one launch: a row of tokens, of vectors, of keys and values for each of four."""
    uses = [[(0, 1.0)]] * 4
    segments = group(uses)
    assert segments is not None
    arena, site = _adapters(1)
    affine = Affine((0, OUT), torch.tensor([[3]], dtype=torch.int32), torch.tensor([[8]]))
    y = torch.zeros(4, OUT, dtype=torch.bfloat16)
    k, v = torch.randn(2, 4, 8, 64).bfloat16()
    caches = torch.zeros(2, 2, 16, 8, 64, dtype=torch.bfloat16)
    device = Device(num_processors=1)
    with installed(device):
        kernels.cuda.look_up(torch.tensor([5, 900, 70, 1300]), arena, site, segments, max_rank=RANK)
        kernels.cuda.rescale(y, arena, affine, segments)
        kernels.cuda.write_kv(k, v, caches[0], caches[1], torch.tensor([3, 9, 20, 31]))
    yield _moved(device, 0, "4 tokens at rank 32", 4 * RANK * (32 + 4))  # a sector for each number of A
    yield _moved(device, 1, "4 rows with a gain and a shift", 2 * 4 * OUT * 2 + 2 * OUT * 4)
    yield _moved(device, 2, "4 positions of 8 heads of 64", 4 * k.numel() * 2)


def _moved(device: Device, index: int, batch: str, floor_bytes: int) -> Moved:
    launch = device.launches[index]
    traffic = launch.traffic
    touched = sum(traffic.bytes_read.values()) + sum(traffic.bytes_written.values())
    return Moved(launch.name, batch, floor_bytes, touched, traffic.global_sectors * 32)


def _launches_of_a_layer() -> int:
    arena, site = _adapters(1)
    segments = group([[(0, 1.0)]])
    assert segments is not None
    device = Device()
    with installed(device):
        for _ in range(NUM_SITES):
            _one_site(arena, site, segments)
    return len(device.launches)


def _one_site(arena: torch.Tensor, site: Site, segments: Segments) -> None:
    x, y = torch.zeros(1, IN, dtype=torch.bfloat16), torch.zeros(1, OUT, dtype=torch.bfloat16)
    s = kernels.cuda.shrink(x, arena, site, segments, max_rank=RANK)
    kernels.cuda.expand(s, arena, site, segments, y)


def _adapters(slots: int) -> tuple[torch.Tensor, Site]:
    size = RANK * (IN + OUT)
    starts = torch.arange(slots) * size
    site = Site(
        in_features=IN,
        columns=(0, OUT),
        a_start=starts,
        ranks=torch.full((slots, 1), RANK, dtype=torch.int32),
        b_start=(starts + RANK * IN)[:, None].contiguous(),
        scales=torch.ones(slots, 1),
    )
    return torch.randn(slots * size).bfloat16(), site


@contextmanager
def _chosen(family: Family) -> Iterator[None]:
    """Gives every batch inside to one family."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.cuda, "choose", lambda *_: family)
        yield


if __name__ == "__main__":
    main()
