"""The 16-bit floats in numpy: bits to values and values to bits, rounded to nearest even."""

from __future__ import annotations

import numpy as np

NAN_BITS = np.uint16(0x7FFF)


def to_values(bits: np.ndarray, kind: str) -> np.ndarray:
    """Bits of bf16 or f16 as float32."""
    if kind == "bf16":
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """Values rounded once to bf16 or f16, as bits."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    exact = np.ascontiguousarray(values, np.float32)
    bits = exact.view(np.uint32)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(exact), NAN_BITS, rounded)


def half_of(packed: np.ndarray, kind: str, half: int) -> np.ndarray:
    """The low (0) or high (1) of two floats packed in 32 bits, as float32."""
    return to_values(((packed >> np.uint32(16 * half)) & np.uint32(0xFFFF)).astype(np.uint16), kind)
