"""What an adapter's header and configuration mean for one model: its plan and its layout, remembered by their bytes.

Adapters of one training script have the same tensors in the same places, and a fleet of thousands has few scripts.
Parsing, checking and planning is Python, which a step has to wait for; looking the same bytes up again is not.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapter.config import PeftConfig, read_config
from adapter.header import Header, read_header
from adapter.keys import with_known_names
from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE
from adapter.plan import AdapterPlan, plan
from inference.lora.weights import Layout, lay_out
from inference.models.sites import SiteShape

MAX_KEPT = 32  # each takes up to a megabyte
MAX_KEPT_HEADER_BYTES = 2**18  # a larger one is rare, and its parsing is not what takes long


@dataclass(frozen=True, slots=True)
class Planned:
    """An adapter understood. `layout` is None where its numbers decide too, because it has ends of its own."""

    config: PeftConfig
    header: Header
    plan: AdapterPlan
    layout: Layout | None


class Plans:
    """Plans adapters for one model; may be used from several threads."""

    def __init__(
        self,
        *,
        sites: Sequence[SiteShape],
        modules: Mapping[str, tuple[int, int]],
        dtype: torch.dtype,
        max_rank: int,
    ) -> None:
        self._sites = sites
        self._modules = modules
        self._dtype = dtype
        self._max_rank = max_rank
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, int], Planned] = OrderedDict()  # least recently used first

    def of(self, folder: Path) -> Planned:
        """What the adapter in a folder is. Raises AdapterRefused with every reason."""
        config, key = read_config(folder / CONFIG_FILE), _key(folder / WEIGHTS_FILE)
        found = self._find(key)
        if found is None or found.config != config:
            header = with_known_names(read_header(folder / WEIGHTS_FILE))
            planned = plan(config, header, self._modules, max_rank=self._max_rank)
            layout = None if planned.ends else lay_out(planned, self._sites, self._dtype)
            found = Planned(config, header, planned, layout)
            self._keep(key, found)
        return found

    def _find(self, key: tuple[bytes, int] | None) -> Planned | None:
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def _keep(self, key: tuple[bytes, int] | None, planned: Planned) -> None:
        if key is not None:
            with self._lock:
                self._kept[key] = planned
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)


def _key(path: Path) -> tuple[bytes, int] | None:
    """A file's header as it is, and the file's size, which decide all that `read_header` finds; None for large ones."""
    try:
        with path.open("rb") as file:
            lead = file.read(8)
            length = int.from_bytes(lead, "little")
            if len(lead) < 8 or length > MAX_KEPT_HEADER_BYTES:
                return None
            return file.read(length), os.fstat(file.fileno()).st_size
    except OSError:
        return None  # read_header says what is wrong
