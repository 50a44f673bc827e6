"""probe.json: prompts whose greedy answers are known, so that a worker can try an adapter before it serves it.

    {"probes": [{"prompt": "SELECT", "expected_token_ids": [260, 5], "leading": 2, "logprobs": [-0.1, -2.3]}]}

A probe has either `prompt`, tokenized as the text of a request is, or `token_ids`. The first `leading` tokens of the
answer, all of the expected ones when it is not given, must be those expected. With `logprobs`, one for each expected
token, theirs must also be within `tolerance` (0.5 when not given) of these. A worker in another precision than the one
that the probe was made in rounds differently: where two tokens are nearly as likely, `leading` should end before.

Knows the format; does not know tokenizers.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.errors import AdapterRefused
from adapter.header import parse_json, shown
from adapter.manifest import PROBE_FILE

MAX_PROBE_BYTES = 2**16
# All of them run before the adapter is served, so they are few and short.
MAX_PROBES = 16
MAX_PROMPT_CHARS = 8192
MAX_PROMPT_IDS = 2048
MAX_EXPECTED = 64
MAX_ID = 2**31 - 1
# Above what bfloat16 and float32 differ by, below what other weights make of a likely token.
DEFAULT_TOLERANCE = 0.5

_KEYS = frozenset({"prompt", "token_ids", "expected_token_ids", "leading", "logprobs", "tolerance"})


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt and its answer. Exactly one of `prompt` and `token_ids` says something.

    `logprobs`, natural logarithms, has one for each expected token, or none at all.
    """

    prompt: str
    token_ids: tuple[int, ...]
    expected_token_ids: tuple[int, ...]
    leading: int
    logprobs: tuple[float, ...] = ()
    tolerance: float = DEFAULT_TOLERANCE


def read_probes(path: str | os.PathLike[str]) -> tuple[Probe, ...]:
    """Reads and checks a file of probes. Raises AdapterRefused with every reason."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PROBE_BYTES + 1)
    except OSError as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {error.strerror or error}"]) from error
    return parse_probes(raw)


def parse_probes(raw: bytes) -> tuple[Probe, ...]:
    """`read_probes` for bytes already in memory."""
    if len(raw) > MAX_PROBE_BYTES:
        raise AdapterRefused([f"{PROBE_FILE}: expected at most {MAX_PROBE_BYTES} bytes, found more"])
    document = parse_json(raw, what=PROBE_FILE)
    items = document.get("probes") if isinstance(document, dict) and document.keys() == {"probes"} else None
    if not isinstance(items, list) or not 0 < len(items) <= MAX_PROBES:
        raise AdapterRefused([f'{PROBE_FILE}: expected {{"probes": [...]}} with 1 to {MAX_PROBES} probes'])
    reasons: list[str] = []
    for number, item in enumerate(items):
        reasons += [f"{PROBE_FILE}: probe {number}: {reason}" for reason in _why_not(item)]
    if reasons:
        raise AdapterRefused(reasons)
    return tuple(_probe(item) for item in items)


def _probe(item: dict[str, Any]) -> Probe:
    expected = tuple(item["expected_token_ids"])
    return Probe(
        prompt=item.get("prompt", ""),
        token_ids=tuple(item.get("token_ids", ())),
        expected_token_ids=expected,
        leading=item.get("leading", len(expected)),
        logprobs=tuple(float(number) for number in item.get("logprobs", ())),
        tolerance=float(item.get("tolerance", DEFAULT_TOLERANCE)),
    )


def _why_not(item: Any) -> list[str]:
    if not isinstance(item, dict):
        return ["expected an object"]
    reasons = [f"the key {shown(key)} is not known" for key in sorted(item.keys() - _KEYS)]
    if ("prompt" in item) == ("token_ids" in item):
        reasons.append("expected either prompt or token_ids")
    prompt = item.get("prompt", "x")
    if not isinstance(prompt, str) or not 0 < len(prompt) <= MAX_PROMPT_CHARS:
        reasons.append(f"prompt: expected 1 to {MAX_PROMPT_CHARS} characters")
    if not _are_ids(item.get("token_ids", [0]), MAX_PROMPT_IDS):
        reasons.append(f"token_ids: expected 1 to {MAX_PROMPT_IDS} token ids")
    expected = item.get("expected_token_ids")
    if not isinstance(expected, list) or not _are_ids(expected, MAX_EXPECTED):
        return [*reasons, f"expected_token_ids: expected 1 to {MAX_EXPECTED} token ids"]
    count = len(expected)
    leading = item.get("leading", count)
    if not _is_int(leading) or not 1 <= leading <= count:
        reasons.append(f"leading: expected 1 to {count}, found {shown(str(leading))}")
    logprobs = item.get("logprobs", [0.0] * count)
    if not isinstance(logprobs, list) or len(logprobs) != count or not all(_is_number(one) for one in logprobs):
        reasons.append(f"logprobs: expected {count} numbers, one for each expected token")
    tolerance = item.get("tolerance", DEFAULT_TOLERANCE)
    if not _is_number(tolerance) or not 0 <= tolerance <= 100:
        reasons.append(f"tolerance: expected a number from 0 to 100, found {shown(str(tolerance))}")
    elif "tolerance" in item and "logprobs" not in item:
        reasons.append("tolerance: expected logprobs beside it, found none")
    return reasons


def _are_ids(value: object, most: int) -> bool:
    return (
        isinstance(value, list) and 0 < len(value) <= most and all(_is_int(one) and 0 <= one <= MAX_ID for one in value)
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
