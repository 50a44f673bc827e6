"""The header of a safetensors file, read and checked before anything else looks at the file.

Knows the container: names, dtypes, shapes and where the bytes lie. Does not know LoRA, PEFT or any model, and never
reads tensor data. Everything a stranger can put into the header is bounded before it is parsed.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian N, N bytes of JSON, then the data, where the
JSON maps each name to {"dtype", "shape", "data_offsets": [begin, end]} and `__metadata__` to strings.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from adapter.errors import AdapterRefused
from adapter.large_header import LargeHeader, NotCanonical

# No header may cost more than 64 MiB or a second before it is refused, and these bounds together keep it so. 80 000
# tensors are A and B of every expert's matrix in a mixture of 48 layers with 256 experts; an entry has 150 bytes.
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 80_000
# JSON grows in memory, so a header beyond any of these is read by `adapter.large_header` and no JSON parser. Braces,
# brackets, commas and colons bound how many objects the text can become; a matrix needs 5 commas and 4 colons.
MAX_PARSED_BYTES = 6 * 2**20
MAX_PARSED_TENSORS = 40_000
MAX_COMMAS = 5 * MAX_PARSED_TENSORS + 1024
MAX_COLONS = 4 * MAX_PARSED_TENSORS + 1024
MAX_DIMS = 8
# Whoever has more wrong tensors than this has learnt enough.
MAX_REASONS = 100
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `begin` and `end` count bytes from the header's `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length of the tensor's data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says it holds, in the order of the data."""

    tensors: dict[str, TensorInfo]
    data_start: int
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads and checks the header. Raises AdapterRefused with what was expected and what was found."""
    path = Path(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise AdapterRefused([f"{path.name}: expected a .safetensors file, found a pickle, which can run code"])
    try:
        with path.open("rb") as file:
            return _read(file, path.name)
    except OSError as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:  # a path with a NUL byte
        raise AdapterRefused([f"{path.name!r}: cannot be read: {error}"]) from error


def parse_json(raw: bytes, *, what: str) -> Any:
    """Parses JSON of a stranger: UTF-8, no repeated keys, no NaN or Infinity. Raises AdapterRefused.

    The caller bounds the size; depth is bounded by the interpreter.
    """

    def no_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {shown(key)} comes twice")
            found[key] = value
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(raw.decode(), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except RecursionError as error:
        raise AdapterRefused([f"{what}: expected plain JSON, found it nested too deep"]) from error
    except ValueError as error:
        raise AdapterRefused([f"{what}: expected JSON, found something else: {error}"]) from error


def shown(name: str) -> str:
    """A stranger's string, safe and short enough for a message."""
    return repr(name if len(name) <= 120 else name[:119] + "…")


def _read(file: BinaryIO, name: str) -> Header:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise AdapterRefused([f"{name}: expected a regular file"])
    size = status.st_size
    lead = file.read(8)
    if len(lead) < 8:
        raise AdapterRefused([f"{name}: expected at least 8 bytes, found {len(lead)}: the file is truncated"])
    # A length may begin as a pickle does (640 is 80 02 in hex), but only safetensors goes on with a brace.
    looks_pickled = lead[:2] == b"PK" or (lead[0] == 0x80 and lead[1] in range(2, 6))
    if looks_pickled and file.read(1) != b"{":
        raise AdapterRefused([f"{name}: expected safetensors, found a pickle, which can run code"])
    length = int.from_bytes(lead, "little")
    if length > MAX_HEADER_BYTES:
        raise AdapterRefused([f"{name}: expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}"])
    if 8 + length > size:
        raise AdapterRefused([f"{name}: expected {length} header bytes, found {size - 8}: the file is truncated"])
    reasons: list[str] = []
    whole = _parse_whole(file, length, name, reasons)
    tensors, metadata = whole if whole is not None else _parse_large(file, length, name, reasons)
    if not reasons:
        tensors = _in_order(tensors)
        _check_layout(tensors, size - 8 - length, reasons)
    if reasons:
        raise AdapterRefused([f"{name}: {reason}" for reason in reasons])
    return Header(tensors=tensors, data_start=8 + length, metadata=metadata)


_Found = tuple[dict[str, TensorInfo], dict[str, str]]
"""Tensors and metadata."""


def _parse_whole(file: BinaryIO, length: int, name: str, reasons: list[str]) -> _Found | None:
    """By a JSON parser; None when the header is too large for that."""
    if length > MAX_PARSED_BYTES:
        return None
    file.seek(8)
    raw = file.read(length)
    if raw[:1] != b"{":
        raise AdapterRefused([f"{name}: expected the header to begin with '{{', found {raw[:1]!r}"])
    most = {b"{": MAX_PARSED_TENSORS + 2, b"[": 2 * MAX_PARSED_TENSORS, b",": MAX_COMMAS, b":": MAX_COLONS}
    if any(raw.count(sign) > count for sign, count in most.items()):
        return None
    entries = parse_json(raw, what=f"{name}: header")
    if not isinstance(entries, dict):
        raise AdapterRefused([f"{name}: expected the header to be an object"])
    metadata = _parse_metadata(entries.pop("__metadata__", {}), reasons)
    return _parse_tensors(entries, reasons), metadata


def _parse_large(file: BinaryIO, length: int, name: str, reasons: list[str]) -> _Found:
    """Entry by entry. Raises AdapterRefused when the text is not as safetensors writes it."""
    file.seek(8)
    header = LargeHeader(file, length)
    tensors: dict[str, TensorInfo] = {}
    try:
        metadata = _parse_metadata(parse_json(header.metadata(), what=f"{name}: __metadata__"), reasons)
        for entry in header.entries():
            if entry.name in tensors:
                raise NotCanonical(f"the key {shown(entry.name)} comes twice")
            if len(tensors) == MAX_TENSORS:
                raise AdapterRefused([f"{name}: expected at most {MAX_TENSORS} tensors, found more"])
            info = _check_tensor(entry.name, entry.dtype, entry.shape, (entry.begin, entry.end), reasons)
            if info is not None:
                tensors[entry.name] = info
            elif len(reasons) >= MAX_REASONS:
                break
    except NotCanonical as error:
        what = f"a header of more than {MAX_PARSED_BYTES} bytes or {MAX_PARSED_TENSORS} tensors"
        raise AdapterRefused([f"{name}: {what}: {error}"]) from error
    return tensors, metadata


def _parse_metadata(found: object, reasons: list[str]) -> dict[str, str]:
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    reasons.append("__metadata__: expected strings by name")
    return {}


def _parse_tensors(entries: dict[str, object], reasons: list[str]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for key, entry in entries.items():
        info = _parse_tensor(key, entry, reasons)
        if info is not None:
            tensors[key] = info
        elif len(reasons) >= MAX_REASONS:
            break
    return tensors


def _parse_tensor(name: str, entry: object, reasons: list[str]) -> TensorInfo | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        reasons.append(f"tensor {shown(name)}: expected dtype, shape and data_offsets, and nothing else")
        return None
    return _check_tensor(name, entry["dtype"], entry["shape"], entry["data_offsets"], reasons)


def _check_tensor(name: str, dtype: object, shape: object, offsets: object, reasons: list[str]) -> TensorInfo | None:
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        found = shown(dtype) if isinstance(dtype, str) else type(dtype).__name__
        reasons.append(f"tensor {shown(name)}: expected a dtype of safetensors, found {found}")
        return None
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        reasons.append(f"tensor {shown(name)}: expected a shape of at most {MAX_DIMS} sizes from 0 to 2^48")
        return None
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        reasons.append(f"tensor {shown(name)}: expected data_offsets [begin, end] with begin <= end")
        return None
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        reasons.append(
            f"tensor {shown(name)}: expected {expected} bytes for {dtype} {list(shape)}, "
            f"found {offsets[1] - offsets[0]}"
        )
        return None
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(found: object) -> TypeGuard[Sequence[int]]:
    # No file is larger than 2^48 bytes; bool is an int in Python and not a size.
    return isinstance(found, list | tuple) and all(type(one) is int and 0 <= one <= 2**48 for one in found)


def _in_order(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """By where their data lies, as safetensors writes them anyway."""
    places = [(info.begin, info.end) for info in tensors.values()]
    if all(one <= other for one, other in pairwise(places)):
        return tensors
    return {name: tensors[name] for name in sorted(tensors, key=lambda name: (tensors[name].begin, tensors[name].end))}


def _check_layout(tensors: dict[str, TensorInfo], data_bytes: int, reasons: list[str]) -> None:
    """The tensors, in order, must cover the data exactly, one after the other."""
    position = 0
    for name, info in tensors.items():
        if info.begin != position:
            how = "overlaps the one before" if info.begin < position else "leaves a gap"
            reasons.append(f"tensor {shown(name)}: expected to begin at {position}, found {info.begin}: it {how}")
            return
        position = info.end
    if position != data_bytes:
        how = "the file is truncated" if position > data_bytes else "bytes belong to no tensor"
        reasons.append(f"expected {position} bytes of data, found {data_bytes}: {how}")
