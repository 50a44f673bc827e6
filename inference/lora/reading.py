"""Verified files to weights in host memory: the file, hash, check and convert work of a load. Runs on loader threads.

folder ──► plan, layout ──► finite? ──► slab in the model's dtype ──┬─► weights
   └─────► hash, meanwhile ──► is it the manifest? ─────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adapter.errors import AdapterRefused
from adapter.manifest import WEIGHTS_FILE, Manifest, manifest_of_adapter
from adapter.plan import MAX_RANK
from adapter.values import describe_non_finite, non_finite_tensors
from inference.errors import AdapterLoadFailed
from inference.lora.base import BaseWeights
from inference.lora.merging import Linear, Merged, merged_weights
from inference.lora.plans import Plans
from inference.lora.priority import stand_back
from inference.lora.rows import find_rows
from inference.lora.weights import Layout, lay_out, read_slab
from inference.models.sites import SiteShape


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What an adapter must be, and a private copy of its files; None for one that is known to be in memory."""

    manifest: Manifest
    folder: Path | None

    @property
    def digest(self) -> str:
        return self.manifest.digest


@dataclass(frozen=True, slots=True)
class Traits:
    """What is remembered of an adapter's plan."""

    rank: int
    is_composable: bool
    vocab_size: int | None = None
    """Tokens that the adapter knows; None for those of the base model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """An adapter read and checked: its slab in host memory, one copy away from the arena."""

    slab: Tensor
    layout: Layout
    traits: Traits

    @property
    def num_bytes(self) -> int:
        return self.slab.numel() * self.slab.itemsize


class Reader:
    """Reads adapters for one model; several threads may use it.

    `modules` are the base model's linear layers by name with (out_features, in_features): what an adapter is checked
    against. `base` gives their weights, which DoRA's column norms need. `check_fits` raises AdapterTooLarge for sizes
    in bytes that memory can never hold, before they are read. Slabs `is_page_locked` are such that a CUDA device copies
    from them by itself. `niceness` is that of the thread which hashes, see `stand_back`.
    """

    def __init__(
        self,
        *,
        sites: Sequence[SiteShape],
        modules: Mapping[str, tuple[int, int]],
        base: BaseWeights,
        dtype: torch.dtype,
        check_fits: Callable[[Sequence[int]], None],
        max_rank: int = MAX_RANK,
        is_page_locked: bool = False,
        niceness: int = 0,
    ) -> None:
        self._sites = sites
        self._plans = Plans(sites=sites, modules=modules, dtype=dtype, max_rank=max_rank)
        self._base = base
        self._dtype = dtype
        self._check_fits = check_fits
        self._is_page_locked = is_page_locked
        self._niceness = niceness

    def read(self, files: AdapterFiles) -> Weights:
        """Verifies the files and reads the weights.

        Raises AdapterLoadFailed, with metadata damaged=true if the files are not those of the manifest, and
        AdapterTooLarge.
        """
        assert files.folder is not None, f"expected files, because {files.digest} is not in memory"
        try:
            with ThreadPoolExecutor(1, "adapter-hasher", initializer=stand_back, initargs=(self._niceness,)) as hasher:
                manifest = hasher.submit(manifest_of_adapter, files.folder)
                try:
                    return self._read(files.folder)
                finally:  # of other files than those, nothing is used and nothing is told
                    _check_manifest(files.manifest, manifest.result())
        except AdapterRefused as refused:
            raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused

    def _read(self, folder: Path) -> Weights:
        weights, planned = folder / WEIGHTS_FILE, self._plans.of(folder)
        rows = find_rows(weights, planned.header, planned.plan, base=self._base)
        layout = planned.layout or lay_out(planned.plan, self._sites, self._dtype, rows=rows)
        self._check_fits([layout.num_elements * self._dtype.itemsize])
        if names := non_finite_tensors(weights, planned.header):
            raise AdapterRefused(describe_non_finite(names))
        slab = read_slab(weights, planned.header, layout, self._dtype, base=self._base, rows=rows)
        if self._is_page_locked:
            slab = slab.pin_memory()
        # The names of modules and tensors have done their work; they would weigh as much as a small adapter.
        layout = replace(layout, places=(), norms=())
        vocab_size = next((one.vocab_size for one in rows), None)
        return Weights(slab, layout, Traits(planned.plan.rank, planned.plan.is_composable and not rows, vocab_size))

    def merge(self, files: AdapterFiles, pack: Callable[[Tensor, Tensor | None], Linear]) -> Merged:
        """An adapter merged into the base model's layers, for minutes where the model is large.

        `pack` makes of a weight [D_out, D_in] and a bias what multiplies by it. Raises AdapterLoadFailed.
        """
        assert files.folder is not None, f"expected files, because {files.digest} is to be read"
        weights = files.folder / WEIGHTS_FILE
        try:
            _check_manifest(files.manifest, manifest_of_adapter(files.folder))
            planned = self._plans.of(files.folder)
            linears, num_bytes = {}, 0
            for one in merged_weights(weights, planned.header, planned.plan, self._sites, base=self._base):
                num_bytes += one.weight.numel() * one.weight.itemsize
                linears[one.site_index] = pack(one.weight, one.bias)
        except AdapterRefused as refused:
            raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused
        return Merged(files.digest, linears, num_bytes)


def _check_manifest(expected: Manifest, found: Manifest) -> None:
    """Raises AdapterLoadFailed, with metadata damaged=true, unless every file is the one of the manifest."""
    reasons = []
    for file in expected.files:
        actual = found.file(file.path)
        if actual != file:
            shown = f"{actual.digest} of {actual.size_bytes} bytes" if actual else "no such file"
            reasons.append(f"{file.path}: expected {file.digest} of {file.size_bytes} bytes, found {shown}")
    reasons += [f"{file.path}: expected no such file" for file in found.files if expected.file(file.path) is None]
    if reasons:
        raise AdapterLoadFailed(
            f"the files are not those of {expected.digest}: {reasons[0]}",
            reasons=tuple(reasons),
            metadata={"damaged": "true", "digest": expected.digest},
        )
