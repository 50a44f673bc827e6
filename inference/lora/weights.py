"""An adapter's file as the arena wants it: one contiguous slab in the model's dtype, and where everything lies in it.

    site 0: A of its parts, one after the other | B of part 0, transposed | its vectors | B of part 1, transposed | …
    site 1: …  the weights of norms | rows of the embedding | rows of the head

Rank rows only, at their true rank: a part that the adapter leaves alone takes nothing. Vectors, float32 whatever the
model's dtype, are those of the part's `kernels.Vectors`: a gain for DoRA or a norm, a shift for a bias. Rows of an end
are those that differ from the base model's, after the ids of their tokens. Knows the file and the model's sites; does
not know slots or the arena.
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
from adapter.header import Header
from adapter.plan import AdapterPlan, LoraModule, SavedNorm
from inference.lora.base import EMBEDDING, BaseWeights
from inference.lora.dora import embedding_gains, gains
from inference.lora.rows import OwnRows
from inference.lora.tensors import BFLOAT16, Array, read_tensor, widen
from inference.models.sites import SitePart, SiteShape
from kernels import Vectors

ALIGNMENT = 8
"""Elements: the 16 bytes that kernels read at once. A sector of memory holds 16, and a start in its middle costs each
rank row one more: 17 for 16 in decode, 5 for 4 in a stage of prefill, counted in simulation. No model that is served
begins there: widths that are multiples of 16 keep what follows to whole sectors, odd counts of token ids come last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one module's rank rows and vectors begin in the slab, in elements.

    Its rows in the slab are as wide as the model's, in_features and out_features, which an adapter's own vocabulary may
    exceed or not fill: tokens beyond have rows of their own.
    """

    module: LoraModule
    in_features: int
    out_features: int
    a_start: int
    b_start: int
    vectors: Vectors
    vector_start: int


@dataclass(frozen=True, slots=True)
class NormPlace:
    """Where the weight of one norm begins in the slab, in elements."""

    norm: SavedNorm
    vector_start: int


@dataclass(frozen=True, slots=True)
class RowsPlace:
    """Where an end's own rows lie in the slab, in elements: token_ids int32 [K] ascending, and weight [K, width].

    ids_start: None where K is the vocabulary's size, so that all tokens from 0 have a row.
    """

    site_index: int
    vocab_size: int
    count: int
    width: int
    ids_start: int | None
    weight_start: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an adapter's weights lie in its slab, in elements from its beginning; tables as kernels.Site has them.

    a_start: int64, one for each site. ranks: int32, b_start: int64, scales: float32, kinds: int32, vector_start: int64,
    one for each part of each site.
    """

    num_elements: int
    a_start: NDArray[np.int64]
    ranks: NDArray[np.int32]
    b_start: NDArray[np.int64]
    scales: NDArray[np.float32]
    kinds: NDArray[np.int32]
    vector_start: NDArray[np.int64]
    places: tuple[Place, ...]
    norms: tuple[NormPlace, ...]
    rows: tuple[RowsPlace, ...] = ()


def lay_out(
    plan: AdapterPlan, sites: Sequence[SiteShape], dtype: torch.dtype, *, rows: Sequence[OwnRows] = ()
) -> Layout:
    """Gives every module of the plan, and the rows of its ends, a place in a slab of `dtype`.

    Raises AdapterRefused for modules that no site has.
    """
    modules = {module.name: module for module in plan.modules}
    saved = {norm.name: norm for norm in plan.norms}
    num_parts = sum(len(site.parts) for site in sites)
    a_start = np.zeros(len(sites), np.int64)
    ranks, b_start = np.zeros(num_parts, np.int32), np.zeros(num_parts, np.int64)
    scales, kinds = np.zeros(num_parts, np.float32), np.zeros(num_parts, np.int32)
    vector_start = np.zeros(num_parts, np.int64)
    places: list[Place] = []
    norms: list[NormPlace] = []
    end = part = 0
    for index, site in enumerate(sites):
        found = [(part + p, one, modules.pop(one.module)) for p, one in enumerate(site.parts) if one.module in modules]
        part += len(site.parts)
        a_start[index], a = end, end
        end = _aligned(end + sum(module.rank for _, _, module in found) * site.in_features)
        for p, one, module in found:
            ranks[p], b_start[p], scales[p] = module.rank, end, module.scale
            b, end = end, _aligned(end + module.rank * one.width)
            vectors = _vectors(module, one)
            kinds[p], vector_start[p] = vectors, end
            places.append(Place(module, site.in_features, one.width, a, b, vectors, end))
            a += module.rank * site.in_features
            end = _aligned(end + vectors.bit_count() * module.out_features * 4 // dtype.itemsize)
        if (norm := saved.pop(site.parts[0].module, None)) is not None:
            kinds[part - 1], vector_start[part - 1] = Vectors.GAIN, end
            norms.append(NormPlace(norm, end))
            end = _aligned(end + norm.width * 4 // dtype.itemsize)
    if strange := [*modules, *saved]:
        raise AdapterRefused([f"module {name}: adapters do not act there in this release" for name in strange])
    index_of = {site.parts[0].module: index for index, site in enumerate(sites)}
    own: list[RowsPlace] = []
    for these in rows:
        count, ids_start, weight_start = these.token_ids.size, None, end
        if not these.is_whole:
            ids_start, weight_start = end, _aligned(end + count * 4 // dtype.itemsize)
        own.append(RowsPlace(index_of[these.module], these.vocab_size, count, these.width, ids_start, weight_start))
        end = _aligned(weight_start + count * these.width)
    return Layout(end, a_start, ranks, b_start, scales, kinds, vector_start, tuple(places), tuple(norms), tuple(own))


def read_slab(
    path: str | os.PathLike[str],
    header: Header,
    layout: Layout,
    dtype: torch.dtype,
    *,
    base: BaseWeights,
    rows: Sequence[OwnRows] = (),
) -> torch.Tensor:
    """Reads the weights into a new slab [num_elements] of `dtype`, bfloat16 or float32; gaps are zero.

    `rows` are those that were laid out.

    Raises AdapterRefused when a file ends early or a number is too large for `dtype`.
    """
    assert dtype in (torch.bfloat16, torch.float32), f"expected a dtype that models run in, found {dtype}"
    slab: Array = np.zeros(layout.num_elements, BFLOAT16 if dtype is torch.bfloat16 else np.float32)
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            for place in layout.places:
                _read_module(file, header, place, slab, base=base)
            for one in layout.norms:
                weight = widen(read_tensor(file, header, one.norm.key, slab.dtype))  # as the model would round it
                _vectors_at(slab, one.vector_start, weight.size)[:] = weight
            for at, own in zip(layout.rows, rows, strict=True):
                _read_rows(file, header, at, own, slab=slab)
    except (OSError, EOFError) as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error}"]) from error
    return torch.from_numpy(slab).view(dtype)


def _vectors(module: LoraModule, part: SitePart) -> Vectors:
    """The vectors of a targeted part. A gain must not scale the base model's own bias, so a shift puts it right."""
    if module.magnitude_key is not None:
        return Vectors.GAIN | Vectors.SHIFT if part.has_bias else Vectors.GAIN
    return Vectors.SHIFT if module.bias_key is not None else Vectors(0)


def _read_module(file: BinaryIO, header: Header, place: Place, slab: Array, *, base: BaseWeights) -> None:
    module = place.module
    a = read_tensor(file, header, module.a_key, slab.dtype).reshape(module.rank, module.in_features)
    a_size, b_size = module.rank * place.in_features, module.rank * place.out_features
    width = min(place.in_features, module.in_features)
    slab[place.a_start : place.a_start + a_size].reshape(module.rank, -1)[:, :width] = a[:, :width]
    b = read_tensor(file, header, module.b_key, slab.dtype).reshape(module.out_features, module.rank)
    rank_rows = slab[place.b_start : place.b_start + b_size].reshape(module.rank, -1)
    width = min(place.out_features, module.out_features)
    rank_rows[:, :width] = b[:width].T
    if place.vectors:
        vectors = _vectors_at(slab, place.vector_start, place.vectors.bit_count() * module.out_features)
        vectors.reshape(-1, module.out_features)[:] = _read_vectors(file, header, module, a, rank_rows, base=base)


def _read_rows(file: BinaryIO, header: Header, place: RowsPlace, rows: OwnRows, *, slab: Array) -> None:
    if place.ids_start is not None:
        size = place.count * 4 // slab.itemsize
        slab[place.ids_start : place.ids_start + size].view(np.int32)[:] = rows.token_ids
    end = place.weight_start + place.count * place.width
    rows.read(file, header, slab[place.weight_start : end].reshape(place.count, place.width))


def _vectors_at(slab: Array, start: int, size: int) -> NDArray[np.float32]:
    """The slab's `size` float32 numbers from an element on."""
    return slab[start : start + size * 4 // slab.itemsize].view(np.float32)


def _read_vectors(
    file: BinaryIO, header: Header, module: LoraModule, a: Array, b: Array, *, base: BaseWeights
) -> list[NDArray[np.float32]]:
    """The vectors of one module, in the order of `kernels.Vectors`."""
    float32 = np.dtype(np.float32)
    if module.bias_key is not None:
        return [np.float32(module.scale) * widen(read_tensor(file, header, module.bias_key, float32))]
    assert module.magnitude_key is not None, "expected a module with vectors"
    find_gains = embedding_gains if module.name == EMBEDDING else gains
    gain = find_gains(
        base.blocks(module.name),
        widen(a).reshape(module.rank, module.in_features),
        widen(b),
        scale=module.scale,
        magnitude=widen(read_tensor(file, header, module.magnitude_key, float32)),
        module=module.name,
    )
    return [gain, (1 - gain) * base.bias(module.name)] if base.has_bias(module.name) else [gain]


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
