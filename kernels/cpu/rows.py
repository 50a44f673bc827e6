"""The small ops of a layer, each in one pass over its rows: at a few rows, entering torch costs more than the work.

A row is one unit of work and one fixed order of sums, so its result depends on nothing but itself.
"""

# ruff: noqa: PLR0917  # compiled code takes scalars and pointers, by position

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kernels.cpu.vector import (
    add,
    bf16_at,
    claim,
    divide,
    exp,
    f32_at,
    f64_at,
    first,
    fma,
    i64_at,
    load,
    load_one,
    multiply,
    rounded,
    splat,
    store,
    store_one,
    total,
)

RMS_NORM_WORDS = "q" * 8 + "d"
ROTARY_WORDS = "q" * 11
SILU_MUL_WORDS = "q" * 5

ROWS = 4  # of a unit: a row is too little work for a claim each


def rms_norm_bf16(words: int) -> None:
    """kernels.rms_norm in bfloat16."""
    w = i64_at(words)
    _rms_norm(words, bf16_at(w[1]), bf16_at(w[2]), bf16_at(w[3]), bf16_at(w[4]))


def rms_norm_f32(words: int) -> None:
    """kernels.rms_norm in float32."""
    w = i64_at(words)
    _rms_norm(words, f32_at(w[1]), f32_at(w[2]), f32_at(w[3]), f32_at(w[4]))


def rotary_bf16(words: int) -> None:
    """kernels.rotary of bfloat16 heads."""
    w = i64_at(words)
    _rotary(words, bf16_at(w[1]), bf16_at(w[2]))


def rotary_f32(words: int) -> None:
    """kernels.rotary of float32 heads."""
    w = i64_at(words)
    _rotary(words, f32_at(w[1]), f32_at(w[2]))


def silu_mul_bf16(words: int) -> None:
    """kernels.silu_mul in bfloat16."""
    w = i64_at(words)
    _silu_mul(words, bf16_at(w[1]), bf16_at(w[2]))


def silu_mul_f32(words: int) -> None:
    """kernels.silu_mul in float32."""
    w = i64_at(words)
    _silu_mul(words, f32_at(w[1]), f32_at(w[2]))


@njit
def _rms_norm(words: int, x: Any, weight: Any, residual: Any, out: Any) -> None:
    w = i64_at(words)
    has_residual, num_rows, width, x_stride = w[3] != 0, w[5], w[6], w[7]
    residual_stride = w[8]
    eps = np.float32(f64_at(words)[9])
    whole = width - width % 16
    row = claim(words) * ROWS
    while row < num_rows:
        for t in range(row, min(row + ROWS, num_rows)):
            h, at = x, t * x_stride
            if has_residual:
                to = t * residual_stride
                for d in range(0, whole, 16):
                    store(residual, to + d, add(load(residual, to + d), load(x, at + d)))
                for d in range(whole, width):
                    store_one(residual, to + d, load_one(residual, to + d) + load_one(x, at + d))
                h, at = residual, to
            squares = splat(np.float32(0.0))
            for d in range(0, whole, 16):
                v = load(h, at + d)
                squares = fma(v, v, squares)
            square = total(squares)
            for d in range(whole, width):
                square += load_one(h, at + d) * load_one(h, at + d)
            factor = np.float32(1.0) / np.sqrt(square / np.float32(width) + eps)
            for d in range(0, whole, 16):
                normed = rounded(out, multiply(load(h, at + d), splat(factor)))
                store(out, t * width + d, multiply(load(weight, d), normed))
            for d in range(whole, width):
                store_one(out, t * width + d, load_one(h, at + d) * factor)
                store_one(out, t * width + d, load_one(out, t * width + d) * load_one(weight, d))
        row = claim(words) * ROWS


@njit
def _rotary(words: int, q: Any, k: Any) -> None:
    w = i64_at(words)
    cos, sin = f32_at(w[3]), f32_at(w[4])
    num_rows, num_heads, num_key_heads, size, half, q_stride, k_stride = w[5], w[6], w[7], w[8], w[9], w[10], w[11]
    row = claim(words) * ROWS
    while row < num_rows:
        for t in range(row, min(row + ROWS, num_rows)):
            for head in range(num_heads):
                _turn(q, t * q_stride + head * size, cos, sin, t * half, half)
            for head in range(num_key_heads):
                _turn(k, t * k_stride + head * size, cos, sin, t * half, half)
        row = claim(words) * ROWS


@njit
def _turn(x: Any, at: int, cos: Any, sin: Any, angle: int, half: int) -> None:
    """One head's pairs, in place."""
    whole = half - half % 16
    for i in range(0, whole, 16):
        a, b, c, s = load(x, at + i), load(x, at + half + i), load(cos, angle + i), load(sin, angle + i)
        store(x, at + i, fma(a, c, multiply(b, multiply(s, splat(np.float32(-1.0))))))
        store(x, at + half + i, fma(b, c, multiply(a, s)))
    for i in range(whole, half):
        first, second = load_one(x, at + i), load_one(x, at + half + i)
        store_one(x, at + i, first * cos[angle + i] - second * sin[angle + i])
        store_one(x, at + half + i, second * cos[angle + i] + first * sin[angle + i])


@njit
def _silu_mul(words: int, gate_up: Any, out: Any) -> None:
    w = i64_at(words)
    num_rows, width, stride = w[3], w[4], w[5]
    whole = width - width % 16
    row = claim(words) * ROWS
    while row < num_rows:
        for t in range(row, min(row + ROWS, num_rows)):
            gate, up = t * stride, t * stride + width
            for d in range(0, whole, 16):
                store(out, t * width + d, multiply(_silu(load(gate_up, gate + d)), load(gate_up, up + d)))
            for d in range(whole, width):
                value = first(_silu(splat(load_one(gate_up, gate + d))))
                store_one(out, t * width + d, value * load_one(gate_up, up + d))
        row = claim(words) * ROWS


@njit
def _silu(x: Any) -> Any:
    return divide(x, add(exp(multiply(x, splat(np.float32(-1.0)))), splat(np.float32(1.0))))
