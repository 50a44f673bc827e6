"""Probes: everything that is given is read, and anything else is refused with every reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import AdapterRefused
from adapter.manifest import CONFIG_FILE, PROBE_FILE, WEIGHTS_FILE, manifest_of_adapter
from adapter.probe import DEFAULT_TOLERANCE, MAX_PROBE_BYTES, Probe, parse_probes, read_probes

GOOD: dict[str, Any] = {"prompt": "a", "expected_token_ids": [1, 2]}


def parse(*items: Any) -> tuple[Probe, ...]:
    return parse_probes(json.dumps({"probes": items}).encode())


def test_what_is_not_given_has_the_documented_default(tmp_path: Path) -> None:
    assert parse(GOOD) == (Probe("a", (), (1, 2), leading=2, logprobs=(), tolerance=DEFAULT_TOLERANCE),)
    full = {"token_ids": [7], "expected_token_ids": [1, 2], "leading": 1, "logprobs": [-1, -0.5], "tolerance": 0.25}
    (tmp_path / PROBE_FILE).write_text(json.dumps({"probes": [full]}))
    assert read_probes(tmp_path / PROBE_FILE) == (Probe("", (7,), (1, 2), 1, (-1.0, -0.5), 0.25),)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": ""}, "prompt: expected 1 to"),
        ({"prompt": 3}, "prompt: expected 1 to"),
        ({"token_ids": [1]}, "either prompt or token_ids"),
        ({"prompt": None, "token_ids": []}, "token_ids: expected 1 to"),
        ({"expected_token_ids": []}, "expected_token_ids: expected 1 to 64"),
        ({"expected_token_ids": [-1]}, "expected_token_ids"),
        ({"expected_token_ids": [True]}, "expected_token_ids"),
        ({"expected_token_ids": [2**31]}, "expected_token_ids"),
        ({"expected_token_ids": list(range(65))}, "expected_token_ids"),
        ({"leading": 0}, "leading: expected 1 to 2, found '0'"),
        ({"leading": 3}, "leading: expected 1 to 2"),
        ({"leading": 1.5}, "leading: expected 1 to 2"),
        ({"logprobs": [-1]}, "logprobs: expected 2 numbers"),
        ({"logprobs": ["-1", "-2"]}, "logprobs: expected 2 numbers"),
        ({"logprobs": [-1, -2], "tolerance": -1}, "tolerance: expected a number from 0 to 100"),
        ({"tolerance": 1}, "expected logprobs beside it"),
        ({"answer": "b"}, "the key 'answer' is not known"),
    ],
)
def test_anything_else_is_refused_with_its_place(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterRefused) as caught:
        parse(GOOD, GOOD | changes)
    assert any(reason in one and "probe 1:" in one for one in caught.value.reasons), caught.value.reasons


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"probes": []}', b'{"probes": [1]}', b'{"probes": 1}', b'{"probes": [], "more": 1}',
     b'{"probes": [], "probes": []}', b" " * (MAX_PROBE_BYTES + 1), json.dumps({"probes": [GOOD] * 17}).encode()],
)  # fmt: skip
def test_a_file_that_holds_no_probes_is_refused(raw: bytes) -> None:
    with pytest.raises(AdapterRefused, match=PROBE_FILE):
        parse_probes(raw)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="cannot be read"):
        read_probes(tmp_path / PROBE_FILE)


def test_probes_are_a_part_of_the_adapters_identity(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    without = manifest_of_adapter(tmp_path)
    (tmp_path / PROBE_FILE).write_text("{}")
    found = manifest_of_adapter(tmp_path)
    assert [file.path for file in found.files] == [CONFIG_FILE, WEIGHTS_FILE, PROBE_FILE]
    assert found.digest != without.digest
    (tmp_path / PROBE_FILE).unlink()
    (tmp_path / PROBE_FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(AdapterRefused, match=PROBE_FILE):
        manifest_of_adapter(tmp_path)
