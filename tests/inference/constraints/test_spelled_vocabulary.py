"""Searching a vocabulary finds what looking at every token would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.constraints.spelled_vocabulary import SpelledVocabulary

token = st.binary(max_size=4) | st.lists(st.sampled_from([b"a", b"b", "é".encode(), b"\xff"]), max_size=4).map(b"".join)
word = st.text(alphabet="abé", min_size=1, max_size=3).map(str.encode)


@given(tokens=st.lists(token, max_size=30), wanted=word)
def test_tokens_are_found_by_how_they_begin_and_by_what_they_hold(tokens, wanted):
    vocabulary = SpelledVocabulary(tokens)
    assert sorted(vocabulary.beginning_with(wanted).tolist()) == [
        token_id for token_id, one in enumerate(tokens) if one.startswith(wanted)
    ]
    assert sorted(vocabulary.holding(wanted)) == [token_id for token_id, one in enumerate(tokens) if wanted in one]
