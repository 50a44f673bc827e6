"""Arrays of the host to tensors of a device, all of a step's by one copy that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT_BYTES = 16  # so that a tensor of any dtype, and a kernel's vector, may begin where an array does

Array = NDArray[np.generic]


def num_bytes(arrays: Sequence[Array]) -> int:
    """What `send` needs for these arrays."""
    return sum(_room(array) for array in arrays)


def send(arrays: Sequence[Array], device: torch.device | str, *, into: Tensor | None = None) -> list[Tensor]:
    """Dense tensors of the arrays' dtypes, shapes and values, one after the other in memory of their own or in `into`.

    `into` is uint8 [at least num_bytes(arrays)] on the device: arrays of the same dtypes and shapes come to the same
    places of it. On a CUDA device the copy goes from page-locked memory to the current stream; torch gives that memory
    to nobody else before the copy is done. Mutates: into.
    """
    starts = list(accumulate(map(_room, arrays), initial=0))
    here = torch.device(device)
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=here.type == "cuda")
    words = packed.numpy()
    for start, array in zip(starts, arrays, strict=False):
        words[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if into is None:
        memory = packed.to(here, non_blocking=True)
    else:
        assert into.device == here, f"expected memory on {here}, found it on {into.device}"
        memory = into[: starts[-1]].copy_(packed, non_blocking=True)
    return [
        memory[start : start + array.nbytes].view(_dtype(array)).view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


def _dtype(array: Array) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


def _room(array: Array) -> int:
    return -(-array.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
