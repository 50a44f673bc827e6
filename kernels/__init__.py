"""Ops over tensors: LoRA gathered per row, paged attention, and the small ops around them.

Each op is defined in `kernels.reference`, formula and shapes included, and has one fast path per device behind the same
signature. Here the device is chosen, and nothing else. Either compiles its path once: see `warm_up`. What shrink gives
is for expand on the same device: on CUDA it is sums over slices of D_in, which expand adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from kernels.device import choose_device
from kernels.errors import KernelError, UnsupportedDevice, UnsupportedTensor
from kernels.segments import Segments, group
from kernels.site import MAX_RANK, Affine, Site, Vectors

__all__ = [
    "MAX_RANK",
    "Affine",
    "KernelError",
    "Segments",
    "Site",
    "UnsupportedDevice",
    "UnsupportedTensor",
    "Vectors",
    "attend",
    "choose_device",
    "expand",
    "group",
    "look_up",
    "rescale",
    "rms_norm",
    "rotary",
    "shrink",
    "silu_mul",
    "warm_up",
    "write_kv",
]


def warm_up(device: str = "cpu", dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32)) -> None:
    """Compiles every op for a device, or loads what an earlier process compiled, so that no request waits for it."""
    for dtype in dtypes:
        _ops(device).warm_up(dtype)


def shrink(x: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """s[m] = x[rows[m]] · Aᵀ: see `kernels.reference.shrink`."""
    s: Tensor = _ops(x.device.type).shrink(x, arena, site, segments, max_rank=max_rank)
    return s


def expand(s: Tensor, arena: Tensor, site: Site, segments: Segments, y: Tensor) -> None:
    """y[rows[m]] += weight · scale · s[m] · Bᵀ, in place: see `kernels.reference.expand`."""
    _ops(y.device.type).expand(s, arena, site, segments, y)


def look_up(token_ids: Tensor, arena: Tensor, site: Site, segments: Segments, *, max_rank: int) -> Tensor:
    """s[m] = A[:, token_ids[rows[m]]]: see `kernels.reference.look_up`."""
    s: Tensor = _ops(token_ids.device.type).look_up(token_ids, arena, site, segments, max_rank=max_rank)
    return s


def rescale(y: Tensor, arena: Tensor, affine: Affine, segments: Segments) -> None:
    """y[rows[m]] = gain · y[rows[m]] + weight · shift, in place: see `kernels.reference.rescale`."""
    _ops(y.device.type).rescale(y, arena, affine, segments)


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, index: Tensor) -> None:
    """Scatters keys and values into the cache: see `kernels.reference.write_kv`."""
    _ops(k.device.type).write_kv(k, v, k_cache, v_cache, index)


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
    """Causal attention over paged blocks: see `kernels.reference.attend`."""
    out: Tensor = _ops(q.device.type).attend(
        q,
        k_cache,
        v_cache,
        query_starts=query_starts,
        context_lens=context_lens,
        block_tables=block_tables,
        scale=scale,
        window=window,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """weight · h / rms(h), where h = residual += x if one is given: see `kernels.reference.rms_norm`."""
    out: Tensor = _ops(x.device.type).rms_norm(x, weight, eps, residual)
    return out


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns q and k by their positions, in place: see `kernels.reference.rotary`."""
    _ops(q.device.type).rotary(q, k, cos, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up: see `kernels.reference.silu_mul`."""
    out: Tensor = _ops(gate_up.device.type).silu_mul(gate_up)
    return out


@cache
def _ops(device: str) -> ModuleType:
    if device == "cpu":
        from kernels import cpu  # numba takes half a second to import, and only a CPU needs it

        return cpu
    if device == "cuda":
        from kernels import cuda

        return cuda
    raise UnsupportedDevice(f"expected tensors on the device 'cpu' or 'cuda', found '{device}'")
