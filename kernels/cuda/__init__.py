"""The ops on CUDA devices from sm_80 on, in bfloat16 and float16: our kernels where torch has none, torch elsewhere.

Simulated and compiled, never timed: see `tests/kernels/cuda`. What a kernel would misread (another dtype, a width that
is no multiple of 8, a row that is not aligned) is refused before. The tables of a site and the indices of a batch are
trusted, as no one but their owner writes them. Nothing here waits for the device.

At most 8 launches of LoRA per layer: shrink and expand at each of its 4 sites, all parts of a site in one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.cuda.attention import attend
from kernels.cuda.families import Family, choose, slice_length
from kernels.cuda.module import Argument, Facts, Kernel, facts, launch, load, require_cupy
from kernels.cuda.source import options
from kernels.errors import UnsupportedTensor
from kernels.reference import rms_norm, rotary, silu_mul
from kernels.segments import Segments
from kernels.site import MAX_RANK, Affine, Site

__all__ = ["attend", "expand", "look_up", "rescale", "rms_norm", "rotary", "shrink", "silu_mul", "warm_up", "write_kv"]

SHRINK = {Family.ROWS: Kernel("rows.cu", "shrink_rows"), Family.TILES: Kernel("tiles.cu", "shrink_tiles")}
EXPAND = {Family.ROWS: Kernel("rows.cu", "expand_rows"), Family.TILES: Kernel("tiles.cu", "expand_tiles")}
EXPAND_COMPOSED = Kernel("rows.cu", "expand_composed")
EXPAND_GROUPS = Kernel("tiles.cu", "expand_groups")
LOOK_UP = Kernel("lookup.cu", "look_up")
RESCALE = Kernel("affine.cu", "rescale")
WRITE_KV = Kernel("cache.cu", "write_kv")
KERNELS = (*SHRINK.values(), *EXPAND.values(), EXPAND_COMPOSED, EXPAND_GROUPS, LOOK_UP, RESCALE, WRITE_KV)

NUM_THREADS = 128  # of a block, in every kernel

# The sizes that the kernels are compiled for; a test holds them to the sources.
UNIT_ROWS = {Family.ROWS: 4, Family.TILES: 64}
UNIT_RANKS = {Family.ROWS: 16, Family.TILES: 32}
TILE_COLUMNS = {Family.ROWS: 256, Family.TILES: 64}
RESCALE_COLUMNS = 1024
SLICE_STEP = {Family.ROWS: 256, Family.TILES: 64}  # a vector for each lane; a stage of the pipeline
MAX_SLICE = 2048  # features of 4 rows that shrink_rows stages in 16 KB
MAX_PARTS = 3


def warm_up(dtype: torch.dtype, device: str = "cuda") -> None:
    """Compiles and loads every kernel for one dtype: seconds on a new machine, then from CuPy's cache.

    Raises UnsupportedDevice where CuPy or the driver is missing or the device is too old.
    """
    require_cupy()
    here = torch.empty(0, device=device).device  # with its index, as tensors have it
    for kernel in KERNELS:
        load(kernel, dtype=dtype, device=here)


def shrink(x: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """kernels.reference.shrink, in Z slices of D_in whose sums expand adds up in their order.

    Shapes: returns float32 [Z, M, max_rank or up to 3 more].
    """
    _check(arena, site.columns)
    _check_width(site.in_features)
    _check_rows("x", x, dtype=arena.dtype, width=site.in_features)
    width = _check_rank(max_rank)
    device = facts(x.device)
    num_entries, num_segments = segments.num_entries, segments.slots.shape[0]
    family = choose(num_entries, num_segments, device)
    units = _num_units(family, num_entries, num_segments)
    tiles = -(-max_rank // UNIT_RANKS[family])
    length = slice_length(site.in_features, num_blocks=units * tiles, step=SLICE_STEP[family], facts=device)
    length = min(length, MAX_SLICE) if family is Family.ROWS else length
    slices = -(-site.in_features // length)
    s = torch.empty(slices, num_entries, width, dtype=torch.float32, device=x.device)
    # Blocks of shrink_rows that begin no unit leave at once, so its grid counts entries.
    blocks = num_entries if family is Family.ROWS else units
    launch(
        SHRINK[family],
        (
            x,
            np.int64(x.stride(0)),
            arena,
            site.a_start,
            site.ranks,
            np.int32(len(site.columns) - 1),
            segments.rows,
            segments.starts,
            segments.slots,
            segments.segment_of,
            s,
            np.int32(num_entries),
            np.int32(width),
            np.int32(site.in_features),
            np.int32(length),
        ),
        grid=(blocks, tiles, slices),
        num_threads=NUM_THREADS,
        dtype=arena.dtype,
        device=x.device,
        shared_bytes=UNIT_ROWS[family] * length * arena.itemsize if family is Family.ROWS else 0,
    )
    return s


def look_up(token_ids: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """kernels.reference.look_up, as one slice. Shapes: returns float32 [1, M, max_rank or up to 3 more]."""
    _check(arena, site.columns)
    if token_ids.dtype != torch.int64 or token_ids.dim() != 1 or not token_ids.is_contiguous():
        raise UnsupportedTensor(f"expected dense int64 token_ids, found {token_ids.dtype} {tuple(token_ids.shape)}")
    width = _check_rank(max_rank)
    s = torch.empty(1, segments.num_entries, width, dtype=torch.float32, device=token_ids.device)
    launch(
        LOOK_UP,
        (
            token_ids,
            arena,
            site.a_start,
            site.ranks,
            np.int32(len(site.columns) - 1),
            segments.rows,
            segments.slots,
            segments.segment_of,
            s,
            np.int32(width),
            np.int32(site.in_features),
        ),
        grid=(segments.num_entries, -(-max_rank // NUM_THREADS)),
        num_threads=NUM_THREADS,
        dtype=arena.dtype,
        device=token_ids.device,
    )
    return s


def expand(s: Tensor, arena: Tensor, site: Site, segments: Segments, y: Tensor) -> None:
    """kernels.reference.expand, of what shrink here returned: float32 [Z, M, at least R]."""
    _check(arena, site.columns)
    _check_rows("y", y, dtype=arena.dtype, width=site.out_features)
    if s.dim() != 3 or s.dtype != torch.float32 or not s.is_contiguous() or s.shape[1] != segments.num_entries:
        expected = f"dense float32 slices of {segments.num_entries} entries"
        raise UnsupportedTensor(f"expected s of {expected}, found {s.dtype} {tuple(s.shape)}")
    given: tuple[Argument, ...] = (
        s,
        arena,
        site.b_start,
        site.ranks,
        site.scales,
        np.int32(len(site.columns) - 1),
        *_ends(site.columns),
    )
    sizes = (np.int32(s.shape[1]), np.int32(s.shape[2]), np.int32(s.shape[0]))
    arguments: tuple[Argument, ...]
    if segments.is_composed:
        kernel, family, num_blocks, arguments = _composed(segments, y, facts(y.device))
    else:
        num_segments = segments.slots.shape[0]
        family = choose(segments.num_entries, num_segments, facts(y.device))
        num_units = _num_units(family, segments.num_entries, num_segments)
        num_blocks = segments.num_entries if family is Family.ROWS else num_units
        spans = (segments.rows, segments.weights, segments.starts, segments.slots, segments.segment_of)
        kernel, arguments = EXPAND[family], (*spans, y, np.int64(y.stride(0)))
    rows_staged = 1 if segments.is_composed else UNIT_ROWS[family]
    launch(
        kernel,
        (*given, *arguments, *sizes),
        grid=(num_blocks, _num_tiles(site.columns, TILE_COLUMNS[family])),
        num_threads=NUM_THREADS,
        dtype=arena.dtype,
        device=y.device,
        shared_bytes=rows_staged * s.shape[2] * 4 if family is Family.ROWS else 0,
    )


def _composed(segments: Segments, y: Tensor, device: Facts) -> tuple[Kernel, Family, int, tuple[Argument, ...]]:
    """What expands a composed batch: the kernel, its family, its blocks, and its arguments between site and sizes.

    Where many rows use the same slots, their groups are cut into units; else a row is one block's.
    """
    groups, num_rows = segments.groups, segments.row_starts.shape[0] - 1
    if groups is not None:
        num_groups = groups.starts.shape[0] - 1
        if choose(num_rows, num_groups, device) is Family.TILES:
            spans = (groups.rows, groups.starts, groups.group_of, groups.member_starts, groups.first_entries)
            entries = (segments.weights, segments.slots, segments.segment_of)
            rest = (y, np.int64(y.stride(0)), np.int32(num_rows))
            return (
                EXPAND_GROUPS,
                Family.TILES,
                _num_units(Family.TILES, num_rows, num_groups),
                (*entries, *spans, *rest),
            )
    by_row = (segments.by_row, segments.row_starts)
    place = (segments.rows, segments.weights, segments.slots, segments.segment_of, *by_row)
    return EXPAND_COMPOSED, Family.ROWS, num_rows, (*place, y, np.int64(y.stride(0)))


def rescale(y: Tensor, arena: Tensor, affine: Affine, segments: Segments) -> None:
    """kernels.reference.rescale."""
    _check(arena, affine.columns)
    _check_rows("y", y, dtype=arena.dtype, width=affine.columns[-1])
    launch(
        RESCALE,
        (
            arena,
            affine.kinds,
            affine.starts,
            np.int32(len(affine.columns) - 1),
            *_ends(affine.columns),
            segments.rows,
            segments.weights,
            segments.slots,
            segments.segment_of,
            segments.by_row,
            segments.row_starts,
            y,
            np.int64(y.stride(0)),
        ),
        grid=(segments.row_starts.shape[0] - 1, _num_tiles(affine.columns, RESCALE_COLUMNS)),
        num_threads=NUM_THREADS,
        dtype=arena.dtype,
        device=y.device,
    )


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """kernels.reference.write_kv; a negative index is padding, and its row goes nowhere."""
    per_vector = 16 // k.element_size()
    width = k_cache.shape[2] * k_cache.shape[3]
    for name, rows, cache in (("k", k, k_cache), ("v", v, v_cache)):
        _check_rows(name, rows.flatten(1), dtype=cache.dtype, width=width)
        if not cache.is_contiguous() or width % per_vector:
            raise UnsupportedTensor(
                f"expected a dense cache of {per_vector}n wide positions, found {tuple(cache.shape)}"
            )
    launch(
        WRITE_KV,
        (
            k,
            v,
            k_cache,
            v_cache,
            index,
            np.int64(k.stride(0) // per_vector),
            np.int64(v.stride(0) // per_vector),
            np.int32(width // per_vector),
        ),
        grid=(k.shape[0], 2),
        num_threads=NUM_THREADS,
        dtype=k.dtype,
        device=k.device,
    )


def _num_units(family: Family, num_entries: int, num_segments: int) -> int:
    """At most so many blocks have work: a unit for each segment, and one more for each that is full."""
    return -(-num_entries // UNIT_ROWS[family]) + num_segments


def _widths(columns: tuple[int, ...]) -> list[int]:
    return [end - begin for begin, end in pairwise(columns)]


def _ends(columns: tuple[int, ...]) -> list[np.int32]:
    """Where each of MAX_PARTS parts ends; parts that a site lacks have no width."""
    return [np.int32(columns[min(part, len(columns) - 1)]) for part in range(1, MAX_PARTS + 1)]


def _num_tiles(columns: tuple[int, ...], tile: int) -> int:
    return sum(-(-width // tile) for width in _widths(columns))


def _check(arena: Tensor, columns: tuple[int, ...]) -> None:
    options(arena.dtype)
    if len(columns) - 1 > MAX_PARTS:
        raise UnsupportedTensor(f"expected at most {MAX_PARTS} parts, found {len(columns) - 1}")
    for width in _widths(columns):
        _check_width(width)


def _check_rank(max_rank: int) -> int:
    """The columns of s for ranks up to `max_rank`: a few more, so that pairs are aligned."""
    if max_rank > MAX_RANK:
        raise UnsupportedTensor(f"expected ranks of at most {MAX_RANK} at a site, found {max_rank}")
    return -(-max_rank // 4) * 4


def _check_width(width: int) -> None:
    if width % 8:
        raise UnsupportedTensor(f"expected widths that are multiples of 8, found {width}")


def _check_rows(name: str, rows: Tensor, *, dtype: torch.dtype, width: int) -> None:
    is_dense = rows.shape[1] == width and rows.stride(1) == 1
    is_aligned = rows.data_ptr() % 16 == 0 and rows.stride(0) * rows.itemsize % 16 == 0
    if rows.dtype != dtype or not is_dense or not is_aligned:
        raise UnsupportedTensor(
            f"expected {name} of dense rows of {width} {dtype}, each aligned to 16 bytes, "
            f"found shape {tuple(rows.shape)}, strides {rows.stride()}, {rows.dtype}"
        )
