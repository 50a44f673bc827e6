"""A large header read entry by entry says what a JSON parser finds in it, or is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter import header as header_module
from adapter.errors import AdapterRefused
from adapter.header import MAX_TENSORS, read_header
from adapter.large_header import CHUNK_BYTES, Entry, LargeHeader, NotCanonical

NAMES = st.text(
    st.characters(exclude_characters='"\\', exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12
).filter(lambda name: name != "__metadata__")
SIZES = st.integers(0, 10**15 - 1)
ENTRIES = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(["F32", "BF16", "F8_E4M3", "X"]), st.lists(SIZES, max_size=4), SIZES, SIZES).map(
        lambda parts: {"dtype": parts[0], "shape": parts[1], "data_offsets": [*parts[2:]]}
    ),
    min_size=1,
    max_size=8,
)


def written(document: object, *, spaces: int = 0) -> bytes:
    """As safetensors writes it."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b" " * spaces


def read(raw: bytes) -> tuple[dict[str, Any], list[Entry]]:
    header = LargeHeader(io.BytesIO(raw), len(raw))
    return json.loads(header.metadata()), list(header.entries())


@settings(max_examples=200, deadline=None)
@given(
    entries=ENTRIES,
    metadata=st.none() | st.dictionaries(st.text(max_size=6), st.text(max_size=6)),
    spaces=st.integers(0, 9),
)
def test_it_says_what_a_json_parser_finds(
    entries: dict[str, Any], metadata: dict[str, str] | None, spaces: int
) -> None:
    first = {} if metadata is None else {"__metadata__": metadata}
    found, tensors = read(written(first | entries, spaces=spaces))
    assert found == (metadata or {})
    assert {one.name: (one.dtype, list(one.shape), [one.begin, one.end]) for one in tensors} == {
        name: (entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in entries.items()
    }


@settings(max_examples=200, deadline=None)
@given(entries=ENTRIES, at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_byte_that_changed_is_refused_or_means_what_json_means(entries: dict[str, Any], at: int, byte: int) -> None:
    raw = bytearray(written({"__metadata__": {"a": "b"}} | entries))
    raw[at % len(raw)] = byte
    try:
        _, tensors = read(bytes(raw))
    except (NotCanonical, UnicodeDecodeError):  # the second by the parser of the metadata
        return
    pairs = json.loads(bytes(raw), object_pairs_hook=list)
    assert [one.name for one in tensors] == [name for name, _ in pairs if name != "__metadata__"]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"a": 1}',
        b'{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} x',
        b'{"a":{"shape":[1],"dtype":"F32","data_offsets":[0,4]}}',
        b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{}}',
        b'{"__metadata__":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"a":"' + b"x" * CHUNK_BYTES + b'"}}',
    ],
)
def test_what_safetensors_would_not_write_is_refused(raw: bytes) -> None:
    with pytest.raises(NotCanonical):
        read(raw)


@pytest.fixture
def write_file(tmp_path: Path) -> Any:
    """Writes a file of so many tensors of one byte."""

    def write(count: int) -> Path:
        # As the experts of a mixture are named.
        name = "base_model.model.model.layers.{}.mlp.experts.{}.down_proj.lora_A.weight"
        entry = {"dtype": "U8", "shape": [1, 1]}
        entries = {name.format(n // 300, n): {**entry, "data_offsets": [n, n + 1]} for n in range(count)}
        raw = written({"__metadata__": {"format": "pt"}} | entries)
        (tmp_path / "large.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(count))
        return tmp_path / "large.safetensors"

    return write


def test_the_adapter_of_a_large_mixture_of_experts_is_read(write_file: Any) -> None:
    found = read_header(write_file(72_000))
    assert len(found.tensors) == 72_000
    assert found.metadata == {"format": "pt"}


def test_more_tensors_than_there_may_be_are_refused(write_file: Any) -> None:
    with pytest.raises(AdapterRefused, match=f"at most {MAX_TENSORS} tensors"):
        read_header(write_file(MAX_TENSORS + 1))


def test_both_ways_to_read_a_header_find_the_same(
    write_file: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_file(100)
    whole = read_header(path)
    monkeypatch.setattr(header_module, "MAX_PARSED_BYTES", 0)
    assert read_header(path) == whole
    (tmp_path / "twice.safetensors").write_bytes(path.read_bytes().replace(b"experts.10.", b"experts.11."))
    with pytest.raises(AdapterRefused, match="comes twice"):
        read_header(tmp_path / "twice.safetensors")
