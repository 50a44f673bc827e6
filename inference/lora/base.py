"""The base model's weights, for what an adapter's load must know of them: read from its files when it is asked.

The model itself keeps its weights packed for the processor, and a plain copy of all would double its memory. The files
are in the system's page cache while there is room. A block of rows is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapter.errors import AdapterRefused
from adapter.header import Header, read_header
from adapter.plan import BaseCopy
from inference.lora.tensors import BFLOAT16, read_part, read_tensor, widen

BLOCK_BYTES = 2**22  # of float32: larger blocks would leave the processor's cache
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class BaseWeights:
    """The weights in a Hugging Face folder, as float32 numbers that `dtype`, the model's, can hold.

    Raises AdapterRefused from the constructor if a header cannot be read, and from every method if a file cannot.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._dtype = BFLOAT16 if dtype is torch.bfloat16 else np.dtype(np.float32)
        self._files: dict[str, tuple[Path, Header]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            header = read_header(path)
            self._files |= dict.fromkeys(header.tensors, (path, header))

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
                    part = read_part(file, header, key, row * width, end * width, dtype=self._dtype)
                    yield row, widen(part).reshape(end - row, width)
        except (OSError, EOFError) as error:
            raise AdapterRefused([f"the base model's {path.name}: cannot be read: {error}"]) from error

    def check_copy(self, path: Path, header: Header, copy: BaseCopy) -> None:
        """Raises AdapterRefused unless an adapter's copy of a weight says what the base model's says.

        Both are compared as bfloat16, whatever a trainer kept them in: a trained one differs in that too.
        """
        key = self._key(f"{copy.module}.weight")
        base_path, base_header = self._files[key]
        num_rows, width = copy.shape
        step = max(1, BLOCK_BYTES // (4 * width)) * width
        try:
            with path.open("rb", buffering=0) as file, base_path.open("rb", buffering=0) as base_file:
                for begin in range(0, num_rows * width, step):
                    end = min(begin + step, num_rows * width)
                    found = read_part(file, header, copy.key, begin, end, dtype=BFLOAT16)
                    if not np.array_equal(found, read_part(base_file, base_header, key, begin, end, dtype=BFLOAT16)):
                        raise AdapterRefused(
                            [f"tensor {copy.key!r}: expected a copy of the base model's, found one that was changed"]
                        )
        except (OSError, EOFError) as error:
            raise AdapterRefused([f"the copy of {copy.module}: cannot be read: {error}"]) from error

    def has_bias(self, module: str) -> bool:
        return f"{module}.bias" in self._files

    def bias(self, module: str) -> NDArray[np.float32]:
        """A linear layer's bias [out_features]."""
        key = self._key(f"{module}.bias")
        path, header = self._files[key]
        try:
            with path.open("rb", buffering=0) as file:
                return widen(read_tensor(file, header, key, self._dtype))
        except (OSError, EOFError) as error:
            raise AdapterRefused([f"the base model's {path.name}: cannot be read: {error}"]) from error

    def _key(self, key: str) -> str:
        if key == HEAD and key not in self._files:
            key = EMBEDDING  # the head is tied
        if key not in self._files:
            raise AdapterRefused([f"the base model's folder has no tensor {key!r}"])
        return key
