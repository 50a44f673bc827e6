"""An adapter's file as the arena wants it: one contiguous slab in the model's dtype, and where everything lies in it.

    site 0: A of its parts, one after the other | B of part 0, transposed | B of part 1, transposed | …  site 1: …

Rank rows only, at their true rank: a part that the adapter leaves alone takes nothing. Knows the file and the model's
sites; does not know slots or the arena. Everything here is numpy on the caller's thread, because torch would start a
second team of threads beside the engine's, and both would be slower for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from adapter.errors import AdapterRefused
from adapter.header import Header, TensorInfo
from adapter.plan import AdapterPlan, LoraModule
from inference.models.sites import SiteShape

ALIGNMENT = 8  # elements; the kernels read 16 bytes of bfloat16 at once
Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one module's rank rows begin in the slab, in elements."""

    module: LoraModule
    a_start: int
    b_start: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an adapter's weights lie in its slab, in elements from its beginning; tables as kernels.Site has them.

    a_start: int64, one for each site. ranks: int32, b_start: int64, scales: float32, one for each part of each site.
    """

    num_elements: int
    a_start: NDArray[np.int64]
    ranks: NDArray[np.int32]
    b_start: NDArray[np.int64]
    scales: NDArray[np.float32]
    places: tuple[Place, ...]


def lay_out(plan: AdapterPlan, sites: Sequence[SiteShape]) -> Layout:
    """Gives every module of the plan its place. Raises AdapterRefused for modules that no site has."""
    modules = {module.name: module for module in plan.modules}
    num_parts = sum(len(site.parts) for site in sites)
    a_start = np.zeros(len(sites), np.int64)
    ranks, b_start = np.zeros(num_parts, np.int32), np.zeros(num_parts, np.int64)
    scales = np.zeros(num_parts, np.float32)
    places: list[Place] = []
    end = part = 0
    for index, site in enumerate(sites):
        found = [(part + p, modules.pop(one.module)) for p, one in enumerate(site.parts) if one.module in modules]
        part += len(site.parts)
        a_start[index], a = end, end
        end = _aligned(end + sum(module.rank for _, module in found) * site.in_features)
        for p, module in found:
            ranks[p], b_start[p], scales[p] = module.rank, end, module.scale
            places.append(Place(module, a_start=a, b_start=end))
            a += module.rank * module.in_features
            end = _aligned(end + module.rank * module.out_features)
    if modules:
        raise AdapterRefused([f"module {name}: adapters do not act there in this release" for name in modules])
    return Layout(end, a_start, ranks, b_start, scales, tuple(places))


def read_slab(path: str | os.PathLike[str], header: Header, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """Reads the weights into a new slab [num_elements] of `dtype`, bfloat16 or float32; gaps are zero.

    Raises AdapterRefused when the file ends early or a number is too large for `dtype`.
    """
    assert dtype in (torch.bfloat16, torch.float32), f"expected a dtype that models run in, found {dtype}"
    slab: Array = np.zeros(layout.num_elements, np.int16 if dtype is torch.bfloat16 else np.float32)
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            for place in layout.places:
                _read_module(file, header, place, slab)
    except (OSError, EOFError) as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error}"]) from error
    return torch.from_numpy(slab).view(dtype)


def _read_module(file: BinaryIO, header: Header, place: Place, slab: Array) -> None:
    module = place.module
    a = _read(file, header, module.a_key, slab.dtype)
    slab[place.a_start : place.a_start + a.size] = a
    b = _read(file, header, module.b_key, slab.dtype)
    rank_rows = slab[place.b_start : place.b_start + b.size].reshape(module.rank, module.out_features)
    rank_rows[:] = b.reshape(module.out_features, module.rank).T


def _read(file: BinaryIO, header: Header, key: str, dtype: np.dtype[np.generic]) -> Array:
    """A tensor's numbers as float32 or, where `dtype` is int16, as the bits of bfloat16."""
    info = header.tensors[key]
    raw = np.empty(info.num_bytes, np.uint8)
    file.seek(header.data_start + info.begin)
    done = 0
    while done < raw.size:
        count = os.readv(file.fileno(), [raw.data[done:]])
        if count == 0:
            raise EOFError(f"expected {raw.size - done} more bytes of {key!r}, found the end of the file")
        done += count
    if dtype == np.int16:
        return _to_bfloat16(raw, info, key)
    return _to_float32(raw, info)


def _to_float32(raw: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
    if info.dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view(np.float16).astype(np.float32) if info.dtype == "F16" else raw.view(np.float32)


def _to_bfloat16(raw: NDArray[np.uint8], info: TensorInfo, key: str) -> NDArray[np.int16]:
    """The nearest bfloat16 of each number, the even one of two, as bits."""
    if info.dtype == "BF16":
        return raw.view(np.int16)
    wide = _to_float32(raw, info).view(np.uint32)
    bits = ((wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    if ((bits & 0x7F80) == 0x7F80).any():  # every bit of the exponent: infinity
        raise AdapterRefused([f"tensor {key!r}: expected numbers that bfloat16 can hold, found a larger one"])
    return bits.view(np.int16)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
