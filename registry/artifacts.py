"""Whether an uploaded artifact is an adapter for its base model: asks the format package, gathers all its reasons."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapter import errors as adapter_errors
from adapter.config import PeftConfig, read_config
from adapter.header import PICKLE_SUFFIXES, Header, read_header
from adapter.keys import with_known_names
from adapter.manifest import ADAPTER_FILES, CONFIG_FILE, NEEDED_FILES, PROBE_FILE, WEIGHTS_FILE, Manifest
from adapter.plan import plan
from adapter.probe import read_probes
from adapter.values import describe_non_finite, non_finite_tensors
from registry.blobs import BlobStore
from registry.errors import AdapterRefused


@dataclass(frozen=True, slots=True)
class Artifact:
    """What the registry keeps of a checked artifact."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    features: tuple[str, ...]


async def check_artifact(blobs: BlobStore, manifest: Manifest, shapes: Mapping[str, tuple[int, int]]) -> Artifact:
    """Reads the files, in a thread. `shapes` gives the base model's (out_features, in_features) by module.

    Raises AdapterRefused with every reason, and what `BlobStore.check_out` raises.
    """
    _check_files(manifest)
    return await asyncio.to_thread(_check, blobs, manifest, shapes)


def _check_files(manifest: Manifest) -> None:
    """The two files of an adapter, those that it may have, and nothing that would be stored and never looked at."""
    found = {file.path for file in manifest.files}
    reasons = [f"expected {name}, found no such file" for name in NEEDED_FILES if name not in found]
    for path in sorted(found.difference(ADAPTER_FILES)):
        if Path(path).suffix in PICKLE_SUFFIXES:
            reasons.append(f"{path}: expected {WEIGHTS_FILE}, found a pickle, which can run code")
        else:
            reasons.append(f"{path}: not a file of an adapter")
    if reasons:
        raise _refused(reasons)


def _check(blobs: BlobStore, manifest: Manifest, shapes: Mapping[str, tuple[int, int]]) -> Artifact:
    with blobs.check_out(manifest) as folder:
        config, header, reasons = _read(folder)
        if manifest.file(PROBE_FILE) is not None:
            reasons += _problems_of_probes(folder)
        if config is None or header is None or reasons:
            raise _refused(reasons)
        try:
            planned = plan(config, header, shapes)
            reasons = describe_non_finite(non_finite_tensors(folder / WEIGHTS_FILE, header))
        except adapter_errors.AdapterRefused as refused:
            raise _refused(list(refused.reasons)) from refused
        if reasons:
            raise _refused(reasons)
    return Artifact(planned.rank, config.alpha, planned.target_modules, planned.features)


def _read(folder: Path) -> tuple[PeftConfig | None, Header | None, list[str]]:
    """Both files, and what is wrong with either."""
    config, header = None, None
    reasons: list[str] = []
    try:
        config = read_config(folder / CONFIG_FILE)
    except adapter_errors.AdapterRefused as refused:
        reasons.extend(refused.reasons)
    try:
        header = with_known_names(read_header(folder / WEIGHTS_FILE))
    except adapter_errors.AdapterRefused as refused:
        reasons.extend(refused.reasons)
    return config, header, reasons


def _problems_of_probes(folder: Path) -> tuple[str, ...]:
    try:
        read_probes(folder / PROBE_FILE)
    except adapter_errors.AdapterRefused as refused:
        return refused.reasons
    return ()


def _refused(reasons: list[str]) -> AdapterRefused:
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return AdapterRefused(f"the adapter is refused: {reasons[0]}{more}", reasons=tuple(reasons))
