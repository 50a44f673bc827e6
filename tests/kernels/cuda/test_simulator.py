"""The simulator itself: wrong kernels must be refused, right ones must give known results."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.cuda.simulator import nvrtc
from tests.kernels.cuda.simulator.memory import Buffer
from tests.kernels.cuda.simulator.ptx import PtxError
from tests.kernels.cuda.simulator.simulator import Simulator

HEADERS = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n"
ARCHITECTURES = ("compute_80", "compute_90", "compute_100")

REFUSED = {
    "race between blocks": ("if (threadIdx.x == 0) o[0] += 1.f;", 4, "data race on global"),
    "race inside a block": (
        "__shared__ float s[64]; s[threadIdx.x] = 1.f; o[threadIdx.x] = s[63 - threadIdx.x];",
        1,
        "data race on shared",
    ),
    "race inside a warp": (
        "__shared__ float s[32]; if (threadIdx.x < 32) { s[threadIdx.x] = 1.f; o[threadIdx.x] = s[31 - threadIdx.x]; }",
        1,
        "data race on shared",
    ),
    "read before another's write": (
        "float v = o[(threadIdx.x + 1) % 64]; if (v < 9.f) o[threadIdx.x] = v + 1.f;",
        1,
        "write after an unordered read",
    ),
    "two threads, one address": ("o[threadIdx.x / 2] = threadIdx.x;", 1, "two threads write"),
    "write after read": (
        "__shared__ float s[64]; s[threadIdx.x] = 1.f; __syncthreads(); float v = s[(threadIdx.x + 1) % 64];"
        "s[threadIdx.x] = v + 1.f; __syncthreads(); o[threadIdx.x] = s[threadIdx.x];",
        1,
        "unordered read",
    ),
    "unwritten shared": (
        "__shared__ float s[64]; if (threadIdx.x) s[threadIdx.x] = 1.f; __syncthreads();"
        "o[threadIdx.x] = s[threadIdx.x];",
        1,
        "nothing has written",
    ),
    "past the end": ("o[threadIdx.x + 1] = 1.f;", 1, "outside every buffer"),
    "before the beginning": ("o[(int)threadIdx.x - 1] = 1.f;", 1, "outside every buffer"),
    "misaligned vector": (
        "float4 v = *(float4*)(o + 1); *(float4*)(o + 4 * (threadIdx.x % 8)) = make_float4(v.y, v.z, v.w, v.x);",
        1,
        "misaligned 16-byte",
    ),
    "half a warp at a shuffle": (
        "float v = 1.f; if (threadIdx.x & 1) v = __shfl_xor_sync(~0u, v, 1); o[threadIdx.x] = v;",
        1,
        "deadlock",
    ),
    "barrier in one branch": (
        "if (threadIdx.x < 32) { __syncthreads(); o[threadIdx.x] = 1.f; __syncthreads(); }"
        "else { __syncthreads(); while (o[63] != 5.f && o[0] < 9.f) { __syncthreads(); break; } }",
        1,
        "divergent",
    ),
    "a copy not waited for": (
        "__shared__ __align__(16) float s[256];"
        'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"((unsigned)__cvta_generic_to_shared('
        's + 4 * threadIdx.x)), "l"(o + 4 * (threadIdx.x % 16))); o[threadIdx.x] = s[4 * threadIdx.x];',
        1,
        "nothing has written",
    ),
    "unknown instruction": ('asm volatile("nanosleep.u32 20;"); o[0] = 1.f;', 1, "does not know"),
    "too much shared memory": ("__shared__ float s[64]; s[threadIdx.x] = 1.f; o[threadIdx.x] = s[70];", 1, "outside"),
}


def launch(body: str, signature: str, *arguments, grid=(1,), block=(64,), architecture="compute_90"):
    """Compiles and runs one kernel over numpy arrays and scalars."""
    source = f'{HEADERS}extern "C" __global__ void k({signature}) {{ {body} }}'
    ptx = nvrtc.compile_ptx(source, architecture, ("-std=c++17",))
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    buffers = [Buffer(f"a{i}", a.ctypes.data, a.reshape(-1).view(np.uint8)) for i, a in enumerate(arrays)]
    packed = [np.int64(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
    return Simulator(ptx).launch("k", grid, block, packed, buffers)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_kernel_is_refused(name):
    body, blocks, message = REFUSED[name]
    with pytest.raises(PtxError, match=message):
        launch(body, "float* o", zeros(64), grid=(blocks,))


def test_an_argument_of_another_width_is_refused():
    with pytest.raises(PtxError, match=r"4 bytes.*found int64"):
        launch("o[threadIdx.x] = n;", "float* o, int n", zeros(64), np.int64(1))


def test_a_missing_argument_is_refused():
    with pytest.raises(PtxError, match="takes 2 arguments, found 1"):
        launch("o[threadIdx.x] = n;", "float* o, int n", zeros(64))


@pytest.mark.parametrize("grid", [(0,), (1, 65536)])
def test_an_impossible_grid_is_refused(grid):
    with pytest.raises(PtxError, match="invalid grid"):
        launch("o[threadIdx.x] = 1.f;", "float* o", zeros(64), grid=grid)


def test_atomic_additions_are_no_races():
    total = zeros(1)
    launch("atomicAdd(o, 1.f);", "float* o", total, grid=(4,))
    assert total[0] == 256


def test_a_block_sums_by_shuffles_and_shared_memory():
    x, total = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32), zeros(3)
    launch(
        "__shared__ float s[4]; float v = x[blockIdx.x * 128 + threadIdx.x];"
        "for (int m = 16; m; m >>= 1) v += __shfl_down_sync(~0u, v, m);"
        "if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v; __syncthreads();"
        "if (threadIdx.x == 0) o[blockIdx.x] = s[0] + s[1] + s[2] + s[3];",
        "const float* x, float* o",
        x,
        total,
        grid=(3,),
        block=(128,),
    )
    np.testing.assert_allclose(total, x.sum(axis=1), rtol=1e-5, atol=1e-5)


def test_what_a_warp_asks_for_is_counted_in_sectors():
    x, out = zeros(256), zeros(64)
    dense = launch("o[threadIdx.x] = x[threadIdx.x];", "const float* x, float* o", x, out)
    strided = launch("o[threadIdx.x] = x[4 * threadIdx.x];", "const float* x, float* o", x, out)
    assert strided.global_sectors - dense.global_sectors == 64 * 16 // 32 - 64 * 4 // 32


def test_a_field_of_bits_is_inserted():
    out = np.zeros(64, np.uint32)
    launch('asm("bfi.b32 %0, %1, %2, 4, 8;" : "=r"(o[threadIdx.x]) : "r"(0x1ab), "r"(~0u));', "unsigned* o", out)
    assert (out == 0xFFFFFABF).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_torchs(architecture):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, generator=generator), torch.randn(64, generator=generator).bfloat16()
    out = np.zeros((5, 64), np.uint16)
    launch(
        "int i = threadIdx.x; __nv_bfloat16 p = __float2bfloat16(x[i]); o[i] = p; o[64 + i] = __hadd(p, y[i]);"
        "o[128 + i] = __hmul(p, y[i]); __nv_bfloat162 q = __floats2bfloat162_rn(x[i], __bfloat162float(y[i]));"
        "o[192 + i] = q.x; o[256 + i] = __hmul2(q, q).y;",
        "const float* x, const __nv_bfloat16* y, __nv_bfloat16* o",
        a.numpy(),
        b.view(torch.int16).numpy(),
        out,
        architecture=architecture,
    )
    rounded = a.bfloat16()
    for actual, expected in zip(out, (rounded, rounded + b, rounded * b, rounded, b * b), strict=True):
        np.testing.assert_array_equal(actual, expected.view(torch.int16).numpy().view(np.uint16))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16_is_numpys(architecture):
    x, out = np.random.default_rng(0).standard_normal(64).astype(np.float32), np.zeros((2, 64), np.float16)
    launch(
        "int i = threadIdx.x; __half p = __float2half(x[i]); o[i] = p; o[64 + i] = __hfma(p, p, p);",
        "const float* x, __half* o",
        x,
        out,
        architecture=architecture,
    )
    half = x.astype(np.float16)
    np.testing.assert_array_equal(out[0], half)
    np.testing.assert_array_equal(out[1], (half.astype(np.float64) * half + half).astype(np.float16))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_fragments_lie_as_cutlass_says(kind):
    """CUTLASS, mma_traits_sm80.hpp, 16x8x16: (thread, value) to a column-major index, stated independently of PTX."""

    def place(shape: tuple[int, ...], stride: tuple[int, ...], index: int) -> int:
        total = 0
        for size, step in zip(shape, stride, strict=True):
            total += index % size * step
            index //= size
        return total

    def coordinates(thread: int, value: int, threads: tuple[int, int], values: tuple[int, ...], rows: int):
        column, row = divmod(place((4, 8), threads, thread) + place((2,) * len(values), values, value), rows)
        return row, column

    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)).astype(np.float32), rng.integers(-4, 5, (8, 16)).astype(np.float32)

    def bits(value: np.float32) -> int:
        return int(np.float16(value).view(np.uint16)) if kind == "f16" else int(value.view(np.uint32)) >> 16

    a_bits, b_bits, out = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), zeros(32, 4)
    for thread in range(32):
        for value in range(8):
            at = coordinates(thread, value, (32, 1), (16, 8, 128), 16)
            a_bits[thread, value // 2] |= np.uint32(bits(a[at]) << (16 * (value % 2)))
        for value in range(4):
            at = coordinates(thread, value, (16, 1), (8, 64), 8)
            b_bits[thread, value // 2] |= np.uint32(bits(b[at]) << (16 * (value % 2)))
    launch(
        "int l = threadIdx.x; float c[4] = {0, 0, 0, 0};"
        f'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32'
        ' {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"'
        ' : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[l * 4]), "r"(a[l * 4 + 1]), "r"(a[l * 4 + 2]),'
        ' "r"(a[l * 4 + 3]), "r"(b[l * 2]), "r"(b[l * 2 + 1])); for (int i = 0; i < 4; i++) o[l * 4 + i] = c[i];',
        "const unsigned* a, const unsigned* b, float* o",
        a_bits,
        b_bits,
        out,
        block=(32,),
    )
    product = a @ b.T
    for thread in range(32):
        for value in range(4):
            assert out[thread, value] == product[coordinates(thread, value, (32, 1), (16, 8), 16)]
