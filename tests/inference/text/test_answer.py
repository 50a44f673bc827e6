"""Answers: what is given out never changes later, and adds up to the plain text cut at the first stop string."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.engine.request import Token
from inference.text.answer import Answer
from inference.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(base_model_dir: Path) -> Tokenizer:
    return Tokenizer.load(base_model_dir)


def answer_in_pieces(tokenizer: Tokenizer, text: str, stops: list[str], size: int) -> tuple[str, Answer]:
    ids = tokenizer.encode(text)
    tokens = [Token("r", index, token_id) for index, token_id in enumerate(ids)]
    answer, out = Answer(tokenizer.incremental_decoder(), stops), ""
    for start in range(0, len(tokens), size):
        piece = answer.push(tokens[start : start + size])
        out += piece.text
        if answer.stop_string:
            break
    return out + answer.finish(), answer


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "text", ["Plain words.", "naïve café 🏴‍☠️ says ahoy", "  spaces \n\n and lines\n", "数字と文字"]
)
def test_pieces_of_any_size_add_up_to_the_text(tokenizer: Tokenizer, text: str, size: int) -> None:
    out, answer = answer_in_pieces(tokenizer, text, ["never there"], size)
    assert out == text
    assert answer.num_tokens == len(tokenizer.encode(text))
    assert answer.stop_string == ""


@pytest.mark.parametrize("size", [1, 3, 100])
def test_nothing_of_a_stop_string_or_after_it_is_given_out(tokenizer: Tokenizer, size: int) -> None:
    text = "Ahoy there, matey! Yo ho ho!"
    out, answer = answer_in_pieces(tokenizer, text, ["matey! Yo", "ho!"], size)
    assert out == "Ahoy there, "
    assert answer.stop_string == "matey! Yo"
    assert answer.num_tokens < len(tokenizer.encode(text))


def test_what_only_looked_like_a_stop_string_is_given_out_at_the_end(tokenizer: Tokenizer) -> None:
    out, answer = answer_in_pieces(tokenizer, "This ends with ho", ["hope"], 1)
    assert out == "This ends with ho"
    assert answer.stop_string == ""
