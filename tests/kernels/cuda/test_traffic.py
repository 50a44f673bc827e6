"""What the kernels move, against the floors that the heads of rows.cu and tiles.cu state.

Counted in simulation, in sectors of 32 bytes per warp and instruction: what caches are asked for, of which memory sees
the touched bytes once. Nothing here is a time.
"""

from __future__ import annotations

import pytest
import torch

import kernels.cuda
from kernels.cuda.families import Family

SLACK = 1.10
IN, RANK, OUT = 2048, 32, 512

# Arguments by place, as the launches pass them.
SHRINK_X, SHRINK_ARENA, SHRINK_S = 0, 2, 10
EXPAND_S, EXPAND_ARENA = 0, 1


def expand_y(name: str) -> int:
    return 15 if name == "expand_composed" else 14


def run_batch(run_lora, make_adapters, device, monkeypatch, family: Family, counts: tuple[int, ...]):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: family)
    device.num_processors = 1
    adapters = make_adapters([(RANK,)] * len(counts), IN, (OUT,), torch.bfloat16, gap=16)  # whole sectors
    outcome = run_lora(adapters, [[(slot, 1.0)] for slot, count in enumerate(counts) for _ in range(count)], pad=16)
    return outcome.s.shape[0]


def asked(device, name: str, argument: int) -> int:
    return device.traffic(name).sectors_read[f"{name}.{argument}"] * 32


@pytest.mark.parametrize("counts", [(1, 1), (4,), (6, 1)], ids=["distinct", "one unit", "two units and one"])
def test_streaming_reads_a_weight_once_per_four_rows(counts, run_lora, make_adapters, device, monkeypatch):
    slices = run_batch(run_lora, make_adapters, device, monkeypatch, Family.ROWS, counts)
    units, rows = sum(-(-count // 4) for count in counts), sum(counts)
    a, b = units * RANK * IN * 2, units * RANK * OUT * 2
    assert a <= asked(device, "shrink_rows", SHRINK_ARENA) <= SLACK * a
    assert b <= asked(device, "expand_rows", EXPAND_ARENA) <= SLACK * b
    x = rows * IN * 2 * (RANK // 16)
    assert x <= asked(device, "shrink_rows", SHRINK_X) <= SLACK * x
    s = rows * slices * RANK * 4
    assert device.traffic("shrink_rows").bytes_written[f"shrink_rows.{SHRINK_S}"] <= SLACK * s
    assert asked(device, "expand_rows", EXPAND_S) <= SLACK * s * (OUT // 256)
    y = rows * OUT * 2
    assert y <= asked(device, "expand_rows", expand_y("expand_rows")) <= SLACK * y + 32 * rows * (OUT // 256)


@pytest.mark.parametrize("counts", [(64,), (70, 3)], ids=["one unit", "three units"])
def test_tiles_read_a_weight_once_per_sixty_four_rows(counts, run_lora, make_adapters, device, monkeypatch):
    slices = run_batch(run_lora, make_adapters, device, monkeypatch, Family.TILES, counts)
    units, rows = {(64,): 1, (70, 3): 3}[counts], sum(counts)
    a, b = units * RANK * IN * 2, units * RANK * OUT * 2
    assert a <= asked(device, "shrink_tiles", SHRINK_ARENA) <= SLACK * a
    assert b <= asked(device, "expand_tiles", EXPAND_ARENA) <= SLACK * b
    x = rows * IN * 2
    assert x <= asked(device, "shrink_tiles", SHRINK_X) <= SLACK * x
    s = rows * slices * RANK * 4
    assert device.traffic("shrink_tiles").bytes_written[f"shrink_tiles.{SHRINK_S}"] <= SLACK * s
    y = rows * OUT * 2
    assert y <= asked(device, "expand_tiles", expand_y("expand_tiles")) <= SLACK * y + 32 * rows * (OUT // 64)


@pytest.mark.parametrize(("family", "counts"), [(Family.ROWS, (1, 1, 1)), (Family.TILES, (64, 9))])
def test_memory_sees_little_but_the_floor(family, counts, run_lora, make_adapters, device, monkeypatch):
    slices = run_batch(run_lora, make_adapters, device, monkeypatch, family, counts)
    rows = sum(counts)
    s = slices * rows * RANK * 4
    floors = {
        f"shrink_{family.value}": (len(counts) * RANK * IN + rows * IN) * 2 + s,
        f"expand_{family.value}": (len(counts) * RANK * OUT + 2 * rows * OUT) * 2 + s,
    }
    for name, floor in floors.items():
        traffic = device.traffic(name)
        touched = sum(traffic.bytes_read.values()) + sum(traffic.bytes_written.values())
        assert floor <= touched <= SLACK * floor, name


def test_the_adapters_of_a_batch_are_all_that_is_read(run_lora, make_adapters, device, monkeypatch):
    monkeypatch.setattr(kernels.cuda, "choose", lambda *_: Family.ROWS)
    adapters = make_adapters([(RANK,), (64,), (RANK,)], 512, (256,), torch.bfloat16)
    run_lora(adapters, [[(0, 1.0)], [(2, 1.0)]])
    read = device.traffic("shrink_rows").bytes_read[f"shrink_rows.{SHRINK_ARENA}"]
    assert read <= 2 * RANK * 512 * 2 + 4 * 32


def test_shared_memory_meets_few_bank_conflicts(run_lora, make_adapters, device, monkeypatch):
    """16 bytes for each lane take four wavefronts; rows of matrices are padded so that none takes more."""
    run_batch(run_lora, make_adapters, device, monkeypatch, Family.TILES, (64,))
    traffic = device.traffic("shrink_tiles")
    assert traffic.shared_wavefronts <= 4 * traffic.shared_requests
