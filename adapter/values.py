"""Whether the numbers in a safetensors file are numbers. Reads the data in chunks; knows nothing of what it means."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from adapter.errors import AdapterRefused
from adapter.header import Header, TensorInfo, shown

CHUNK_BYTES = 2**20  # it and what is made of it stay in a processor's second cache

# An IEEE number is infinite or not a number exactly when every bit of its exponent is set.
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}


def non_finite_tensors(path: str | os.PathLike[str], header: Header) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity, in the order of the data. Raises AdapterRefused."""
    path = Path(path)
    buffers = np.empty((2, CHUNK_BYTES), dtype=np.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(header.data_start)
            return [
                name for name, info in header.tensors.items() if not _is_finite(file.fileno(), info, header, buffers)
            ]
    except OSError as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error.strerror or error}"]) from error
    except EOFError as error:
        raise AdapterRefused([f"{path.name}: {error}"]) from error


def _is_finite(descriptor: int, info: TensorInfo, header: Header, buffers: np.ndarray) -> bool:
    if info.dtype not in _EXPONENTS:
        return True
    word, mask = _EXPONENTS[info.dtype]
    for begin in range(info.begin, info.end, CHUNK_BYTES):
        chunk, exponents = buffers[:, : min(CHUNK_BYTES, info.end - begin)]
        _fill(descriptor, chunk, header.data_start + begin)
        if np.bitwise_and(chunk.view(word), word(mask), out=exponents.view(word)).max() == mask:
            return False
    return True


def _fill(descriptor: int, chunk: np.ndarray, position: int) -> None:
    done = 0
    while done < chunk.size:
        count = os.preadv(descriptor, [chunk.data[done:]], position + done)
        if count == 0:
            raise EOFError(f"expected {chunk.size - done} more bytes at {position + done}, found the end of the file")
        done += count


def describe_non_finite(names: list[str]) -> list[str]:
    """One reason per tensor, for AdapterRefused."""
    return [f"tensor {shown(name)}: expected finite numbers, found NaN or infinity" for name in names]
