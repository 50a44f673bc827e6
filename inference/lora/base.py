"""The base model's weights, for what an adapter's load must know of them: read from its files when it is asked.

The model itself keeps its weights packed for the processor, and a plain copy of all would double its memory. The files
are in the system's page cache while there is room. A block of rows is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from adapter.errors import AdapterRefused
from adapter.header import Header, read_header
from inference.lora.tensors import BFLOAT16, read_part, read_tensor, widen
from inference.models.config import read_config

BLOCK_BYTES = 2**22  # of float32: larger blocks would leave the processor's cache
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


class BaseWeights:
    """The weights in a Hugging Face folder, as float32 numbers that `dtype`, the model's, can hold.

    Raises AdapterRefused from the constructor if a header cannot be read, and from every method if a file cannot.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype: np.dtype[np.generic] = BFLOAT16 if dtype is torch.bfloat16 else np.dtype(np.float32)
        """What tensors of the model's dtype are here."""
        self._files: dict[str, tuple[Path, Header]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            header = read_header(path)
            self._files |= dict.fromkeys(header.tensors, (path, header))
        # Some tied models store their head once more, which nobody reads.
        self.has_tied_head = f"{HEAD}.weight" not in self._files or read_config(folder).has_tied_head

    def shape(self, module: str) -> tuple[int, ...]:
        """Of a module's weight."""
        key = self._key(f"{module}.weight")
        return self._files[key][1].tensors[key].shape

    def blocks(self, module: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """A linear layer's weight in blocks of rows: (first row, numbers [rows, in_features])."""
        key = self._key(f"{module}.weight")
        path, header = self._files[key]
        num_rows, width = header.tensors[key].shape
        step = max(1, BLOCK_BYTES // (4 * width))
        try:
            with path.open("rb", buffering=0) as file:
                for row in range(0, num_rows, step):
                    end = min(row + step, num_rows)
                    part = read_part(file, header, key, row * width, end * width, dtype=self.dtype)
                    yield row, widen(part).reshape(end - row, width)
        except (OSError, EOFError) as error:
            raise AdapterRefused([f"the base model's {path.name}: cannot be read: {error}"]) from error

    def changed_rows(
        self,
        file: BinaryIO,
        header: Header,
        key: str,
        *,
        module: str,
        num_rows: int,
        dtype: np.dtype[np.generic],
    ) -> NDArray[np.int64]:
        """Which of the first rows of an adapter's tensor differ, in `dtype`, from those of a module's weight.

        Raises AdapterRefused if the base model's file cannot be read, OSError and EOFError for the adapter's.
        """
        base_key = self._key(f"{module}.weight")
        path, base_header = self._files[base_key]
        width = base_header.tensors[base_key].shape[1]
        step = max(1, BLOCK_BYTES // (4 * width))
        changed: list[NDArray[np.int64]] = []
        with path.open("rb", buffering=0) as base_file:
            for row in range(0, num_rows, step):
                begin, end = row * width, min(row + step, num_rows) * width
                found = read_part(file, header, key, begin, end, dtype=dtype)
                try:
                    held = read_part(base_file, base_header, base_key, begin, end, dtype=dtype)
                except (OSError, EOFError) as error:
                    raise AdapterRefused([f"the base model's {path.name}: cannot be read: {error}"]) from error
                differs = (found != held).reshape(-1, width).any(axis=1)
                changed.append(np.flatnonzero(differs) + row)
        return np.concatenate(changed) if changed else np.empty(0, np.int64)

    def has_bias(self, module: str) -> bool:
        return f"{module}.bias" in self._files

    def bias(self, module: str) -> NDArray[np.float32]:
        """A linear layer's bias [out_features]."""
        key = self._key(f"{module}.bias")
        path, header = self._files[key]
        try:
            with path.open("rb", buffering=0) as file:
                return widen(read_tensor(file, header, key, self.dtype))
        except (OSError, EOFError) as error:
            raise AdapterRefused([f"the base model's {path.name}: cannot be read: {error}"]) from error

    def _key(self, key: str) -> str:
        if key == f"{HEAD}.weight" and self.has_tied_head:
            key = f"{EMBEDDING}.weight"
        if key not in self._files:
            raise AdapterRefused([f"the base model's folder has no tensor {key!r}"])
        return key
