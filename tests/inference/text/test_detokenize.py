"""Pieces of text are the text, whatever the tokens are and wherever the pieces end."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from inference.errors import BaseModelRefused
from inference.text.detokenize import StopStrings, read_spelling


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
    return read_spelling(spec).decoder(lambda i: None if i in special else tokenizer.id_to_token(i))


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
    pieces = pieces_of(tokenizer, spell_in_bytes(tokenizer, text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def spell_in_bytes(tokenizer, text):
    """A token for each byte of the text."""
    if (zero := tokenizer.token_to_id("<0x00>")) is not None:
        return [zero + byte for byte in text.encode()]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [tokenizer.token_to_id(char) for part, _ in spelled for char in part]


def test_a_character_comes_with_its_last_byte():
    tokenizer = TOKENIZERS["byte level"]
    decoder = make_decoder(tokenizer)
    assert [decoder.push(token_id) for token_id in spell_in_bytes(tokenizer, "a😀é")] == [
        "a",
        "",
        "",
        "",
        "😀",
        "",
        "é",
    ]
    assert decoder.finish() == ""


def test_a_character_that_never_ends_is_replaced_at_the_end():
    tokenizer = TOKENIZERS["byte level"]
    decoder = make_decoder(tokenizer)
    assert [decoder.push(token_id) for token_id in spell_in_bytes(tokenizer, "😀")[:2]] == ["", ""]
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


EDGES = {
    "a family joined by ZWJ": "👩\u200d👩\u200d👧\u200d👦!",
    "a flag of tags": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "a skin tone": "👍🏽👍",
    "stacked marks": "Z\u0351\u036b\u0343a\u0323\u0302",
    "conjoining jamo": "\u1112\u1161\u11ab",
    "Devanagari": "क्षत्रिय",
    "right to left with marks": "שָׁלוֹם \u202eabc\u202c",
    "a byte order mark inside": "a\ufeffb",
    "the last code point": "\U0010ffff\U00010000",
    "nul and newlines": "\x00\r\n\u2028\u0085",
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("cut", range(4))
def test_an_answer_may_begin_anywhere_in_a_text(name, edge, cut):
    """The first part was said, the second is the answer; the cut may lie within a character."""
    tokenizer, text = TOKENIZERS[name], EDGES[edge]
    ids = spell_in_bytes(tokenizer, text)
    cut = len(ids) * cut // 4
    said = text.encode()[:cut].decode(errors="ignore")
    decoder = make_decoder(tokenizer)
    for token_id in ids[:cut]:
        decoder.push(token_id)
    decoder.forget()
    answer = "".join(map(decoder.push, ids[cut:])) + decoder.finish()
    assert said + answer == tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(before=st.text(max_size=10), after=st.text(max_size=10))
@example(before="0", after=" ")
@example(before=" ", after=" ")
def test_what_was_said_before_an_answer_is_not_said_again(name, before, after):
    tokenizer = TOKENIZERS[name]
    first, second = spell_in_bytes(tokenizer, before), spell_in_bytes(tokenizer, after)
    decoder = make_decoder(tokenizer)
    for token_id in first:
        decoder.push(token_id)
    decoder.forget()
    answer = "".join(map(decoder.push, second)) + decoder.finish()
    assert tokenizer.decode(first) + answer == tokenizer.decode([*first, *second])


def test_what_was_said_may_begin_within_a_character():
    tokenizer = TOKENIZERS["sentence piece"]
    decoder = make_decoder(tokenizer)
    for token_id in spell_in_bytes(tokenizer, "日本語" * 9)[-16:]:
        decoder.push(token_id)
    decoder.forget()
    assert "".join(map(decoder.push, spell_in_bytes(tokenizer, "日本"))) + decoder.finish() == "日本"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_bytes_of_the_tokens_are_the_text_with_nothing_taken_from_its_beginning(name, data):
    tokenizer = TOKENIZERS[name]
    spelling = read_spelling(json.loads(tokenizer.to_str())["decoder"])
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
    ids = [token_id for token_id in ids if token_id not in special]
    exact = spelling.exact_decoder(tokenizer.id_to_token)
    text = "".join(map(exact.push, ids)) + exact.finish()
    spelled = b"".join(spelling.token_bytes(tokenizer.id_to_token(token_id)) for token_id in ids)
    try:
        assert text == spelled.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in text
    if name == "sentence piece":
        assert text.removeprefix(" ") == tokenizer.decode(ids)
    else:
        assert text == tokenizer.decode(ids)


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
        read_spelling(spec)


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
