"""Gains and shifts of adapters, on the rows that use them: one pass over the columns that have any.

A unit of work is a block of columns of one part, over every segment in turn, so that the entries of a composed row meet
in a fixed order on any number of threads.
"""

# ruff: noqa: PLR0917  # compiled code takes scalars and pointers, by position

from __future__ import annotations

from typing import Any

from numba import njit

from kernels.cpu.vector import (
    bf16_at,
    claim,
    f32_at,
    fma,
    i32_at,
    i64_at,
    load,
    load_one,
    multiply,
    splat,
    store,
    store_one,
)
from kernels.site import Vectors

RESCALE_WORDS = "q" * 12

COLUMNS = 256  # of a unit: a kilobyte of a vector
GAIN, SHIFT = int(Vectors.GAIN), int(Vectors.SHIFT)  # compiled code knows no enums of this kind


def rescale_bf16(words: int) -> None:
    """kernels.rescale of bfloat16."""
    w = i64_at(words)
    _rescale(words, bf16_at(w[1]))


def rescale_f32(words: int) -> None:
    """kernels.rescale of float32."""
    w = i64_at(words)
    _rescale(words, f32_at(w[1]))


@njit
def _rescale(words: int, y: Any) -> None:
    w = i64_at(words)
    vectors, rows, weights, starts, slots = f32_at(w[2]), i32_at(w[3]), f32_at(w[4]), i32_at(w[5]), i32_at(w[6])
    kinds, vector_starts, columns = i32_at(w[7]), i64_at(w[8]), i64_at(w[9])
    num_segments, num_parts, y_stride = w[10], w[11], w[12]
    unit = claim(words)
    first = 0  # the first unit of the part
    for part in range(num_parts):
        width = columns[part + 1] - columns[part]
        after = first + -(-width // COLUMNS)
        while unit < after:
            c = (unit - first) * COLUMNS
            c_end = min(c + COLUMNS, width)
            for i in range(num_segments):
                at = slots[i] * num_parts + part
                for m in range(starts[i], starts[i + 1]):
                    row = rows[m] * y_stride + columns[part]
                    _rescale_row(y, row, vectors, vector_starts[at], kinds[at], width, weights[m], c, c_end)
            unit = claim(words)
        first = after


@njit
def _rescale_row(
    y: Any, row: int, vectors: Any, start: int, kind: int, width: int, weight: Any, c: int, c_end: int
) -> None:
    """Columns c to c_end of one entry, 16 and then one at a time."""
    shift = start + width if kind & GAIN else start
    while kind != 0 and c < c_end:
        if c + 16 <= c_end:
            vector = load(y, row + c)
            if kind & GAIN:
                vector = multiply(vector, load(vectors, start + c))
            if kind & SHIFT:
                vector = fma(splat(weight), load(vectors, shift + c), vector)
            store(y, row + c, vector)
            c += 16
        else:
            value = load_one(y, row + c)
            if kind & GAIN:
                value *= load_one(vectors, start + c)
            if kind & SHIFT:
                value += weight * load_one(vectors, shift + c)
            store_one(y, row + c, value)
            c += 1
