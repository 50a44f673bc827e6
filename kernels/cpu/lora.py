"""Shrink and expand over the arena: for few rows as fast as memory streams, for many rows in register tiles.

A unit of work is a few rank rows (shrink) or columns (expand) of one segment, times a block of its rows. All rows of a
segment meet a weight while it is in a register or in the nearest cache, so an adapter is read from memory once.

Every sum is one chain in a fixed order (features in vectors of 16, then those vectors' lanes; ranks one by one),
whatever tile it is computed in. An entry's result is therefore the same bits alone, beside any neighbours, and on any
number of threads.
"""

# ruff: noqa: PLR0917  # compiled code takes scalars and pointers, by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.vector import (
    bf16_at,
    claim,
    f32_at,
    fma,
    fma_rows,
    i32_at,
    i64_at,
    load,
    load_4,
    load_one,
    splat,
    store,
    store_4,
    store_one,
    total,
    zeros_4,
)

SHRINK_WORDS = "q" * 13
EXPAND_WORDS = "q" * 15

ROWS = 64  # rows of a unit: x for 64 rows of a few thousand features stays in the second cache
RANKS = 8  # rank rows of a unit: two tiles; small, so that one adapter of rank 16 is work for several threads
COLUMNS = 256  # columns of a unit: 512 bytes of each rank row, enough to stream


def shrink_bf16(words: int) -> None:
    """kernels.shrink where x and the arena are bfloat16."""
    w = i64_at(words)
    _shrink(words, bf16_at(w[1]), bf16_at(w[2]))


def shrink_f32(words: int) -> None:
    """kernels.shrink where x and the arena are float32."""
    w = i64_at(words)
    _shrink(words, f32_at(w[1]), f32_at(w[2]))


def expand_bf16(words: int) -> None:
    """kernels.expand where the arena and y are bfloat16 and no row has two entries."""
    w = i64_at(words)
    _expand(words, bf16_at(w[1]), bf16_at(w[2]))


def expand_f32(words: int) -> None:
    """kernels.expand where the arena and y are float32 and no row has two entries."""
    w = i64_at(words)
    _expand(words, f32_at(w[1]), f32_at(w[2]))


def compose_bf16(words: int) -> None:
    """kernels.expand where the arena is bfloat16, y is float32, and rows may have several entries."""
    w = i64_at(words)
    _expand_composed(words, bf16_at(w[1]), f32_at(w[2]))


def compose_f32(words: int) -> None:
    """kernels.expand where the arena and y are float32 and rows may have several entries."""
    w = i64_at(words)
    _expand_composed(words, f32_at(w[1]), f32_at(w[2]))


@njit
def _shrink(words: int, x: Any, arena: Any) -> None:
    w = i64_at(words)
    s, rows, starts, slots = f32_at(w[3]), i32_at(w[4]), i32_at(w[5]), i32_at(w[6])
    a_start, ranks = i64_at(w[7]), i32_at(w[8])
    num_segments, num_parts, d_in, x_stride, s_stride = w[9], w[10], w[11], w[12], w[13]
    unit = claim(words)
    first = 0  # the segment's first unit
    for i in range(num_segments):
        slot = slots[i]
        rank = 0
        for part in range(num_parts):
            rank += ranks[slot * num_parts + part]
        begin, end = starts[i], starts[i + 1]
        row_blocks = -((begin - end) // ROWS)
        after = first + row_blocks * -(-rank // RANKS)
        while unit < after:
            r = (unit - first) // row_blocks * RANKS
            m = begin + (unit - first) % row_blocks * ROWS
            r_end, m_end = min(r + RANKS, rank), min(m + ROWS, end)
            while r < r_end:
                a = a_start[slot] + r * d_in
                if r + 4 <= r_end:
                    _shrink_4_ranks(x, x_stride, rows, m, m_end, arena, a, d_in, s, r, s_stride)
                    r += 4
                else:
                    _shrink_1_rank(x, x_stride, rows, m, m_end, arena, a, d_in, s, r, s_stride)
                    r += 1
            unit = claim(words)
        first = after


@njit
def _shrink_4_ranks(
    x: Any,
    x_stride: int,
    rows: Any,
    m: int,
    m_end: int,
    arena: Any,
    a: int,
    d_in: int,
    s: Any,
    r: int,
    s_stride: int,
) -> None:
    """s[m : m_end, r : r + 4], in tiles of 4 rows, then row by row."""
    whole = d_in - d_in % 16
    while m + 4 <= m_end:
        x0, x1, x2, x3 = rows[m] * x_stride, rows[m + 1] * x_stride, rows[m + 2] * x_stride, rows[m + 3] * x_stride
        t0, t1, t2, t3 = zeros_4(), zeros_4(), zeros_4(), zeros_4()
        for k in range(0, whole, 16):
            t0 = fma_rows(t0, load(x, x0 + k), arena, a + k, d_in)
            t1 = fma_rows(t1, load(x, x1 + k), arena, a + k, d_in)
            t2 = fma_rows(t2, load(x, x2 + k), arena, a + k, d_in)
            t3 = fma_rows(t3, load(x, x3 + k), arena, a + k, d_in)
        out = m * s_stride + r
        _store_sums(s, out, t0, x, x0, arena, a, whole, d_in)
        _store_sums(s, out + s_stride, t1, x, x1, arena, a, whole, d_in)
        _store_sums(s, out + 2 * s_stride, t2, x, x2, arena, a, whole, d_in)
        _store_sums(s, out + 3 * s_stride, t3, x, x3, arena, a, whole, d_in)
        m += 4
    while m < m_end:
        row = rows[m] * x_stride
        t0 = zeros_4()
        for k in range(0, whole, 16):
            t0 = fma_rows(t0, load(x, row + k), arena, a + k, d_in)
        _store_sums(s, m * s_stride + r, t0, x, row, arena, a, whole, d_in)
        m += 1


@njit
def _store_sums(s: Any, out: int, tile: Any, x: Any, row: int, arena: Any, a: int, whole: int, d_in: int) -> None:
    """s[out : out + 4] = the sums of a tile's vectors, and of the features beyond the last whole vector."""
    store_one(s, out, total(tile[0]) + _tail(x, row, arena, a, whole, d_in))
    store_one(s, out + 1, total(tile[1]) + _tail(x, row, arena, a + d_in, whole, d_in))
    store_one(s, out + 2, total(tile[2]) + _tail(x, row, arena, a + 2 * d_in, whole, d_in))
    store_one(s, out + 3, total(tile[3]) + _tail(x, row, arena, a + 3 * d_in, whole, d_in))


@njit
def _shrink_1_rank(
    x: Any,
    x_stride: int,
    rows: Any,
    m: int,
    m_end: int,
    arena: Any,
    a: int,
    d_in: int,
    s: Any,
    r: int,
    s_stride: int,
) -> None:
    """s[m : m_end, r], for the one to three ranks that fill no tile."""
    whole = d_in - d_in % 16
    while m < m_end:
        row = rows[m] * x_stride
        t = splat(np.float32(0.0))
        for k in range(0, whole, 16):
            t = fma(load(x, row + k), load(arena, a + k), t)
        store_one(s, m * s_stride + r, total(t) + _tail(x, row, arena, a, whole, d_in))
        m += 1


@njit
def _tail(x: Any, row: int, arena: Any, a: int, whole: int, d_in: int) -> Any:
    """The product of the features beyond the last whole vector."""
    t = np.float32(0.0)
    for k in range(whole, d_in):
        t += load_one(x, row + k) * load_one(arena, a + k)
    return t


@njit
def _expand(words: int, arena: Any, y: Any) -> None:
    w = i64_at(words)
    s, rows, weights, starts, slots = f32_at(w[3]), i32_at(w[4]), f32_at(w[5]), i32_at(w[6]), i32_at(w[7])
    b_start, ranks, scales, columns = i64_at(w[8]), i32_at(w[9]), f32_at(w[10]), i64_at(w[11])
    num_segments, num_parts, y_stride, s_stride = w[12], w[13], w[14], w[15]
    unit = claim(words)
    first = 0  # the first unit of the segment and part
    for i in range(num_segments):
        slot = slots[i] * num_parts
        s_column = 0
        for part in range(num_parts):
            rank, width = ranks[slot + part], columns[part + 1] - columns[part]
            row_blocks = -((starts[i] - starts[i + 1]) // ROWS) if rank > 0 else 0
            after = first + row_blocks * -(-width // COLUMNS)
            while unit < after:
                c = (unit - first) // row_blocks * COLUMNS
                m = starts[i] + (unit - first) % row_blocks * ROWS
                _expand_block(
                    s,
                    s_column,
                    s_stride,
                    rows,
                    weights,
                    m,
                    min(m + ROWS, starts[i + 1]),
                    scales[slot + part],
                    arena,
                    b_start[slot + part],
                    rank,
                    width,
                    c,
                    min(c + COLUMNS, width),
                    y,
                    columns[part],
                    y_stride,
                )
                unit = claim(words)
            first = after
            s_column += rank


@njit
def _expand_composed(words: int, arena: Any, y: Any) -> None:
    """As _expand where a row may have several entries: a unit is a block of columns of every row and every segment."""
    w = i64_at(words)
    s, rows, weights, starts, slots = f32_at(w[3]), i32_at(w[4]), f32_at(w[5]), i32_at(w[6]), i32_at(w[7])
    b_start, ranks, scales, columns = i64_at(w[8]), i32_at(w[9]), f32_at(w[10]), i64_at(w[11])
    num_segments, num_parts, y_stride, s_stride = w[12], w[13], w[14], w[15]
    unit = claim(words)
    first = 0  # the first unit of the part
    for part in range(num_parts):
        width = columns[part + 1] - columns[part]
        after = first + -(-width // COLUMNS)
        while unit < after:
            c = (unit - first) * COLUMNS
            for i in range(num_segments):
                slot = slots[i] * num_parts
                s_column = 0
                for earlier in range(part):
                    s_column += ranks[slot + earlier]
                _expand_block(
                    s,
                    s_column,
                    s_stride,
                    rows,
                    weights,
                    starts[i],
                    starts[i + 1],
                    scales[slot + part],
                    arena,
                    b_start[slot + part],
                    ranks[slot + part],
                    width,
                    c,
                    min(c + COLUMNS, width),
                    y,
                    columns[part],
                    y_stride,
                )
            unit = claim(words)
        first = after


@njit
def _expand_block(
    s: Any,
    s_column: int,
    s_stride: int,
    rows: Any,
    weights: Any,
    m: int,
    m_end: int,
    scale: Any,
    arena: Any,
    b: int,
    rank: int,
    width: int,
    c_begin: int,
    c_end: int,
    y: Any,
    y_column: int,
    y_stride: int,
) -> None:
    """Adds columns c_begin to c_end of a part to entries m to m_end: tiles of 4 rows by 64 columns, then the rest.

    c is a column within the part, whose B [rank, width] begins at b and whose output begins at y_column.
    """
    while m + 4 <= m_end:
        f0, f1, f2, f3 = weights[m] * scale, weights[m + 1] * scale, weights[m + 2] * scale, weights[m + 3] * scale
        y0, y1 = rows[m] * y_stride + y_column, rows[m + 1] * y_stride + y_column
        y2, y3 = rows[m + 2] * y_stride + y_column, rows[m + 3] * y_stride + y_column
        s0 = m * s_stride + s_column
        s1, s2, s3 = s0 + s_stride, s0 + 2 * s_stride, s0 + 3 * s_stride
        c = c_begin
        while c + 64 <= c_end:
            t0, t1, t2, t3 = load_4(y, y0 + c), load_4(y, y1 + c), load_4(y, y2 + c), load_4(y, y3 + c)
            for r in range(rank):
                at = b + r * width + c
                t0 = fma_rows(t0, splat(f0 * s[s0 + r]), arena, at, 16)
                t1 = fma_rows(t1, splat(f1 * s[s1 + r]), arena, at, 16)
                t2 = fma_rows(t2, splat(f2 * s[s2 + r]), arena, at, 16)
                t3 = fma_rows(t3, splat(f3 * s[s3 + r]), arena, at, 16)
            store_4(y, y0 + c, t0)
            store_4(y, y1 + c, t1)
            store_4(y, y2 + c, t2)
            store_4(y, y3 + c, t3)
            c += 64
        _expand_row(s, s0, f0, arena, b, rank, width, c, c_end, y, y0)
        _expand_row(s, s1, f1, arena, b, rank, width, c, c_end, y, y1)
        _expand_row(s, s2, f2, arena, b, rank, width, c, c_end, y, y2)
        _expand_row(s, s3, f3, arena, b, rank, width, c, c_end, y, y3)
        m += 4
    while m < m_end:
        factor, row = weights[m] * scale, rows[m] * y_stride + y_column
        _expand_row(s, m * s_stride + s_column, factor, arena, b, rank, width, c_begin, c_end, y, row)
        m += 1


@njit
def _expand_row(
    s: Any, s_row: int, factor: Any, arena: Any, b: int, rank: int, width: int, c: int, c_end: int, y: Any, row: int
) -> None:
    """Adds columns c to c_end of one entry, 64, 16 and then one at a time."""
    while c + 64 <= c_end:
        tile = load_4(y, row + c)
        for r in range(rank):
            tile = fma_rows(tile, splat(factor * s[s_row + r]), arena, b + r * width + c, 16)
        store_4(y, row + c, tile)
        c += 64
    while c + 16 <= c_end:
        vector = load(y, row + c)
        for r in range(rank):
            vector = fma(splat(factor * s[s_row + r]), load(arena, b + r * width + c), vector)
        store(y, row + c, vector)
        c += 16
    while c < c_end:
        value = load_one(y, row + c)
        for r in range(rank):
            value += factor * s[s_row + r] * load_one(arena, b + r * width + c)
        store_one(y, row + c, value)
        c += 1
