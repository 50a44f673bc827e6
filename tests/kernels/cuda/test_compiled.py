"""The gate: kernels compile for every architecture, within their limits, to the instructions they were written for."""

from __future__ import annotations

import functools
import re
from collections import Counter

import pytest
import torch

import kernels.cuda
from kernels.cuda import source
from kernels.cuda.families import Family
from tests.kernels.cuda.simulator import nvrtc
from tests.kernels.cuda.simulator.device import CUPY_OPTIONS
from tests.kernels.cuda.simulator.occupancy import blocks_per_processor

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
DTYPES = (torch.bfloat16, torch.float16)

# Three stages of a pipeline take their memory, a loop over slots its registers; the others want latency hidden.
MIN_BLOCKS = {"shrink_tiles": 3, "expand_groups": 5}
MIN_BLOCKS_ELSE = 6
STAGED_BYTES = {"shrink_rows": 4 * 2048 * 2, "expand_rows": 4 * 64 * 4, "expand_composed": 64 * 4}

EXPECTED = {
    "shrink_rows": ("LDG.E.128", "LDS.128", "SHFL.BFLY"),
    "expand_rows": ("LDG.E.128", "STG.E.128"),
    "expand_composed": ("LDG.E.128", "STG.E.128"),
    "shrink_tiles": ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS"),
    "expand_tiles": ("HMMA.16816.F32", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS", "STG.E.128"),
    "expand_groups": ("HMMA.16816.F32", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS", "STG.E.128"),
    "look_up": ("LDG.E.U16",),
    "rescale": ("LDG.E.128", "STG.E.128"),
    "write_kv": ("LDG.E.128", "STG.E.128"),
}


@pytest.fixture(params=DTYPES, ids=["bf16", "f16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@functools.cache
def compile_all(architecture: str, dtype: torch.dtype) -> tuple[dict[str, nvrtc.Resources], dict[str, Counter[str]]]:
    resources, instructions = {}, {}
    for file in sorted({kernel.file for kernel in kernels.cuda.KERNELS}):
        options = (*source.options(dtype), *CUPY_OPTIONS)
        cubin, found = nvrtc.compile_cubin(source.flatten(file), architecture, options, name=file)
        resources.update(found)
        instructions.update(nvrtc.sass(cubin))
    return resources, instructions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_within_their_limits(architecture, dtype):
    resources, instructions = compile_all(architecture, dtype)
    assert set(resources) == set(instructions) == {kernel.name for kernel in kernels.cuda.KERNELS}
    for name, used in resources.items():
        assert used.spill_stores == used.spill_loads == used.stack == 0, (name, used)
        blocks = blocks_per_processor(
            used,
            num_threads=kernels.cuda.NUM_THREADS,
            capability=int(architecture.removeprefix("sm_")),
            dynamic_shared_bytes=STAGED_BYTES.get(name, 0),
        )
        assert blocks >= MIN_BLOCKS.get(name, MIN_BLOCKS_ELSE), (name, used, blocks)
        for expected in EXPECTED[name]:
            assert any(found.startswith(expected) for found in instructions[name]), (name, expected, instructions[name])
        for found in instructions[name]:
            assert not found.startswith(("LDL", "STL")), f"{name} uses local memory: {found}"
            assert not found.startswith(("ATOM", "RED")), f"{name} adds in no fixed order: {found}"


def test_weights_are_loaded_four_vectors_at_a_time(dtype):
    """Past the first cache, 16 bytes each, as many as a warp has rank rows under way."""
    _, instructions = compile_all("sm_90", dtype)
    for name in ("shrink_rows", "expand_rows", "expand_composed"):
        streamed = {
            found: count for found, count in instructions[name].items() if re.match(r"LDG\.E\.(NA\.)?128", found)
        }
        assert sum(streamed.values()) >= 4, (name, instructions[name])


def test_the_launches_know_the_sizes_that_the_kernels_were_written_with():
    def constants(file: str) -> dict[str, int]:
        text = (source.FOLDER / file).read_text()
        return {name: int(value) for name, value in re.findall(r"^constexpr int (\w+) = (\d+);", text, re.MULTILINE)}

    rows, tiles = constants("rows.cu"), constants("tiles.cu")
    assert {Family.ROWS: rows["ROWS"], Family.TILES: tiles["ROWS"]} == kernels.cuda.UNIT_ROWS
    assert {Family.ROWS: rows["WARPS"] * rows["RANKS"], Family.TILES: tiles["RANKS"]} == kernels.cuda.UNIT_RANKS
    assert {Family.ROWS: 32 * 8, Family.TILES: tiles["TILE"]} == kernels.cuda.TILE_COLUMNS
    assert {Family.ROWS: 32 * 8, Family.TILES: tiles["DEPTH"]} == kernels.cuda.SLICE_STEP
    assert constants("affine.cu")["THREADS"] * 8 == kernels.cuda.RESCALE_COLUMNS
    assert constants("site.cuh")["MAX_PARTS"] == kernels.cuda.MAX_PARTS
    assert rows["WARPS"] * 32 == tiles["THREADS"] == kernels.cuda.NUM_THREADS


def test_a_header_is_pasted_once_and_lines_keep_their_numbers(tmp_path):
    (tmp_path / "a.cuh").write_text("#pragma once\nint a;\n")
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "a.cuh"\nint b;\n')
    (tmp_path / "c.cu").write_text('#include "a.cuh"\n#include "b.cuh"\nint c;\n')
    text = source.flatten("c.cu", tmp_path)
    assert text.count("int a;") == 1
    assert "#include" not in text
    assert text.splitlines()[-2:] == ['#line 3 "c.cu"', "int c;"]
