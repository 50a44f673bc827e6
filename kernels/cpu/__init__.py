"""The ops on a CPU: compiled by numba for the machine at hand, in bfloat16 and float32, on torch's own threads.

`warm_up` compiles, or loads, everything at once; without it the first call does. Tensors become addresses here: what
compiled code would misread (another dtype, a row that is not dense) is refused before. The tables of a site and the
indices of a batch are trusted, as no one but their owner writes them.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu.compiled import native_ops
from kernels.cpu.native import NativeFunction
from kernels.errors import UnsupportedTensor
from kernels.segments import Segments
from kernels.site import Affine, Site

# An element that is read, changed and written costs about as much as this many multiply-adds.
STREAMED = 4


def warm_up(dtype: torch.dtype) -> None:
    """Makes every op ready for one dtype: 10 seconds on a new machine, under half a second from numba's cache."""
    native_ops(dtype)


def shrink(x: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """kernels.reference.shrink."""
    _check_rows("x", x, dtype=arena.dtype, width=site.in_features)
    s = torch.empty(segments.num_entries, max_rank, dtype=torch.float32)
    native_ops(x.dtype).shrink.run(
        x.data_ptr(),
        arena.data_ptr(),
        s.data_ptr(),
        segments.rows.data_ptr(),
        segments.starts.data_ptr(),
        segments.slots.data_ptr(),
        site.a_start.data_ptr(),
        site.ranks.data_ptr(),
        segments.slots.shape[0],
        len(site.columns) - 1,
        site.in_features,
        x.stride(0),
        max_rank,
        work=s.numel() * site.in_features,
    )
    return s


def expand(s: Tensor, arena: Tensor, site: Site, segments: Segments, y: Tensor) -> None:
    """kernels.reference.expand."""
    _check_rows("y", y, dtype=arena.dtype, width=site.columns[-1])
    if not segments.is_composed:
        _run_expand(native_ops(arena.dtype).expand, s, arena, site=site, segments=segments, y=y)
    elif y.dtype == torch.float32:
        _run_expand(native_ops(arena.dtype).compose, s, arena, site=site, segments=segments, y=y)
    else:
        total = y.float()
        _run_expand(native_ops(arena.dtype).compose, s, arena, site=site, segments=segments, y=total)
        touched = segments.rows.long()
        y[touched] = total[touched].to(y.dtype)


def look_up(token_ids: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """kernels.reference.look_up."""
    if token_ids.dtype != torch.int64 or token_ids.dim() != 1 or not token_ids.is_contiguous():
        raise UnsupportedTensor(f"expected dense int64 token_ids, found {token_ids.dtype} {tuple(token_ids.shape)}")
    s = torch.empty(segments.num_entries, max_rank, dtype=torch.float32)
    native_ops(arena.dtype).look_up.run(
        token_ids.data_ptr(),
        arena.data_ptr(),
        s.data_ptr(),
        segments.rows.data_ptr(),
        segments.segment_of.data_ptr(),
        segments.slots.data_ptr(),
        site.a_start.data_ptr(),
        site.ranks.data_ptr(),
        segments.num_entries,
        len(site.columns) - 1,
        site.in_features,
        max_rank,
        work=s.numel() * STREAMED,
    )
    return s


def rescale(y: Tensor, arena: Tensor, affine: Affine, segments: Segments) -> None:
    """kernels.reference.rescale."""
    _check_rows("y", y, dtype=arena.dtype, width=affine.columns[-1])
    native_ops(y.dtype).rescale.run(
        y.data_ptr(),
        arena.data_ptr(),
        segments.rows.data_ptr(),
        segments.weights.data_ptr(),
        segments.starts.data_ptr(),
        segments.slots.data_ptr(),
        affine.kinds.data_ptr(),
        affine.starts.data_ptr(),
        ctypes.addressof(_words(affine.columns)),
        segments.slots.shape[0],
        len(affine.columns) - 1,
        y.stride(0),
        work=segments.num_entries * affine.columns[-1] * STREAMED,
    )


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """kernels.reference.write_kv."""
    width = k_cache.shape[2] * k_cache.shape[3]
    per_word = 8 // k.element_size()
    if (width | k.stride(0) | v.stride(0)) % per_word:
        reference.write_kv(k, v, k_cache, v_cache, index)
        return
    _check_heads("k", k, k_cache)
    _check_heads("v", v, v_cache)
    native_ops(k.dtype).write_kv.run(
        k.data_ptr(),
        v.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        index.data_ptr(),
        k.shape[0],
        width // per_word,
        k.stride(0) // per_word,
        v.stride(0) // per_word,
        work=k.shape[0] * width * STREAMED,
    )


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """kernels.reference.attend, which also serves the head sizes that are no multiple of 16."""
    num_rows, num_heads, size = q.shape
    if size % 16:
        return reference.attend(
            q,
            k_cache,
            v_cache,
            query_starts=query_starts,
            context_lens=context_lens,
            block_tables=block_tables,
            scale=scale,
            window=window,
        )
    _check_heads("q", q, k_cache)
    out = torch.empty(num_rows, num_heads, size, dtype=q.dtype)
    native_ops(q.dtype).attend.run(
        q.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        out.data_ptr(),
        query_starts.data_ptr(),
        context_lens.data_ptr(),
        block_tables.data_ptr(),
        context_lens.shape[0],
        block_tables.stride(0),
        k_cache.shape[1],
        num_heads,
        k_cache.shape[2],
        size,
        q.stride(0),
        window or 0,
        scale,
        work=2 * out.numel() * block_tables.shape[1] * k_cache.shape[1],
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """kernels.reference.rms_norm."""
    num_rows, width = x.shape
    _check_rows("x", x, dtype=weight.dtype, width=weight.shape[0])
    if residual is not None:
        _check_rows("residual", residual, dtype=x.dtype, width=width)
    out = torch.empty(num_rows, width, dtype=x.dtype)
    native_ops(x.dtype).rms_norm.run(
        x.data_ptr(),
        weight.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        out.data_ptr(),
        num_rows,
        width,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        work=num_rows * width * STREAMED,
    )
    return out


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """kernels.reference.rotary."""
    num_rows, num_heads, size = q.shape
    half = cos.shape[1]
    _check_rows("cos", cos, dtype=torch.float32, width=half)
    _check_rows("sin", sin, dtype=torch.float32, width=half)
    if cos.stride(0) != half or sin.stride(0) != half or cos.shape != sin.shape or 2 * half > size:
        raise UnsupportedTensor(f"expected dense cos and sin of at most {size // 2} columns, found {half}")
    if q.stride()[1:] != (size, 1) or k.stride()[1:] != (size, 1) or q.dtype != k.dtype:
        raise UnsupportedTensor(f"expected dense heads of one dtype and size, found {q.shape} and {k.shape}")
    native_ops(q.dtype).rotary.run(
        q.data_ptr(),
        k.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        num_rows,
        num_heads,
        k.shape[1],
        size,
        half,
        q.stride(0),
        k.stride(0),
        work=num_rows * (num_heads + k.shape[1]) * size * STREAMED,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """kernels.reference.silu_mul."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    _check_rows("gate_up", gate_up, dtype=gate_up.dtype, width=2 * width)
    out = torch.empty(num_rows, width, dtype=gate_up.dtype)
    native_ops(gate_up.dtype).silu_mul.run(
        gate_up.data_ptr(),
        out.data_ptr(),
        num_rows,
        width,
        gate_up.stride(0),
        work=num_rows * width * STREAMED,
    )
    return out


def _run_expand(native: NativeFunction, s: Tensor, arena: Tensor, *, site: Site, segments: Segments, y: Tensor) -> None:
    native.run(
        arena.data_ptr(),
        y.data_ptr(),
        s.data_ptr(),
        segments.rows.data_ptr(),
        segments.weights.data_ptr(),
        segments.starts.data_ptr(),
        segments.slots.data_ptr(),
        site.b_start.data_ptr(),
        site.ranks.data_ptr(),
        site.scales.data_ptr(),
        ctypes.addressof(_words(site.columns)),
        segments.slots.shape[0],
        len(site.columns) - 1,
        y.stride(0),
        s.stride(0),
        work=s.numel() * site.columns[-1],
    )


@cache
def _words(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """Numbers where compiled code can read them, kept for the life of the process: a site's columns never change."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _check_rows(name: str, tensor: Tensor, *, dtype: torch.dtype, width: int) -> None:
    if tensor.dtype != dtype or tensor.shape[1] != width or tensor.stride(1) != 1:
        raise UnsupportedTensor(
            f"expected {name} of dense rows of {width} {dtype}, "
            f"found shape {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}"
        )


def _check_heads(name: str, tensor: Tensor, cache: Tensor) -> None:
    size = cache.shape[3]
    if tensor.dtype != cache.dtype or tensor.shape[2] != size or tensor.stride()[1:] != (size, 1):
        raise UnsupportedTensor(
            f"expected {name} of dense heads of {size} {cache.dtype}, "
            f"found shape {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}"
        )
