"""Features to rank where the features are one token: a column of A for each entry, read where it lies."""

from __future__ import annotations

from typing import Any

from numba import njit

from kernels.cpu.vector import bf16_at, claim, f32_at, i32_at, i64_at, load_one, store_one

LOOK_UP_WORDS = "q" * 12

ENTRIES = 64  # of a unit: each reads a number from every rank row, so from as many cache lines


def look_up_bf16(words: int) -> None:
    """kernels.look_up where the arena is bfloat16."""
    w = i64_at(words)
    _look_up(words, bf16_at(w[2]))


def look_up_f32(words: int) -> None:
    """kernels.look_up where the arena is float32."""
    w = i64_at(words)
    _look_up(words, f32_at(w[2]))


@njit
def _look_up(words: int, arena: Any) -> None:
    w = i64_at(words)
    token_ids, s, rows, segment_of, slots = i64_at(w[1]), f32_at(w[3]), i32_at(w[4]), i32_at(w[5]), i32_at(w[6])
    a_start, ranks = i64_at(w[7]), i32_at(w[8])
    num_entries, num_parts, d_in, s_stride = w[9], w[10], w[11], w[12]
    m_begin = claim(words) * ENTRIES
    while m_begin < num_entries:
        for m in range(m_begin, min(m_begin + ENTRIES, num_entries)):
            if segment_of[m] < 0:
                continue  # padding
            slot = slots[segment_of[m]]
            rank = 0
            for part in range(num_parts):
                rank += ranks[slot * num_parts + part]
            at = a_start[slot] + token_ids[rows[m]]
            for r in range(rank):
                store_one(s, m * s_stride + r, load_one(arena, at + r * d_in))
        m_begin = claim(words) * ENTRIES
