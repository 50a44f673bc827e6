"""Paged attention read in place: no copy of the cache, one pass over each sequence's blocks with an online softmax.

A unit of work is one key head of up to 16 queries of one sequence, with all the query heads that share it. Its context
is walked in tiles of 64 positions, always counted from the sequence's first: the tile's keys and values are brought to
float32 once, and each query head folds it into its own running maximum, sum and output.

    maximum' = max(maximum, scores);  weights = exp(scores - maximum');  correction = exp(maximum - maximum')
    sum' = sum · correction + Σ weights;  output' = output · correction + weights · V

So a row's result is the same bits in a decode step, in any chunk of a prefill, and beside any other sequences.

Source: online softmax of Milakov and Gimelshein (arXiv 1805.02867), tiled as in FlashAttention (arXiv 2205.14135).
"""

# ruff: noqa: PLR0917  # compiled code takes scalars and pointers, by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.vector import (
    LANES,
    add,
    add_4,
    bf16_at,
    claim,
    exp,
    f32_at,
    f64_at,
    first,
    fma,
    fma_rows,
    highest,
    i32_at,
    i64_at,
    load,
    load_4,
    maximum,
    multiply,
    scale_4,
    splat,
    store,
    store_4,
    total,
    totals,
    zeros_4,
    zeros_16,
)

ATTEND_WORDS = "q" * 15 + "d"
WRITE_KV_WORDS = "q" * 9

QUERIES = 16  # of a unit: enough to share a tile's conversion, few enough for their outputs to stay in the cache
TILE = 64  # positions: four vectors of scores, so that one maximum and one correction serve many


def attend_bf16(words: int) -> None:
    """kernels.attend in bfloat16."""
    w = i64_at(words)
    _attend(words, bf16_at(w[1]), bf16_at(w[2]), bf16_at(w[3]), bf16_at(w[4]))


def attend_f32(words: int) -> None:
    """kernels.attend in float32."""
    w = i64_at(words)
    _attend(words, f32_at(w[1]), f32_at(w[2]), f32_at(w[3]), f32_at(w[4]))


def write_kv(words: int) -> None:
    """kernels.write_kv for any dtype: a position is `width` words of 8 bytes, and strides are in words too."""
    w = i64_at(words)
    k, v, k_cache, v_cache, index = i64_at(w[1]), i64_at(w[2]), i64_at(w[3]), i64_at(w[4]), i64_at(w[5])
    num_rows, width, k_stride, v_stride = w[6], w[7], w[8], w[9]
    row = claim(words)
    while row < num_rows:
        to, k_from, v_from = index[row] * width, row * k_stride, row * v_stride
        if to >= 0:  # else padding
            for i in range(width):
                k_cache[to + i] = k[k_from + i]
            for i in range(width):
                v_cache[to + i] = v[v_from + i]
        row = claim(words)


@njit
def _attend(words: int, q: Any, k_cache: Any, v_cache: Any, out: Any) -> None:  # noqa: PLR0912, PLR0915  # one loop nest
    w = i64_at(words)
    query_starts, context_lens, tables = i32_at(w[5]), i32_at(w[6]), i32_at(w[7])
    num_sequences, table_stride, block_size = w[8], w[9], w[10]
    num_heads, num_key_heads, size, q_stride, window = w[11], w[12], w[13], w[14], w[15]
    scale, group = np.float32(f64_at(words)[16]), num_heads // num_key_heads
    # A unit's keys, values and outputs in float32, then the tile's scores, then the rows' maxima and sums.
    most = QUERIES * group
    memory = np.empty((2 * TILE + most) * size + TILE + 2 * most + LANES, dtype=np.float32)
    start = (memory.ctypes.data + 63) // 64 * 64  # a vector across two cache lines would be read twice
    keys, values, outputs = f32_at(start), f32_at(start + 4 * TILE * size), f32_at(start + 8 * TILE * size)
    scores = f32_at(start + 4 * (2 * TILE + most) * size)
    maxima = f32_at(start + 4 * ((2 * TILE + most) * size + TILE))
    sums = f32_at(start + 4 * ((2 * TILE + most) * size + TILE + most))

    unit = claim(words)
    before = 0  # units of the sequences before
    for b in range(num_sequences):
        begin, end = query_starts[b], query_starts[b + 1]
        after = before + -((begin - end) // QUERIES) * num_key_heads
        while unit < after:
            key_head = (unit - before) % num_key_heads
            row = begin + (unit - before) // num_key_heads * QUERIES
            row_end = min(row + QUERIES, end)
            num_rows = (row_end - row) * group
            position = context_lens[b] - (end - row)  # of the first row
            for i in range(num_rows):
                maxima[i], sums[i] = -np.inf, 0.0
            for i in range(0, num_rows * size, 16):
                store(outputs, i, splat(np.float32(0.0)))
            seen_begin = max(0, position - window + 1) if window > 0 else 0
            seen_end = position + row_end - row
            for tile in range(seen_begin // TILE * TILE, seen_end, TILE):
                block, offset = tile // block_size, tile % block_size
                for j in range(TILE):
                    at = np.int64(-1)
                    if seen_begin <= tile + j < seen_end:
                        place = np.int64(tables[b * table_stride + block]) * block_size + offset
                        at = (place * num_key_heads + key_head) * size
                    _fetch(k_cache, at, keys, j, size)
                    _fetch(v_cache, at, values, j, size)
                    offset += 1
                    if offset == block_size:
                        block, offset = block + 1, 0
                i = 0
                for t in range(row, row_end):
                    own = position + t - row
                    oldest = own - window + 1 if window > 0 else 0
                    if tile <= own and oldest < tile + TILE:
                        place = t * q_stride + key_head * group * size
                        for head in range(group):
                            high = _score(q, place + head * size, keys, size, scale, scores, oldest - tile, own - tile)
                            _fold(high, scores, values, size, own - tile, maxima, sums, outputs, i + head)
                    i += group
            place = (row * num_heads + key_head * group) * size
            for i in range(num_rows):
                share = splat(np.float32(1.0) / sums[i])
                for d in range(0, size, 16):
                    store(out, place + d, multiply(load(outputs, i * size + d), share))
                place += size
                if i % group == group - 1:
                    place += (num_heads - group) * size
            unit = claim(words)
        before = after
    memory[0] = 0.0  # numba frees an array after its last mention, and the pointers above are not mentions


@njit
def _fetch(cache: Any, at: int, scratch: Any, j: int, size: int) -> None:
    """Position j's head in float32; zeros for a position (at = -1) that no query of the unit may see.

    The scratch [4 vectors of positions, size / 16, 16 positions, 16] is laid out for constant distances in a loop.
    """
    to = j // LANES * size * LANES + j % LANES * LANES
    for d in range(0, size, 16):
        store(scratch, to + d * LANES, load(cache, at + d) if at >= 0 else splat(np.float32(0.0)))


@njit
def _score(q: Any, place: int, keys: Any, size: int, scale: Any, scores: Any, first_seen: int, last_seen: int) -> Any:
    """Writes one query's scores with the tile's keys, minus infinity where it does not see them; returns the highest.

    Vectors of positions beyond the last that is seen are left out.
    """
    most = splat(np.float32(-np.inf))
    for begin in range(0, min(last_seen + 1, TILE), LANES):
        products = zeros_16()
        for d in range(0, size, 16):
            products = fma_rows(products, load(q, place + d), keys, (begin * size) + d * LANES, LANES)
        vector = multiply(totals(products), splat(scale))
        if begin < first_seen or last_seen < begin + LANES - 1:
            store(scores, begin, vector)
            for j in range(begin, begin + LANES):
                if j < first_seen or last_seen < j:
                    scores[j] = -np.inf
            vector = load(scores, begin)
        store(scores, begin, vector)
        most = maximum(most, vector)
    return highest(most)


@njit
def _fold(
    high: Any, scores: Any, values: Any, size: int, last_seen: int, maxima: Any, sums: Any, outputs: Any, i: int
) -> None:
    """Folds a tile into row i's running maximum, sum and output.

    The positions add up in two chains, as one alone would wait for each multiply-add to end.
    """
    correction = splat(np.float32(1.0))
    if high > maxima[i]:
        correction = exp(splat(maxima[i] - high))
        maxima[i] = high
    minus = splat(-maxima[i])
    weight = splat(np.float32(0.0))
    end = min(last_seen + 1, TILE)
    for begin in range(0, end, LANES):
        weights = exp(add(load(scores, begin), minus))
        store(scores, begin, weights)
        weight = add(weight, weights)
    sums[i] = sums[i] * first(correction) + total(weight)
    d = 0
    while d + 64 <= size:
        early, late = scale_4(load_4(outputs, i * size + d), correction), zeros_4()
        for begin in range(0, end, LANES):
            at = begin * size + d * LANES
            for j in range(8):
                early = fma_rows(early, splat(scores[begin + j]), values, at + j * LANES, LANES * LANES)
                late = fma_rows(late, splat(scores[begin + j + 8]), values, at + (j + 8) * LANES, LANES * LANES)
        store_4(outputs, i * size + d, add_4(early, late))
        d += 64
    while d < size:
        one, other = multiply(load(outputs, i * size + d), correction), splat(np.float32(0.0))
        for begin in range(0, end, LANES):
            at = begin * size + d * LANES
            for j in range(8):
                one = fma(splat(scores[begin + j]), load(values, at + j * LANES), one)
                other = fma(splat(scores[begin + j + 8]), load(values, at + (j + 8) * LANES), other)
        store(outputs, i * size + d, add(one, other))
        d += 16
