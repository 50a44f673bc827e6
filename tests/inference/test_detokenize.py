"""Pieces of text are the text, whatever the tokens are and wherever the pieces end."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from inference.detokenize import StopStrings, decoder_factory
from inference.errors import BaseModelRefused


def byte_level_tokenizer():
    """Every byte is a token, and some tokens are several: half an emoji, a word with its space, a whole emoji."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={}, merges=[]))
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    halves = [
        spell.pre_tokenize_str("😀")[0][0][:2],
        spell.pre_tokenize_str("é")[0][0],
        spell.pre_tokenize_str(" the")[0][0],
    ]
    vocab = {token: place for place, token in enumerate([*alphabet, *halves, spell.pre_tokenize_str("😀")[0][0]])}
    tokenizer.model = models.BPE(vocab=vocab, merges=[])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<tool call>", "日本"])  # not special; neither is spelled in bytes
    return tokenizer


def sentence_piece_tokenizer(strip=True):
    """The form of Llama 2: a mark for spaces, and a token for each byte."""
    tokens = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "the",
        "a",
        "é",
        "▁▁",
        "日",
        "<0x",
        "0A>",
    ]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level_tokenizer(),
    "sentence piece": sentence_piece_tokenizer(),
    "sentence piece without strip": sentence_piece_tokenizer(strip=False),
}


def make_decoder(tokenizer):
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    spec = json.loads(tokenizer.to_str())["decoder"]
    return decoder_factory(spec, lambda i: None if i in special else tokenizer.id_to_token(i))()


def pieces_of(tokenizer, ids):
    decoder = make_decoder(tokenizer)
    return [decoder.push(token_id) for token_id in ids] + [decoder.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_pieces_together_are_the_text_of_all_ids(name, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 1), max_size=40))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=30))
def test_valid_text_never_shows_a_replacement_character_on_the_way(name, text):
    tokenizer = TOKENIZERS[name]
    first = "<0x00>" if name != "byte level" else "Ā"
    zero = tokenizer.token_to_id(first)
    ids = [zero + byte for byte in text.encode()] if name != "byte level" else byte_ids(tokenizer, text)
    pieces = pieces_of(tokenizer, ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def byte_ids(tokenizer, text):
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(char) for part, _ in spelled for char in part]


def test_a_character_comes_with_its_last_byte():
    tokenizer = TOKENIZERS["byte level"]
    decoder = make_decoder(tokenizer)
    assert [decoder.push(token_id) for token_id in byte_ids(tokenizer, "a😀é")] == ["a", "", "", "", "😀", "", "é"]
    assert decoder.finish() == ""


def test_a_character_that_never_ends_is_replaced_at_the_end():
    tokenizer = TOKENIZERS["byte level"]
    decoder = make_decoder(tokenizer)
    assert [decoder.push(token_id) for token_id in byte_ids(tokenizer, "😀")[:2]] == ["", ""]
    assert decoder.finish() == "\ufffd"


def test_a_run_of_byte_tokens_waits_for_its_end():
    tokenizer = TOKENIZERS["sentence piece"]
    tokens = ["▁the", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "a"]
    assert pieces_of(tokenizer, [tokenizer.token_to_id(token) for token in tokens]) == [
        "the",
        "",
        "",
        "",
        "",
        "😀a",
        "",
    ]


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": "_"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
    ],
)
def test_another_decoder_is_refused(spec):
    with pytest.raises(BaseModelRefused, match="expected the decoder ByteLevel"):
        decoder_factory(spec, str)


def cut_at_first_stop(text, strings):
    """The plain definition: the stop string that is complete first, the longest of those."""
    found = [(text.find(string) + len(string), -len(string), string) for string in strings if string in text]
    if not found:
        return text, None
    end, _, string = min(found)
    return text[: end - len(string)], string


@given(
    pieces=st.lists(st.text(alphabet="ab\n", max_size=4), max_size=12),
    strings=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_are_found_wherever_the_pieces_end(pieces, strings):
    stops, text, matched = StopStrings(strings), "", None
    for piece in pieces:
        emitted, matched = stops.push(piece)
        text += emitted
        if matched:
            break
    else:
        text += stops.finish()
    assert (text, matched) == cut_at_first_stop("".join(pieces), strings)


@given(text=st.text(alphabet="abc", max_size=20), strings=st.lists(st.text(alphabet="abc", min_size=1, max_size=4)))
def test_only_what_may_become_a_stop_string_is_held_back(text, strings):
    stops, given_out = StopStrings(strings), ""
    for place, char in enumerate(text):
        emitted, matched = stops.push(char)
        given_out += emitted
        if matched:
            break
        held = text[len(given_out) : place + 1]
        assert held == "" or any(string.startswith(held) for string in strings)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(["a", ""])
