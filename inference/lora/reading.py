"""Verified files to weights in host memory: the file, hash, check and convert work of a load. Runs on loader threads.

folder ──hash──► is it the manifest? ──► plan, layout ──► finite? ──► slab in the model's dtype
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.keys import with_known_names
from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest, manifest_of_adapter
from adapter.plan import MAX_RANK, plan
from adapter.values import describe_non_finite, non_finite_tensors
from inference.errors import AdapterLoadFailed
from inference.lora.base import BaseWeights
from inference.lora.merging import Linear, Merged, merged_weights
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
    """Reads adapters for one model; keeps no state, so several threads may use it.

    `modules` are the base model's linear layers by name with (out_features, in_features): what an adapter is checked
    against. `base` gives their weights, which DoRA's column norms need. `check_fits` raises AdapterTooLarge for sizes
    in bytes that memory can never hold, before they are read. Slabs `is_page_locked` are such that a CUDA device copies
    from them by itself.
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
    ) -> None:
        self._sites = sites
        self._modules = modules
        self._base = base
        self._dtype = dtype
        self._check_fits = check_fits
        self._max_rank = max_rank
        self._is_page_locked = is_page_locked

    def read(self, files: AdapterFiles) -> Weights:
        """Verifies the files and reads the weights.

        Raises AdapterLoadFailed, with metadata damaged=true if the files are not those of the manifest, and
        AdapterTooLarge.
        """
        assert files.folder is not None, f"expected files, because {files.digest} is not in memory"
        weights = files.folder / WEIGHTS_FILE
        try:
            found = manifest_of_adapter(files.folder)
            _check_manifest(files.manifest, found)
            header = with_known_names(read_header(weights))
            planned = plan(read_config(files.folder / CONFIG_FILE), header, self._modules, max_rank=self._max_rank)
            rows = find_rows(weights, header, planned, base=self._base)
            layout = lay_out(planned, self._sites, self._dtype, rows=rows)
            self._check_fits([layout.num_elements * self._dtype.itemsize])
            if names := non_finite_tensors(weights, header):
                raise AdapterRefused(describe_non_finite(names))
            slab = read_slab(weights, header, layout, self._dtype, base=self._base, rows=rows)
        except AdapterRefused as refused:
            raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused
        if self._is_page_locked:
            slab = slab.pin_memory()
        # The names of modules and tensors have done their work; they would weigh as much as a small adapter.
        layout = replace(layout, places=(), norms=())
        vocab_size = next((one.vocab_size for one in rows), None)
        return Weights(slab, layout, Traits(planned.rank, planned.is_composable and not rows, vocab_size))

    def merge(self, files: AdapterFiles, pack: Callable[[Tensor, Tensor | None], Linear]) -> Merged:
        """An adapter merged into the base model's layers, for minutes where the model is large.

        `pack` makes of a weight [D_out, D_in] and a bias what multiplies by it. Raises AdapterLoadFailed.
        """
        assert files.folder is not None, f"expected files, because {files.digest} is to be read"
        weights = files.folder / WEIGHTS_FILE
        try:
            _check_manifest(files.manifest, manifest_of_adapter(files.folder))
            header = with_known_names(read_header(weights))
            planned = plan(read_config(files.folder / CONFIG_FILE), header, self._modules, max_rank=self._max_rank)
            linears, num_bytes = {}, 0
            for one in merged_weights(weights, header, planned, self._sites, base=self._base):
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
