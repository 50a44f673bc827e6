"""The header of a file with very many tensors, read entry by entry, so that it costs little more than what it says.

Parsed as a whole, JSON takes many times its bytes. A large header must therefore be written as safetensors itself
writes it: `__metadata__` first if there is any, no spaces but at the end, and dtype, shape and data_offsets in this
order. What it says is then what a JSON parser would find (a test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# The longest `__metadata__` that is served; an entry is far shorter.
MAX_METADATA_BYTES = 2**20
# What is read at a time: the bytes of some seven thousand entries.
CHUNK_BYTES = 2**20

_SIZE = rb"(?:0|[1-9][0-9]{0,14})"
_ENTRY = re.compile(
    rb'"([^"\\\x00-\x1f]{1,2000})":\{"dtype":"([A-Z0-9_]{1,16})",'
    rb'"shape":\[((?:%b(?:,%b){0,15})?)\],"data_offsets":\[(%b),(%b)\]\}([,}])' % ((_SIZE,) * 4)
)
# Possessive, so that nothing is kept to try again.
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+"'
_METADATA = re.compile(rb'\{"__metadata__":(\{(?:%b:%b(?:,%b:%b)*+)?\})([,}])' % ((_STRING,) * 4))


class NotCanonical(ValueError):
    """The header is not written as safetensors writes it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as the header gives it; nothing about it is checked but the syntax."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class LargeHeader:
    """A header of `length` bytes that begins where the file is now."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._unread = length
        self._buffer = b""
        self._at = 0
        # Most tensors share their shape and their dtype with many others.
        self._shapes: dict[bytes, tuple[int, ...]] = {}
        self._dtypes: dict[bytes, str] = {}

    def metadata(self) -> bytes:
        """The JSON object of `__metadata__`, `{}` without one. To be called first and once. Raises NotCanonical."""
        self._fill(MAX_METADATA_BYTES + CHUNK_BYTES)
        found = _METADATA.match(self._buffer, 0, MAX_METADATA_BYTES)
        if found is not None:
            self._at = found.end() if found[2] == b"," else found.end() - 1
            return found[1]
        if self._buffer[:1] != b"{":
            raise self._refused()
        self._at = 1
        return b"{}"

    def entries(self) -> Iterator[Entry]:
        """The tensors in the order of the text. Raises NotCanonical, when it comes to it."""
        sign = b","
        while sign == b",":
            found = _ENTRY.match(self._buffer, self._at)
            if found is None and self._unread:
                self._fill(CHUNK_BYTES)
                found = _ENTRY.match(self._buffer, self._at)
            if found is None:
                raise self._refused()
            self._at = found.end()
            name, dtype, shape, begin, end, sign = found.groups()
            if name == b"__metadata__":
                raise NotCanonical("expected __metadata__ as the first entry, found it later")
            yield Entry(self._text(name), self._dtype(dtype), self._shape(shape), int(begin), int(end))
        while self._unread or self._at < len(self._buffer):
            if self._buffer[self._at :].strip(b" "):
                raise self._refused()
            self._at = len(self._buffer)
            self._fill(CHUNK_BYTES)

    def _fill(self, count: int) -> None:
        """Reads on, and forgets what is behind."""
        chunk = self._file.read(min(count, self._unread))
        self._unread = self._unread - len(chunk) if chunk else 0
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise NotCanonical(f"a name is not UTF-8: {error.reason}") from error

    def _dtype(self, raw: bytes) -> str:
        return self._dtypes.setdefault(raw, raw.decode())

    def _shape(self, raw: bytes) -> tuple[int, ...]:
        if raw not in self._shapes:
            self._shapes[raw] = tuple(int(size) for size in raw.split(b",")) if raw else ()
        return self._shapes[raw]

    def _refused(self) -> NotCanonical:
        found = self._buffer[self._at : self._at + 60].decode(errors="replace")
        return NotCanonical(f"expected an entry as safetensors writes it, found {found!r}")
