"""Ops over tensors: LoRA gathered per row, paged attention, and the small ops around them.

Each op is defined in `kernels.reference`, formula and shapes included, and has one fast path per device behind the same
signature. Here the device is chosen, and nothing else.
"""

from __future__ import annotations

from kernels.reference import attend, expand, rms_norm, rotary, shrink, silu_mul, write_kv
from kernels.segments import Segments, group
from kernels.site import Site

__all__ = [
    "Segments",
    "Site",
    "attend",
    "expand",
    "group",
    "rms_norm",
    "rotary",
    "shrink",
    "silu_mul",
    "write_kv",
]
