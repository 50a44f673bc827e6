from __future__ import annotations

import math
from typing import Any

import pytest

from inference.engine.request import Request, SamplingParams, SlotUse
from inference.errors import InvalidRequest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.5),
        ("min_p", math.nan),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
        ("presence_penalty", 101.0),
        ("frequency_penalty", -math.inf),
        ("min_tokens", 2),
        ("seed", -1),
        ("logprobs", 21),
    ],
)
def test_what_can_never_work_is_refused_with_the_field_and_the_value(field: str, value: float) -> None:
    options: dict[str, Any] = {"max_tokens": 1, field: value}
    with pytest.raises(InvalidRequest, match=f"{field}: expected .*, found {value}") as refused:
        SamplingParams(**options)
    assert refused.value.field == field


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt: expected at least one token"):
        Request("r", (), SamplingParams(1))


def test_the_adapter_key_is_made_of_digests_and_weights_never_of_slots() -> None:
    requests = [Request("r", (1,), SamplingParams(1), uses=(SlotUse(slot, "sha256:a", 0.5),)) for slot in (1, 2)]
    assert requests[0].adapter_key == requests[1].adapter_key == (("sha256:a", 0.5),)
