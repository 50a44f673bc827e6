"""What a request may say: every wrong value is refused with its field, and right ones become the engine's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.constraints.bad_words import BadWords
from inference.constraints.guides import Guide, Guides
from inference.errors import GuideRefused, InvalidRequest, PromptTooLong
from inference.identity import ModelIdentity
from inference.text.tokenizer import Tokenizer
from inference.wire.requests import Asked, RequestReader
from loraplex.inference.v1 import inference_service_pb2 as pb

MODEL = ModelIdentity(name="tiny", digest="sha256:0", vocab_size=96, max_context=64)
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}{% if bold %}!{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_served_dir: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("with template")
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_bytes((tiny_served_dir / name).read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "#"}))
    return Tokenizer.load(folder)


@pytest.fixture
async def reader(tokenizer: Tokenizer) -> Any:
    guides = Guides()
    yield RequestReader(MODEL, tokenizer, guides)
    await guides.close()


def ask(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({} if {"chat", "token_ids"} & fields.keys() else {"text": "abc"}), **fields)


def chat(*messages: pb.ChatMessage, **fields: Any) -> pb.Chat:
    return pb.Chat(messages=messages or [pb.ChatMessage(role="user", content="hi")], **fields)


def arguments(**values: Any) -> Any:
    return chat(template_arguments=json.dumps(values))


WRONG = [
    ("text", pb.GenerateRequest(), "prompt", "found none"),
    ("empty text", pb.GenerateRequest(text=""), "prompt", "empty"),
    ("no ids", ask(token_ids=pb.TokenIds()), "prompt", "at least one token"),
    ("an id too far", ask(token_ids=pb.TokenIds(ids=[96])), "token_ids", "below 96, found 96"),
    ("no messages", ask(chat=pb.Chat()), "chat.messages", "at least one message"),
    ("an empty message", ask(chat=chat(pb.ChatMessage(role="user"))), "chat.messages", "content"),
    ("an argument that is there", ask(chat=arguments(messages=[])), "chat.template_arguments", "'messages'"),
    ("a special token", ask(chat=arguments(eos_token="x")), "chat.template_arguments", "'eos_token'"),
    ("the opening", ask(chat=arguments(add_generation_prompt=False)), "chat.template_arguments", "'add_gen"),
    ("no name", ask(chat=arguments(**{"a b": 1})), "chat.template_arguments", "'a b'"),
    ("arguments", ask(chat=arguments(**{f"a{n}": n for n in range(65)})), "chat.template_arguments", "at most 64"),
    ("high priority", ask(priority=101), "priority", "-100 to 100, found 101"),
    ("low priority", ask(priority=-101), "priority", "found -101"),
    ("a long tenant", ask(tenant="x" * 129), "tenant", "at most 128 characters, found 129"),
    ("many answers", ask(n=17), "n", "at most 16, found 17"),
    ("fewer than n", ask(n=3, best_of=2), "best_of", "n, 3, to 16, found 2"),
    ("many candidates", ask(best_of=17), "best_of", "found 17"),
    ("many alternatives", ask(logprobs=21), "logprobs", "[0, 20]"),
    ("many of the prompt", ask(prompt_logprobs=21), "prompt_logprobs", "[0, 20]"),
    ("a far stop id", ask(stop=pb.StopConditions(token_ids=[96])), "stop.token_ids", "below 96"),
    ("an empty stop", ask(stop=pb.StopConditions(strings=[""])), "stop.strings", "1 to 1024"),
    ("many stops", ask(stop=pb.StopConditions(strings=["a"] * 17)), "stop.strings", "at most 16"),
    ("no tokens", ask(stop=pb.StopConditions(max_tokens=0)), "max_tokens", "at least 1"),
    ("a far bias", ask(sampling=pb.SamplingParams(logit_bias={96: 1})), "sampling.logit_bias", "below 96"),
    ("an empty word", ask(sampling=pb.SamplingParams(bad_words=[""])), "sampling.bad_words", "1 to 256"),
    ("a long word", ask(sampling=pb.SamplingParams(bad_words=["x" * 257])), "sampling.bad_words", "1 to 256"),
    ("many words", ask(sampling=pb.SamplingParams(bad_words=["x"] * 129)), "sampling.bad_words", "at most 128"),
    ("no form", ask(guide=pb.Guide()), "guide", "expected a form"),
    ("no object", ask(guide=pb.Guide(json_object=False)), "guide.json_object", "expected true"),
    ("no choices", ask(guide=pb.Guide(choices=pb.Choices())), "guide.choices", "1 to 1000"),
    ("an empty choice", ask(guide=pb.Guide(choices=pb.Choices(texts=["a", ""]))), "guide.choices", "no empty"),
    ("many choices", ask(guide=pb.Guide(choices=pb.Choices(texts=["a"] * 1001))), "guide.choices", "1 to 1000"),
    (
        "an endless guided answer",
        ask(guide=pb.Guide(regex="a"), stop=pb.StopConditions(ignore_eos=True)),
        "stop.ignore_eos",
        "false beside a guide",
    ),
]


@pytest.mark.parametrize(("request_", "field", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_a_wrong_value_is_refused_with_its_field(
    reader: RequestReader, request_: pb.GenerateRequest, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await reader.read(request_)
    assert refused.value.field == field
    assert words in str(refused.value)


@pytest.mark.parametrize("form", [{"json_schema": "{"}, {"regex": "("}, {"grammar": "x"}, {"regex": "x" * 4097}])
async def test_a_form_that_is_not_understood_is_refused_with_its_field(
    reader: RequestReader, form: dict[str, str]
) -> None:
    with pytest.raises(GuideRefused) as refused:
        await reader.read(ask(guide=pb.Guide(**form)))
    assert refused.value.field == f"guide.{next(iter(form))}"


async def test_a_prompt_that_leaves_no_room_is_too_long(reader: RequestReader) -> None:
    with pytest.raises(PromptTooLong, match="fewer than 64 tokens"):
        await reader.read(ask(token_ids=pb.TokenIds(ids=[5] * 64)))
    asked = await reader.read(ask(token_ids=pb.TokenIds(ids=[5] * 63)))
    assert asked.sampling.max_tokens == 1


async def test_what_is_not_said_takes_its_default(reader: RequestReader) -> None:
    asked = await reader.read(ask())
    assert (asked.answers, asked.candidates, asked.is_ranked) == (1, 1, False)
    assert (asked.tenant, asked.priority, asked.constraints) == ("", 0, ())
    assert asked.stop_ids == {2}
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.logprobs, sampling.prompt_logprobs) == (0.0, 1.0, None, None)
    assert sampling.seed != (await reader.read(ask())).sampling.seed


async def test_what_is_said_arrives(reader: RequestReader) -> None:
    request = ask(
        n=2, best_of=5, tenant="acme", priority=-7, echo=True, prompt_logprobs=0, logprobs=3,
        guide=pb.Guide(json_object=True), sampling=pb.SamplingParams(bad_words=["x", "y"], seed=9),
        stop=pb.StopConditions(strings=["end"], token_ids=[7], max_tokens=9, min_tokens=2),
    )  # fmt: skip
    asked = await reader.read(request)
    assert (asked.answers, asked.candidates, asked.is_ranked) == (2, 5, True)
    assert (asked.tenant, asked.priority, asked.has_echo, asked.has_logprobs) == ("acme", -7, True, True)
    assert (asked.stop_ids, asked.stop_strings) == ({2, 7}, ("end",))
    assert [type(constraint) for constraint in asked.constraints] == [Guide, BadWords]
    sampling = asked.sampling
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (9, 9, 2)
    assert (sampling.logprobs, sampling.prompt_logprobs) == (3, 0)


async def test_ranking_takes_log_probabilities_that_the_caller_does_not_see(reader: RequestReader) -> None:
    asked: Asked = await reader.read(ask(best_of=3))
    assert (asked.sampling.logprobs, asked.has_logprobs) == (0, False)


async def test_a_chat_begins_a_text_of_its_own_and_other_prompts_are_continued(
    reader: RequestReader, tokenizer: Tokenizer
) -> None:
    rendered = await reader.read(ask(chat=arguments(bold=True)))
    assert tokenizer.decode(rendered.prompt_ids) == "uhi!"
    assert rendered.continued_ids == ()
    plain = await reader.read(ask())
    assert plain.continued_ids == plain.prompt_ids == tuple(tokenizer.encode("abc"))


@pytest.mark.parametrize("length", [10, 9000])
async def test_long_texts_are_read_as_short_ones_are(reader: RequestReader, tokenizer: Tokenizer, length: int) -> None:
    assert await reader.encode("ab" * length) == tokenizer.encode("ab" * length)
    message = pb.ChatMessage(role="user", content="ab" * length)
    assert await reader.render(chat(message)) == "u" + "ab" * length
