"""Launching: what is refused, on which stream kernels go, what is compiled when, and which family a batch gets."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import kernels.cuda
from bench import kernels_gpu, kernels_static
from kernels import UnsupportedDevice, UnsupportedTensor, group
from kernels.cuda import module
from kernels.cuda.families import MAX_SLICES, Family, choose, slice_length
from kernels.cuda.module import Facts, Kernel
from tests.kernels.cuda.simulator.device import Device, Stream, installed
from tests.kernels.cuda.simulator.ptx import PtxError

BF16, CPU = torch.bfloat16, torch.device("cpu")
USES = [[(0, 1.0)], [(0, 1.0)]]


def facts(capability: int = 90, num_processors: int = 132) -> Facts:
    return Facts("a device", capability, num_processors)


@pytest.fixture
def no_cupy(monkeypatch):
    module.require_cupy.cache_clear()
    module.facts.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_a_machine_without_cupy_is_told_what_to_install(no_cupy):
    with pytest.raises(UnsupportedDevice, match=r"expected CuPy for a CUDA device \(pip install 'loraplex\[gpu\]'\)"):
        kernels.warm_up("cuda", [BF16])


def test_a_machine_without_a_driver_is_told_so(device):
    device.is_available = False
    with pytest.raises(UnsupportedDevice, match="expected an NVIDIA driver and a device"):
        kernels.warm_up("cuda", [BF16])


def test_a_device_before_sm_80_is_refused():
    with (
        installed(Device(architecture="compute_75")),
        pytest.raises(UnsupportedDevice, match="expected a device of sm_80"),
    ):
        kernels.cuda.warm_up(BF16, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dtype_that_no_kernel_computes_with_is_refused(dtype, device, make_adapters):
    adapters = make_adapters([(8,)], 64, (64,), torch.float32)
    arena = adapters.arena.to(dtype)
    with pytest.raises(UnsupportedTensor, match=r"expected torch\.bfloat16 or torch\.float16 on a CUDA device"):
        kernels.cuda.shrink(torch.zeros(2, 64).to(dtype), arena, adapters.site, group(USES), max_rank=8)


@pytest.mark.parametrize(("in_features", "width"), [(60, 64), (64, 60)])
def test_a_width_that_is_no_multiple_of_eight_is_refused(in_features, width, device, make_adapters):
    adapters = make_adapters([(8,)], in_features, (width,), BF16)
    x = torch.zeros(2, in_features, dtype=BF16)
    with pytest.raises(UnsupportedTensor, match="expected widths that are multiples of 8, found 60"):
        kernels.cuda.shrink(x, adapters.arena, adapters.site, group(USES), max_rank=8)


def test_a_rank_over_the_compiled_limit_is_refused(device, make_adapters):
    adapters = make_adapters([(8,)], 64, (64,), BF16)
    x = torch.zeros(2, 64, dtype=BF16)
    with pytest.raises(UnsupportedTensor, match="expected ranks of at most 1536 at a site, found 1537"):
        kernels.cuda.shrink(x, adapters.arena, adapters.site, group(USES), max_rank=1537)


def test_a_site_of_four_parts_is_refused(device, make_adapters):
    adapters = make_adapters([(8, 8, 8, 8)], 64, (8, 8, 8, 8), BF16)
    x = torch.zeros(2, 64, dtype=BF16)
    with pytest.raises(UnsupportedTensor, match="expected at most 3 parts, found 4"):
        kernels.cuda.shrink(x, adapters.arena, adapters.site, group(USES), max_rank=32)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 8), torch.zeros(1, 3, 8), torch.zeros(1, 2, 8, dtype=BF16)])
def test_expand_takes_only_what_shrink_returns(wrong, device, make_adapters):
    adapters = make_adapters([(8,)], 64, (64,), BF16)
    with pytest.raises(UnsupportedTensor, match="expected s of dense float32 slices of 2 entries"):
        kernels.cuda.expand(wrong, adapters.arena, adapters.site, group(USES), torch.zeros(2, 64, dtype=BF16))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 72, dtype=BF16)[:, 1:65],
        torch.zeros(2, 68, dtype=BF16)[:, :64],
        torch.zeros(2, 128, dtype=BF16)[:, ::2],
        torch.zeros(2, 56, dtype=BF16),
        torch.zeros(2, 64, dtype=torch.float16),
    ],
    ids=["begin", "stride", "gaps", "width", "dtype"],
)
def test_rows_that_are_not_dense_and_aligned_are_refused(x, device, make_adapters):
    adapters = make_adapters([(8,)], 64, (64,), BF16)
    with pytest.raises(UnsupportedTensor, match="each aligned to 16 bytes"):
        kernels.cuda.shrink(x, adapters.arena, adapters.site, group(USES), max_rank=8)


def test_a_launch_goes_to_the_stream_that_torch_uses_at_that_moment(device, make_adapters, run_lora):
    adapters = make_adapters([(8,)], 64, (64,), BF16)
    run_lora(adapters, USES)
    device.stream = Stream(11)
    run_lora(adapters, USES)
    assert [launch.stream for launch in device.launches] == [7, 7, 11, 11]


def test_a_site_takes_two_launches_whatever_its_parts(device, make_adapters, run_lora):
    run_lora(make_adapters([(8, 4, 2), (3, 3, 3)], 64, (64, 16, 16), BF16), [[(0, 1.0)], [(1, 1.0)]])
    assert [launch.name for launch in device.launches] == ["shrink_rows", "expand_rows"]


def test_everything_is_compiled_before_the_first_launch_and_once(device, monkeypatch):
    compiled = []
    cupy = sys.modules["cupy"]
    raw_module = cupy.RawModule
    monkeypatch.setattr(cupy, "RawModule", lambda **how: compiled.append(how["options"]) or raw_module(**how))
    kernels.cuda.warm_up(BF16, "cpu")
    assert len(compiled) == len({kernel.file for kernel in kernels.cuda.KERNELS})
    kernels.cuda.warm_up(BF16, "cpu")
    assert len(compiled) == len({kernel.file for kernel in kernels.cuda.KERNELS})
    kernels.cuda.warm_up(torch.float16, "cpu")
    assert {options[-1] for options in compiled} == {"-DELEMENT=1", "-DELEMENT=2"}


def test_a_plain_number_is_no_argument(device):
    """CuPy would send it as 8 bytes; the kernel wants 4."""
    index = torch.zeros(1, dtype=torch.int64)
    tensors = (torch.zeros(8),) * 4
    with pytest.raises(PtxError, match=r"\.u32 \(4 bytes\), found int64"):
        module.launch(
            Kernel("cache.cu", "write_kv"),
            (*tensors, index, np.int64(1), np.int64(1), 1),  # type: ignore[arg-type]
            grid=(1, 2),
            num_threads=128,
            dtype=BF16,
            device=CPU,
        )


def test_a_grid_without_blocks_is_nothing_to_do(device):
    module.launch(Kernel("cache.cu", "write_kv"), (), grid=(0, 2), num_threads=128, dtype=BF16, device=CPU)
    assert device.launches == []


def test_a_grid_that_cuda_would_refuse_is_refused_by_name(device):
    with pytest.raises(UnsupportedTensor, match=r"at most 65535 blocks.*\(1, 65536\)"):
        module.launch(Kernel("cache.cu", "write_kv"), (), grid=(1, 65536), num_threads=128, dtype=BF16, device=CPU)


@pytest.mark.parametrize(
    ("entries", "segments", "capability", "expected"),
    [
        (1, 1, 90, Family.ROWS),
        (32, 32, 90, Family.ROWS),
        (8, 1, 90, Family.ROWS),
        (9, 1, 90, Family.TILES),
        (8, 1, 80, Family.TILES),
        (5, 1, 120, Family.TILES),
        (512, 4, 100, Family.TILES),
        (64, 16, 80, Family.ROWS),
    ],
)
def test_the_family_follows_the_rows_of_a_segment(entries, segments, capability, expected):
    assert choose(entries, segments, facts(capability)) is expected


@pytest.mark.parametrize("width", [8, 256, 576, 1536, 4096, 14336])
@pytest.mark.parametrize("num_blocks", [1, 12, 300, 10_000])
@pytest.mark.parametrize("step", [64, 256])
def test_slices_cover_the_width_and_are_bounded(width, num_blocks, step):
    length = slice_length(width, num_blocks=num_blocks, step=step, facts=facts())
    slices = -(-width // length)
    assert length % step == 0
    assert 1 <= slices <= MAX_SLICES
    assert (slices - 1) * length < width


def test_few_blocks_are_cut_into_slices_and_many_are_not():
    assert slice_length(4096, num_blocks=3, step=256, facts=facts()) == 256
    assert slice_length(4096, num_blocks=528, step=256, facts=facts()) == 4096


def test_a_layer_is_eight_launches_and_its_small_ops_move_little_but_the_floor():
    """What `python -m bench.kernels_static` reports without a GPU."""
    assert kernels_static._launches_of_a_layer() == 8
    for moved in kernels_static._others():
        assert moved.floor_bytes <= moved.memory_bytes <= 1.1 * moved.floor_bytes, moved


def test_the_benchmark_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedDevice, match="expected an NVIDIA GPU and torch's CUDA build, found neither"):
        kernels_gpu.main()
