"""Tensors of a safetensors file as numpy arrays: read to memory of one's own, as float32 or as the bits of bfloat16.

Numpy because torch would start a second team of threads beside the engine's, and both would be slower for it.
"""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapter.errors import AdapterRefused
from adapter.header import Header, TensorInfo

Array = NDArray[np.generic]
BYTES_OF = {"BF16": 2, "F16": 2, "F32": 4}
BFLOAT16 = np.dtype(np.int16)  # numpy has no bfloat16: its bits


def read_tensor(file: BinaryIO, header: Header, key: str, dtype: np.dtype[np.generic]) -> Array:
    """A tensor's numbers, flat, as float32 or BFLOAT16. Raises AdapterRefused where one is too large for `dtype`,
    OSError and EOFError."""
    info = header.tensors[key]
    return read_part(file, header, key, 0, info.num_bytes // BYTES_OF[info.dtype], dtype=dtype)


def read_part(file: BinaryIO, header: Header, key: str, begin: int, end: int, *, dtype: np.dtype[np.generic]) -> Array:
    """`read_tensor` for the numbers from `begin` to `end`."""
    info = header.tensors[key]
    size = BYTES_OF[info.dtype]
    raw = np.empty((end - begin) * size, np.uint8)
    position, done = header.data_start + info.begin + begin * size, 0
    while done < raw.size:
        count = os.preadv(file.fileno(), [raw.data[done:]], position + done)
        if count == 0:
            raise EOFError(f"expected {raw.size - done} more bytes of {key!r}, found the end of the file")
        done += count
    return _to_bfloat16(raw, info, key) if dtype == BFLOAT16 else _to_float32(raw, info)


def widen(numbers: Array) -> NDArray[np.float32]:
    """What float32 or BFLOAT16 says, as float32."""
    if numbers.dtype == BFLOAT16:
        return (numbers.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return numbers.view(np.float32)


def narrow(numbers: NDArray[np.float32], dtype: np.dtype[np.generic], *, what: str) -> Array:
    """Float32 numbers as float32 or BFLOAT16: the nearest one of each, the even one of two.

    Raises AdapterRefused, naming `what`, where bfloat16 has none.
    """
    if dtype != BFLOAT16:
        return numbers
    wide = numbers.view(np.uint32)
    bits = ((wide + np.uint32(0x7FFF) + ((wide >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    if ((bits & 0x7F80) == 0x7F80).any():  # every bit of the exponent: infinity
        raise AdapterRefused([f"{what}: expected numbers that bfloat16 can hold, found a larger one"])
    return bits.view(np.int16)


def _to_float32(raw: NDArray[np.uint8], info: TensorInfo) -> NDArray[np.float32]:
    if info.dtype == "BF16":
        return widen(raw.view(BFLOAT16))
    return raw.view(np.float16).astype(np.float32) if info.dtype == "F16" else raw.view(np.float32)


def _to_bfloat16(raw: NDArray[np.uint8], info: TensorInfo, key: str) -> Array:
    if info.dtype == "BF16":
        return raw.view(BFLOAT16)
    return narrow(_to_float32(raw, info), BFLOAT16, what=f"tensor {key!r}")
