"""A bad word never occurs in an answer, however its tokens cut it, and nothing else is banned."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.constraints.bad_words import BadWords
from inference.constraints.spelled_vocabulary import SpelledVocabulary
from inference.text.tokenizer import Tokenizer

LETTERS = [b"a", b"b", b"c", b" "]


def small_vocabulary(seed=0, size=60):
    rng = random.Random(seed)
    tokens = [b"", *LETTERS, *(bytes([byte]) for byte in "é😀".encode())]
    while len(tokens) < size:
        tokens.append(b"".join(rng.choices(LETTERS, k=rng.randint(2, 5))))
    return SpelledVocabulary(tokens)


VOCABULARY = small_vocabulary()
SIZE = 63  # a few ids more than there are tokens


def allowed_by_definition(words, output_ids, vocabulary):
    """A token may come if no word occurs in the bytes of the answer with it, that was not there without it."""
    tokens = vocabulary.tokens
    answered = b"".join(tokens[token_id] for token_id in output_ids)
    spelled = [word.encode() for word in words]
    found = []
    for token_id in range(SIZE):
        token = tokens[token_id] if token_id < len(tokens) else b""
        longest = max(map(len, spelled))
        seen = answered[max(0, len(answered) - longest + 1) :] + token
        found.append(not any(word in seen for word in spelled))
    return found


word = st.text(alphabet="abc é😀", min_size=1, max_size=5)


@given(words=st.lists(word, min_size=1, max_size=6), data=st.data())
def test_the_allowed_tokens_are_those_that_complete_no_word(words, data):
    walk, answer = BadWords(words, VOCABULARY, vocab_size=SIZE).begin(), []
    for _ in range(data.draw(st.integers(1, 12))):
        allowed = walk.allowed(answer).tolist()
        assert allowed == allowed_by_definition(words, answer, VOCABULARY)
        choices = [token_id for token_id, may in enumerate(allowed[: len(VOCABULARY.tokens)]) if may]
        answer.append(data.draw(st.sampled_from(choices)))
    text = b"".join(VOCABULARY.tokens[token_id] for token_id in answer)
    assert not any(word.encode() in text for word in words)


@given(words=st.lists(word, min_size=1, max_size=4), ids=st.lists(st.integers(0, 59), max_size=12), data=st.data())
def test_a_walk_is_a_function_of_the_tokens_however_often_it_is_asked(words, ids, data):
    constraint = BadWords(words, VOCABULARY, vocab_size=SIZE)
    often, seldom = constraint.begin(), constraint.begin()
    for place in range(len(ids)):
        for _ in range(data.draw(st.integers(0, 2))):
            often.allowed(ids[:place])
    assert often.allowed(ids).tolist() == seldom.allowed(ids).tolist()


def test_a_character_that_the_prompt_began_counts():
    bytes_of = "é".encode()
    first, second = (VOCABULARY.tokens.index(bytes([byte])) for byte in bytes_of)
    free, begun = (
        BadWords(["é"], VOCABULARY, vocab_size=SIZE, open_bytes=open_bytes).begin()
        for open_bytes in (b"", bytes_of[:1])
    )
    assert free.allowed([]).tolist()[second]
    assert not begun.allowed([]).tolist()[second]
    assert not free.allowed([first]).tolist()[second]


@pytest.fixture(scope="module")
def real(base_model_dir):
    return Tokenizer.load(base_model_dir)


@pytest.mark.parametrize("bad", ["ship", " ship", "Captain", "é", "\n\n", "the lighthouse"])
def test_no_way_to_cut_a_word_into_real_tokens_is_left(real, bad):
    constraint = BadWords([bad], real.spelled, vocab_size=49_152)
    rng = random.Random(bad)
    for _ in range(30):
        text = rng.choice(["", "a", " a", "x ", "ship", "the "]) + bad + rng.choice(["", "s", " "])
        cut = rng.randint(0, len(text))
        ids = [*real.encode_rendered(text[:cut]), *real.encode_rendered(text[cut:])]
        walk = constraint.begin()
        assert not all(walk.allowed(ids[:place])[ids[place]] for place in range(len(ids)))
    harmless = real.encode_rendered("sh ip Cap tain e a\nb the light house".replace(bad, ""))
    walk = constraint.begin()
    assert all(walk.allowed(harmless[:place])[harmless[place]] for place in range(len(harmless)))
