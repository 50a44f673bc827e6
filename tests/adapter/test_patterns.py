"""Our matcher answers what `re.fullmatch` answers, and never takes long."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.errors import AdapterRefused
from adapter.patterns import Pattern

NAMES = [
    "lm_head",
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.down_proj",
    "model.layers.11.self_attn.v_proj",
    "model.visual.blocks.3.attn.qkv",
]

REAL = [
    r".*\.(q|v)_proj",
    r".*q_proj|.*v_proj",
    r"model\.layers\.(0|1[0-5])\.self_attn\.(q|k|v|o)_proj",
    r".*layers\.\d{1,2}\.mlp\..*_proj$",
    r"^(?!.*visual).*(?:q_proj|v_proj|qkv)$",
    r"^(model\.layers(?=\.).*\.(v_proj|q_proj))$",
    r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|(?:\bmodel\.visual\b.*)",
    r"(?P<prefix>.*)\.[^.]+_proj",
    r"model\.layers\.[\d]+\.[a-z_]+\.\w+",
    "",
    r"(|x)lm_head{1}",
    "lm{_head",
]


@pytest.mark.parametrize("source", REAL)
def test_patterns_that_people_write_match_as_in_re(source: str) -> None:
    pattern = Pattern.compile(source)
    assert [pattern.matches(name) for name in NAMES] == [re.fullmatch(source, name) is not None for name in NAMES]


@pytest.mark.parametrize(
    "source", ["q_proj", r"self_attn\.q_proj", r"^model.layers.0.*", "layers.1[01]?.*proj", r"\d+"]
)
def test_a_suffix_pattern_matches_as_in_pefts_get_pattern_key(source: str) -> None:
    pattern = Pattern.compile_suffix(source)
    expected = [re.match(rf"(.*\.)?({source})$", name) is not None for name in NAMES]
    assert [pattern.matches(name) for name in NAMES] == expected


ATOMS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\.",
        r"\w",
        r"\d",
        r"\W",
        "[ab]",
        "[^a]",
        "[a-c.]",
        r"[\w.]",
        "^",
        "$",
        r"\b",
        "1",
        "_",
        r"\S",
    ]
)


def _combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{0,2}", "{1,}", "{,2}", "{3}?"])
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, counts).map(lambda pair: f"({pair[0]}){pair[1]}"),
        inner.map(lambda one: f"(?={one})"),
        inner.map(lambda one: f"(?!{one})"),
    )


@settings(max_examples=600, deadline=None)
@given(source=st.recursive(ATOMS, _combine, max_leaves=8), text=st.text("ab12._-é\n", max_size=8))
def test_any_served_pattern_matches_as_in_re(source: str, text: str) -> None:
    assert Pattern.compile(source).matches(text) == (re.fullmatch(source, text) is not None)
    suffix = Pattern.compile_suffix(source)
    assert suffix.matches(text) == (re.fullmatch(rf"(.*\.)?({source})", text) is not None)


@settings(max_examples=200, deadline=None)
@given(
    source=st.recursive(ATOMS, _combine, max_leaves=8),
    texts=st.lists(st.text("ab12.", min_size=1, max_size=6), min_size=2, max_size=6),
)
def test_a_pattern_that_was_asked_before_answers_as_in_re(source: str, texts: list[str]) -> None:
    pattern = Pattern.compile(source)
    for text in texts:
        assert pattern.matches(text) == (re.fullmatch(source, text) is not None)


@settings(max_examples=400, deadline=None)
@given(source=st.text("ab.()[]{}|*+?\\^$-,:=!<>P1dwbQ", max_size=14), text=st.text("ab1.", max_size=5))
def test_any_text_is_refused_or_means_what_it_means_in_re(source: str, text: str) -> None:
    try:
        pattern = Pattern.compile(source)
    except AdapterRefused:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pattern.matches(text) == (re.fullmatch(source, text) is not None)


@pytest.mark.parametrize(
    "source",
    ["(.+)+!", "((((.*)*)*)*)*!", "(a|a)" * 50 + "!", "((.{1,999999}){1,999999}){1,999999}!", "(.*)" * 200 + "!"],
)
def test_a_runaway_pattern_is_answered_or_refused_within_its_steps(source: str) -> None:
    name = "model.layers.29.self_attn.q_proj" * 4
    try:
        answer = Pattern.compile(source).matches(name)
    except AdapterRefused:
        return
    assert not answer


@pytest.mark.parametrize(
    "source",
    ["(", ")", "a)", "(?i)a", "(?<=a)b", r"(a)\1", "(?P=x)", "(?(1)a)", "(?>a)", "a*+", "a**", "*a", "^*", "[a",
     "[[a]]", "[b-a]", r"\Qa", "\\", "a{2,1}", "{3}", r"\B", "(" * 30 + ")" * 30, "a" * 5000],
)  # fmt: skip
def test_what_is_not_served_is_refused(source: str) -> None:
    with pytest.raises(AdapterRefused):
        Pattern.compile(source)
