from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.config import parse_config
from adapter.ends import OwnEnd, TrainedTokens, own_ends
from adapter.header import read_header

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Modules = dict[str, tuple[int, int]]
Found = tuple[dict[str, OwnEnd], list[str]]


@pytest.fixture
def ends_of(tmp_path: Path, tiny_modules: Modules, write_safetensors: Any) -> Callable[..., Found]:
    """The ends of a file with these tensors (rows by what follows the prefix), and the reasons against them."""

    def make(rows: dict[str, int], **config: Any) -> Found:
        tensors = {f"base_model.model.{key}": ("BF16", [n, 8], bytes(16 * n)) for key, n in rows.items()}
        header = read_header(write_safetensors(tmp_path / "adapter_model.safetensors", tensors))
        settings = {"peft_type": "LORA", "target_modules": ["q_proj"], **config}
        reasons: list[str] = []
        return own_ends(parse_config(json.dumps(settings).encode()), header, tiny_modules, reasons), reasons

    return make


def test_a_file_of_linear_layers_holds_nothing_for_the_ends(ends_of: Callable[..., Found]) -> None:
    assert ends_of({"model.layers.0.self_attn.q_proj.lora_A.weight": 4}) == ({}, [])


@pytest.mark.parametrize("between", ["", "base_layer.", "token_adapter.base_layer."])
def test_a_weight_that_was_not_trained_is_a_copy(ends_of: Callable[..., Found], between: str) -> None:
    keys = [f"{name}.{between}weight" for name in (EMBEDDING, HEAD)]
    found, reasons = ends_of(dict.fromkeys(keys, 35))
    assert reasons == []
    assert [(end.num_rows, end.width, end.copy_key, end.saved_key) for end in found.values()] == [
        (35, 8, f"base_model.model.{key}", None) for key in keys
    ]


def test_a_saved_weight_that_was_resized_is_there_three_times(ends_of: Callable[..., Found]) -> None:
    parts = ("weight", "modules_to_save.weight", "original_module.weight")
    rows = {f"{name}.{part}": 33 for name in (EMBEDDING, HEAD) for part in parts}
    found, reasons = ends_of(rows, modules_to_save=["embed_tokens", "lm_head"])
    assert reasons == []
    for name, end in found.items():
        saved, again, copy = (f"base_model.model.{name}.{part}" for part in parts)
        assert (end.saved_key, end.again_key, end.copy_key) == (saved, again, copy)
        assert end.shapes == dict.fromkeys((saved, again, copy), (33, 8))


def test_tokens_of_two_ends_may_be_written_once(ends_of: Callable[..., Found]) -> None:
    key = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
    both = {"embed_tokens": [5, 1], "lm_head": [5, 1]}
    found, reasons = ends_of({key: 2}, trainable_token_indices=both)
    assert reasons == []
    assert found[EMBEDDING].tokens == found[HEAD].tokens == TrainedTokens(f"base_model.model.{key}", (5, 1))


@pytest.mark.parametrize(
    ("rows", "config", "words"),
    [
        ({f"{EMBEDDING}.weight": 35, f"{HEAD}.weight": 34}, {}, "as many rows in the embedding as in the head"),
        ({f"{EMBEDDING}.weight": 35}, {"modules_to_save": ["embed_tokens"]}, "as many rows in the embedding"),
        (
            {},
            {"trainable_token_indices": [31, 32]},
            "expected tokens below 32, the rows of model.embed_tokens, found 32",
        ),
        ({}, {"trainable_token_indices": {"q_proj": [1]}}, "expected the embedding or the head, found 'q_proj'"),
        ({}, {"trainable_token_indices": {"score": [1]}}, "expected the embedding or the head, found 'score'"),
        (
            {},
            {"trainable_token_indices": {"embed_tokens": [1], "model.embed_tokens": [2]}},
            "expected each module once, found model.embed_tokens twice",
        ),
        (
            {f"{HEAD}.weight": 32},
            {"trainable_token_indices": {"lm_head": [1]}, "modules_to_save": ["lm_head"]},
            "module lm_head: expected modules_to_save or trainable_token_indices, found both",
        ),
    ],
)
def test_what_has_no_one_meaning_is_a_reason(
    ends_of: Callable[..., Found], rows: dict[str, int], config: dict[str, Any], words: str
) -> None:
    _, reasons = ends_of(rows, **config)
    assert any(words in reason for reason in reasons), reasons
