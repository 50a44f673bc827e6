"""Whatever is drawn under a guide has its form; a form that cannot be followed is refused by name."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.constraints import guides
from inference.constraints.forms import ANY_JSON_OBJECT, Form, FormKind, read
from inference.constraints.guides import Guide, Guides, wrap
from inference.errors import AnswerStuck, GuideRefused, GuideTooComplex, QueueFull
from inference.text.tokenizer import Tokenizer

EOS = 256
TOKENS = [*(bytes([byte]) for byte in range(256)), b"", *(b'{"', b'":', b", ", b"true", b"abc", b"12", "é".encode())]
TOKENS += [b'"}', b"ab", b'["', b"]}", "😀".encode()[:2]]


@dataclass(frozen=True)
class Small:
    """A vocabulary of its own for each list of tokens, whose texts are cut into bytes."""

    vocabulary: Sequence[bytes]
    eos_ids: frozenset[int] = frozenset({EOS})

    @property
    def identity(self):
        return repr(self.vocabulary)

    def encode_rendered(self, text):
        return list(text.encode())


class Spaced(Small):
    """Puts a space before every text, as some tokenizers do; its last token is all that it ever finds."""

    def encode_rendered(self, text):
        return [len(self.vocabulary) - 1]


SMALL = Small(TOKENS)


def compile_one(form, vocabulary=SMALL):
    return Guide(read(form, wrap(vocabulary)))


def draw(guide, rng, *, most=3000):
    """An answer of tokens drawn evenly from those allowed, and whether it ended by itself."""
    walk, ids = guide.begin(), []
    while len(ids) < most:
        choices = torch.nonzero(walk.allowed(ids)).flatten().tolist()
        token_id = EOS if EOS in choices and rng.random() < 0.5 else rng.choice(choices)
        if token_id == EOS:
            return b"".join(TOKENS[token_id] for token_id in ids).decode(), True
        ids.append(token_id)
    return b"".join(TOKENS[token_id] for token_id in ids).decode(errors="ignore"), False


names = st.sampled_from(["a", "b", "né", "x y", 'q"'])
leaves = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    ),
    st.lists(names, min_size=1, max_size=3, unique=True).map(lambda texts: {"enum": texts}),
    st.just({"type": "string", "pattern": "^[a-c]{2}\\d$"}),
    st.sampled_from([1, None, True, "é"]).map(lambda value: {"const": value}),
)


def containers(inner):
    objects = st.dictionaries(names, inner, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties)) if properties else st.nothing()).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )
    )
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[1] + parts[2]}
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}))


def is_valid(value, schema):  # noqa: PLR0911 - a return for each kind of value
    """The meaning of the small language of schemas above."""
    if "anyOf" in schema:
        return any(is_valid(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(value) is type(one) and value == one for one in schema.get("enum", [schema.get("const")]))
    match schema["type"], value:
        case "null", None:
            return True
        case "boolean", bool():
            return True
        case "integer", int() if not isinstance(value, bool):
            return schema["minimum"] <= value <= schema["maximum"]
        case "string", str() if "pattern" in schema:
            return re.fullmatch(schema["pattern"], value, re.ASCII) is not None
        case "string", str():
            return schema["minLength"] <= len(value) <= schema["maxLength"]
        case "array", list():
            is_sized = schema["minItems"] <= len(value) <= schema["maxItems"]
            return is_sized and all(is_valid(one, schema["items"]) for one in value)
        case "object", dict():
            known = schema["properties"]
            is_complete = set(schema["required"]) <= value.keys() <= known.keys()
            return is_complete and all(is_valid(one, known[name]) for name, one in value.items())
    return False


@settings(max_examples=60, deadline=None)  # the first example waits for the library to load
@given(schema=st.recursive(leaves, containers, max_leaves=6), seed=st.integers(0, 1000))
def test_every_answer_is_valid_json_of_its_schema(schema, seed):
    guide = compile_one(Form(FormKind.JSON_SCHEMA, json.dumps(schema)))
    for round_ in range(3):
        text, has_ended = draw(guide, random.Random(seed + round_))
        assert has_ended, text
        assert is_valid(json.loads(text), schema), text


@pytest.mark.parametrize(
    "pattern", [r"[a-c]{2,4}(-\d+)?", r"(yes|no|né+)", r"[ж-я]{1,3}", r" lead", r"(ab)?", r".{0,5}", r"a\x00b"]
)
def test_every_answer_matches_its_expression_as_a_whole(pattern):
    guide, rng = compile_one(Form(FormKind.REGEX, pattern)), random.Random(pattern)
    ended = [text for text, has_ended in (draw(guide, rng, most=60) for _ in range(10)) if has_ended]
    assert ended
    assert all(re.fullmatch(pattern, text) for text in ended), ended


@pytest.mark.parametrize("pattern", [r"[a-c]{2,4}(-\d)?", r"(ab|abc)+", r"(ab)?", r".{0,3}", r"a(b(c)?)?"])
def test_an_end_token_is_allowed_exactly_where_the_form_is_complete(pattern):
    guide, rng = compile_one(Form(FormKind.REGEX, pattern)), random.Random(pattern)
    ends = set()
    for _ in range(10):
        walk, ids = guide.begin(), []
        while len(ids) < 12:
            allowed = walk.allowed(ids)
            spelled = b"".join(TOKENS[token_id] for token_id in ids)
            is_text = spelled.decode(errors="ignore").encode() == spelled
            is_complete = is_text and re.fullmatch(pattern, spelled.decode()) is not None
            assert bool(allowed[EOS]) == is_complete, spelled
            ends.add(is_complete)
            allowed = allowed.clone()
            allowed[EOS] = False
            if not allowed.any():
                break
            ids.append(rng.choice(torch.nonzero(allowed).flatten().tolist()))
    assert True in ends


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5), seed=st.integers(0, 100))
def test_every_answer_is_one_of_the_choices_and_each_can_be_chosen(texts, seed):
    guide = compile_one(Form.choices(texts))
    text, has_ended = draw(guide, random.Random(seed))
    assert has_ended
    assert text in texts
    for choice in texts:
        ids = list(choice.encode())
        walk = guide.begin()
        assert all(walk.allowed(ids[:place])[ids[place]] for place in range(len(ids)))
        assert walk.allowed(ids)[EOS]


def test_every_answer_is_in_the_language_of_its_grammar():
    grammar = 'start: sum\nsum: number ("+" number)*\nnumber: /[1-9][0-9]{0,2}/ | "(" sum ")"\n'
    guide, rng = compile_one(Form(FormKind.GRAMMAR, grammar)), random.Random(1)
    for _ in range(10):
        text, has_ended = draw(guide, rng, most=40)
        if has_ended:
            assert isinstance(eval(text), int)  # only digits, plus signs and balanced parentheses get here
        assert re.fullmatch(r"[0-9+()]+", text)


def test_json_may_be_compact_spaced_or_indented_and_has_no_empty_lines():
    walk = compile_one(ANY_JSON_OBJECT)
    value = {"a": [1, {"b": None}], "c": {}}

    def is_allowed(text):
        ids, one = list(text.encode()), walk.begin()
        return all(one.allowed(ids[:place])[ids[place]] for place in range(len(ids))) and bool(one.allowed(ids)[EOS])

    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, separators=(",", ":"))):
        assert is_allowed(text)
        assert is_allowed(text.replace("\n", "\r\n"))
    assert not is_allowed('{\n\n"a": 1}')
    assert not is_allowed('{"a":  1}')


def test_any_json_object_is_an_object():
    text, has_ended = draw(compile_one(ANY_JSON_OBJECT), random.Random(4), most=400)
    assert text.startswith("{")
    assert not has_ended or isinstance(json.loads(text), dict)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_walk_is_a_function_of_the_tokens_however_often_it_is_asked(data):
    guide = compile_one(Form(FormKind.REGEX, "[ab]{1,6}c?"))
    often, ids = guide.begin(), []
    for _ in range(data.draw(st.integers(0, 5))):
        ids.append(data.draw(st.sampled_from([97, 98])))
        for _ in range(data.draw(st.integers(0, 2))):
            often.allowed(ids)
    assert often.allowed(ids).tolist() == guide.begin().allowed(ids).tolist()


def test_answers_of_one_guide_do_not_disturb_each_other():
    guide = compile_one(Form(FormKind.REGEX, "abc|xyz"))
    first, second = guide.begin(), guide.begin()
    assert torch.nonzero(first.allowed([97])).flatten().tolist() == [98]
    assert torch.nonzero(second.allowed([120])).flatten().tolist() == [121]
    assert guide.begin().allowed([])[[97, 120]].all()


def test_ids_that_are_no_tokens_are_never_allowed():
    allowed = compile_one(Form(FormKind.REGEX, ".*")).begin().allowed([])
    assert allowed.shape[0] >= len(TOKENS)
    assert allowed[ord("a")]
    assert not allowed[len(TOKENS) :].any()


# Ten ways for each of thirty properties: 10 ** 30 objects to tell apart.
MANY_WAYS = {
    "allOf": [
        {"anyOf": [{"type": "object", "properties": {f"p{place}": {"const": way}}} for way in range(10)]}
        for place in range(30)
    ]
}
REFUSED = [
    (FormKind.JSON_SCHEMA, "{", "EOF"),
    (FormKind.JSON_SCHEMA, "[1]", "object"),
    (FormKind.JSON_SCHEMA, '{"type": "strin"}', "strin"),
    (FormKind.JSON_SCHEMA, '{"not": {"type": "string"}}', "not"),
    (FormKind.JSON_SCHEMA, '{"x-guidance": {"lenient": true}, "not": {}}', "not"),
    (FormKind.JSON_SCHEMA, '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    (FormKind.JSON_SCHEMA, '{"oneOf": [{"type": "string"}, {"minLength": 2}]}', "oneOf"),
    (FormKind.JSON_SCHEMA, '{"minLength": 3, "maxLength": 2, "type": "string"}', "minLength"),
    (FormKind.JSON_SCHEMA, "false", "object"),
    (FormKind.JSON_SCHEMA, '{"$ref": "#"}', "none has"),
    (FormKind.JSON_SCHEMA, '{"$ref": "http://127.0.0.1:1/x"}', "retriev"),
    (FormKind.JSON_SCHEMA, '{"items":' * 3000 + "{}" + "}" * 3000, "recursion"),
    (FormKind.REGEX, "a(?=b)", "look-around"),
    (FormKind.REGEX, r"(a)\1", "backreferences"),
    (FormKind.REGEX, r"[^\s\S]", "none has"),
    (FormKind.REGEX, "(", "unclosed"),
    (FormKind.REGEX, "", "1 to 4096"),
    (FormKind.REGEX, "a" * 4097, "4097"),
    (FormKind.JSON_SCHEMA, json.dumps(MANY_WAYS), "too large"),
    (FormKind.GRAMMAR, "start: x", "unknown name"),
    (FormKind.GRAMMAR, "start: start", "none has"),
    (FormKind.GRAMMAR, "a" * 70_000, "65536"),
]


@pytest.mark.parametrize(
    ("kind", "text", "words"), REFUSED, ids=[f"{kind.value} {text[:20]}" for kind, text, _ in REFUSED]
)
def test_a_form_that_cannot_be_followed_is_refused_with_its_field(kind, text, words):
    with pytest.raises(GuideRefused, match=re.escape(words)) as refused:
        compile_one(Form(kind, text))
    assert refused.value.field == f"guide.{kind.value}"
    assert len(str(refused.value)) < 700


def test_a_way_that_leads_nowhere_is_an_error_and_no_answer():
    walk = compile_one(Form(FormKind.GRAMMAR, 'start: "a" x | "b"\nx: x "c"\n')).begin()
    with pytest.raises(AnswerStuck, match="after 1 tokens"):
        walk.allowed([97])


def test_text_that_no_token_spells_is_an_error_and_no_answer():
    tokens = [b"" if token == b"z" else token for token in TOKENS]
    walk = compile_one(Form(FormKind.REGEX, "azb"), Small(tokens)).begin()
    assert walk.allowed([])[ord("a")]
    with pytest.raises(AnswerStuck):
        walk.allowed(list(b"a"))


def test_a_step_of_too_much_work_is_an_error_and_no_answer():
    walk = compile_one(Form(FormKind.REGEX, "(" * 6 + "a{1,1000}" + "){1,1000}" * 6)).begin()

    def go():
        for count in range(100):
            walk.allowed([97] * count)

    with pytest.raises(GuideTooComplex, match="after"):
        go()


async def test_equal_forms_are_compiled_once_and_the_latest_are_kept(monkeypatch):
    monkeypatch.setattr(guides, "MAX_COMPILED", 2)
    compiler = Guides()
    forms = [Form(FormKind.REGEX, pattern) for pattern in ("a", "b", "c")]
    first, again = await asyncio.gather(compiler.compile(forms[0], SMALL), compiler.compile(forms[0], SMALL))
    assert first is again
    await compiler.compile(forms[1], SMALL)
    assert await compiler.compile(Form(FormKind.REGEX, "a"), SMALL) is first
    await compiler.compile(forms[2], SMALL)
    assert await compiler.compile(forms[0], SMALL) is first
    with pytest.raises(GuideRefused):
        await compiler.compile(Form(FormKind.REGEX, "("), SMALL)
    await compiler.close()


async def test_a_form_is_compiled_for_each_vocabulary(monkeypatch):
    monkeypatch.setattr(guides, "MAX_WRAPPED", 1)
    compiler, form = Guides(), Form(FormKind.REGEX, "[ab]+")
    other = Small([b"ab", *TOKENS[1:]])
    for vocabulary in (SMALL, other, SMALL):
        allowed = (await compiler.compile(form, vocabulary)).begin().allowed([])
        assert allowed[[ord("a"), TOKENS.index(b"ab")]].all()
        assert bool(allowed[0]) == (vocabulary is other)
    await compiler.close()


async def test_a_flood_of_forms_is_refused_at_once_and_who_leaves_disturbs_nobody(monkeypatch):
    monkeypatch.setattr(guides, "MAX_PENDING", 2)
    compiler = Guides()
    same = Form(FormKind.REGEX, "a")
    leaving, staying, other = (
        asyncio.create_task(compiler.compile(form, SMALL)) for form in (same, same, Form(FormKind.REGEX, "b"))
    )
    await asyncio.sleep(0)  # they have all asked
    with pytest.raises(QueueFull) as refused:
        await compiler.compile(Form(FormKind.REGEX, "c"), SMALL)
    assert refused.value.retry_after_s
    leaving.cancel()
    assert (await staying).begin().allowed([])[97]
    assert (await other).begin().allowed([])[98]
    await compiler.close()


def test_a_tokenizer_that_puts_a_space_before_every_text_forces_no_space():
    walk, ids = compile_one(Form(FormKind.REGEX, "abcx"), Spaced([*TOKENS, b" abc"])).begin(), []
    for expected in (b"abc", b"x"):
        [token_id] = torch.nonzero(walk.allowed(ids)).flatten().tolist()
        assert TOKENS[token_id] == expected
        ids.append(token_id)
    assert torch.nonzero(walk.allowed(ids)).flatten().tolist() == [EOS]


def test_the_masks_are_those_of_the_library_s_own_reading_of_a_real_tokenizer(base_model_dir):
    import llguidance

    tokenizer = Tokenizer.load(base_model_dir)

    theirs = llguidance.LLTokenizer((base_model_dir / "tokenizer.json").read_text(), eos_token=[2])
    rng = random.Random(3)
    for pattern in (r"[a-z ]+é😀?", r'\{"name": "[^"]*"\}'):
        walk, ids = compile_one(Form(FormKind.REGEX, pattern), tokenizer).begin(), []
        matcher = llguidance.LLMatcher(theirs, llguidance.LLMatcher.grammar_from_regex(pattern))
        for _ in range(8):
            mask = torch.frombuffer(bytearray(matcher.compute_bitmask()), dtype=torch.uint8)
            expected = ((mask[:, None] >> torch.arange(8)) & 1).flatten()[:49_152].bool()
            allowed = walk.allowed(ids)
            assert torch.equal(allowed[:49_152], expected)
            choices = [token_id for token_id in torch.nonzero(allowed).flatten().tolist() if token_id != 2]
            ids.append(rng.choice(choices))
            matcher.consume_token(ids[-1])
