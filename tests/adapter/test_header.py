"""Whatever the bytes, the answer is a header or AdapterRefused, and memory stays bounded."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.errors import AdapterRefused
from adapter.header import MAX_HEADER_BYTES, read_header

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
Encode = Callable[[object], bytes]


def refusal(path: Path) -> str:
    with pytest.raises(AdapterRefused) as caught:
        read_header(path)
    return "\n".join(caught.value.reasons)


def test_a_good_header_gives_dtypes_shapes_and_offsets(tmp_path: Path, encode_header: Encode) -> None:
    path = tmp_path / "good.safetensors"
    raw = encode_header({"__metadata__": {"format": "pt"}, **GOOD})
    path.write_bytes(raw + bytes(24))
    header = read_header(path)
    assert header.tensors["a"].shape == (2, 3)
    assert header.tensors["a"].dtype == "F32"
    assert header.tensors["a"].num_bytes == 24
    assert header.data_start == len(raw)
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("header", "data_bytes", "why"),
    [
        (GOOD, 23, "truncated"),
        (GOOD, 25, "bytes belong to no tensor"),
        ({"a": {**GOOD["a"], "dtype": "F31"}}, 24, "expected a dtype of safetensors, found 'F31'"),
        ({"a": {**GOOD["a"], "dtype": ["F32"]}}, 24, "expected a dtype of safetensors, found list"),
        ({"a": {**GOOD["a"], "shape": [2, 4]}}, 24, "expected 32 bytes for F32 [2, 4], found 24"),
        ({"a": {**GOOD["a"], "shape": [-2, -3]}}, 24, "expected a shape"),
        ({"a": {**GOOD["a"], "shape": [2.0, 3]}}, 24, "expected a shape"),
        ({"a": {**GOOD["a"], "shape": [True, 6]}}, 24, "expected a shape"),
        ({"a": {**GOOD["a"], "shape": [2**80, 0]}}, 24, "expected a shape"),
        ({"a": {**GOOD["a"], "shape": [1] * 9}}, 24, "expected a shape"),
        ({"a": {**GOOD["a"], "data_offsets": [24, 0]}}, 24, "expected data_offsets"),
        ({"a": {**GOOD["a"], "data_offsets": [0, 12, 24]}}, 24, "expected data_offsets"),
        ({"a": {**GOOD["a"], "extra": 1}}, 24, "and nothing else"),
        ({"a": [1, 2]}, 24, "expected dtype, shape and data_offsets"),
        ({"__metadata__": {"format": 1}, **GOOD}, 24, "__metadata__: expected strings"),
        ({**GOOD, "b": {"dtype": "F32", "shape": [6], "data_offsets": [12, 36]}}, 36, "overlaps"),
        ({**GOOD, "b": {"dtype": "F32", "shape": [6], "data_offsets": [28, 52]}}, 52, "leaves a gap"),
        ({**GOOD, "b": GOOD["a"]}, 24, "overlaps"),
    ],
)
def test_a_wrong_header_is_refused_with_what_was_expected(
    tmp_path: Path, encode_header: Encode, header: dict[str, Any], data_bytes: int, why: str
) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(encode_header(header) + bytes(data_bytes))
    assert why in refusal(path)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "truncated"),
        (b"\x00\x01", "truncated"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
        (b"PK\x03\x04" + bytes(64), "a pickle"),
        ((2**63).to_bytes(8, "little"), f"expected a header of at most {MAX_HEADER_BYTES} bytes"),
        ((1000).to_bytes(8, "little") + b"{}", "the file is truncated"),
        ((4).to_bytes(8, "little") + b"[1] ", "begin with '{'"),
        ((4).to_bytes(8, "little") + b'{"a"', "expected JSON"),
        ((9).to_bytes(8, "little") + b'{"\xff\xfe": 1}', "expected JSON"),
        ((17).to_bytes(8, "little") + b'{"a": 1, "a": 2 }', "the key 'a' comes twice"),
        ((10).to_bytes(8, "little") + b'{"a": NaN}', "NaN is not a JSON number"),
        ((5007).to_bytes(8, "little") + b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
    ],
)
def test_bytes_that_are_no_header_are_refused(tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "bytes.safetensors"
    path.write_bytes(raw)
    assert why in refusal(path)


@pytest.mark.parametrize("lead", [b"\x80\x02", b"\x80\x05", b"PK"])
def test_a_header_whose_length_begins_as_a_pickle_does_is_read(
    tmp_path: Path, encode_header: Callable[[object], bytes], lead: bytes
) -> None:
    length = int.from_bytes(lead, "little")
    raw = encode_header({"__metadata__": {"format": "x" * (length - len('{"__metadata__": {"format": ""}}'))}})
    assert raw.startswith(lead)
    (tmp_path / "long.safetensors").write_bytes(raw)
    assert read_header(tmp_path / "long.safetensors").data_start == 8 + length


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt", "adapter.pkl"])
def test_a_pickle_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    assert "found a pickle" in refusal(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "missing.safetensors")
    assert "cannot be read" in refusal(tmp_path)
    assert "cannot be read" in refusal(Path("a\0b.safetensors"))
    assert "expected a regular file" in refusal(Path(os.devnull))


@pytest.mark.parametrize("unit", [b"[", b'{"a":', b"{},", b'"a":{},', b"0,", b"[],"])
def test_a_bombed_header_costs_bounded_memory(tmp_path: Path, unit: bytes) -> None:
    body = b'{"a":[' + unit * ((MAX_HEADER_BYTES - 16) // len(unit))
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(len(body).to_bytes(8, "little") + body)
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * MAX_HEADER_BYTES


SMALL = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@SMALL
@given(flips=st.lists(st.tuples(st.integers(0, 15_000), st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_give_a_header_or_a_refusal(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    raw = bytearray(Path("examples/adapters/pirate/adapter_model.safetensors").read_bytes())
    for position, bit in flips:
        raw[position] ^= 1 << bit
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(raw)
    check_header_or_refusal(path, len(raw))


@SMALL
@given(length=st.integers(0, 20_000))
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Path("examples/adapters/pirate/adapter_model.safetensors").read_bytes()[:length])
    assert "truncated" in refusal(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 60), min_size=2, max_size=2) | JSON,
    }
)


@SMALL
@given(
    header=st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), ENTRY | JSON, max_size=4), data=st.binary()
)
def test_any_json_gives_a_header_or_a_refusal(
    tmp_path: Path, encode_header: Encode, header: dict[str, Any], data: bytes
) -> None:
    path = tmp_path / "any.safetensors"
    raw = encode_header(header) + data
    path.write_bytes(raw)
    check_header_or_refusal(path, len(raw))


def check_header_or_refusal(path: Path, size: int) -> None:
    """A header that is accepted covers the data exactly; nothing but AdapterRefused is raised."""
    try:
        header = read_header(path)
    except AdapterRefused:
        return
    assert header.data_start + sum(info.num_bytes for info in header.tensors.values()) == size
