"""What a client can ask of Generate, through the real service on the real model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from loraplex.inference.v1 import inference_service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = "The lighthouse keeper wrote down every ship that passed, the hour, the wind and the colour of its sails. " * 8


async def test_a_second_request_says_how_much_of_its_prompt_was_cached_and_answers_the_same(
    system: Any, e2e: Any
) -> None:
    async with system.stub() as stub:
        first = await e2e.generate(stub, e2e.ask(LONG, "pirate", logprobs=1))
        second = await e2e.generate(stub, e2e.ask(LONG, "pirate", logprobs=1))
        other = await e2e.generate(stub, e2e.ask(LONG, "json"))
        base = await e2e.generate(stub, e2e.ask(LONG))
    assert first.started.cached_tokens == other.started.cached_tokens == base.started.cached_tokens == 0
    assert 0 <= second.started.prompt_tokens - 1 - second.started.cached_tokens < 16
    assert second.token_ids == first.token_ids
    for one, again in zip(first.logprobs, second.logprobs, strict=True):
        assert again.logprob == pytest.approx(one.logprob, abs=1e-3)


async def test_a_promoted_version_never_finds_what_the_one_before_it_cached(
    system: Any, e2e: Any, adapters_dir: Path
) -> None:
    for name in ("sql", "classify"):  # which no other request has used
        await system.cli("register", str(adapters_dir / name), "--name", "cached", "--base", e2e.BASE)
    await system.cli("promote", "cached", "1", "--wait")
    async with system.stub() as stub:
        before = await e2e.generate(stub, e2e.ask(LONG, "cached"))
        await system.cli("promote", "cached", "2", "--wait")
        after = await e2e.generate(stub, e2e.ask(LONG, "cached"))
        assert (before.version, after.version) == (1, 2)
        assert after.started.cached_tokens == 0
        expected = await e2e.generate(stub, e2e.ask(LONG, "classify"))
    assert after.token_ids == expected.token_ids


async def test_a_bias_of_100_decides_and_penalties_forbid_what_was_said(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        forced = await e2e.generate(stub, e2e.ask(sampling=pb.SamplingParams(logit_bias={1234: 100}), ignore_eos=True))
        assert forced.token_ids == [1234] * 8
        sampling = pb.SamplingParams(logit_bias={1234: 100, 2345: 100}, presence_penalty=100)
        turns = await e2e.generate(stub, e2e.ask(sampling=sampling, ignore_eos=True, max_tokens=2))
        assert set(turns.token_ids) == {1234, 2345}


async def test_no_end_token_comes_before_min_tokens(system: Any, e2e: Any) -> None:
    request = e2e.ask(ignore_eos=True)
    async with system.stub() as stub:
        free = await e2e.generate(stub, request)
        request.stop.token_ids.append(free.token_ids[3])
        short = await e2e.generate(stub, request)
        request.stop.min_tokens = 6
        longer = await e2e.generate(stub, request)
    assert short.finished.reason == pb.FINISH_REASON_STOP
    assert short.token_ids == free.token_ids[: len(short.token_ids)]
    assert longer.token_ids[: len(short.token_ids) - 1] == short.token_ids[:-1]
    assert free.token_ids[3] not in longer.token_ids[:6]
    assert len(longer.token_ids) >= 6


async def test_adapters_and_the_base_model_answer_in_a_form_beside_free_answers(system: Any, e2e: Any) -> None:
    properties = {"name": {"type": "string", "maxLength": 12}, "old": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "old"], "additionalProperties": False}
    guide = pb.Guide(json_schema=json.dumps(schema))
    question = "Who keeps the lighthouse?"
    async with system.stub() as stub:
        alone = await e2e.generate(stub, e2e.ask(question, "sql"))
        free, *guided = await asyncio.gather(
            e2e.generate(stub, e2e.ask(question, "sql")),
            *(
                e2e.generate(stub, e2e.ask(question, *adapter, guide=guide, max_tokens=100))
                for adapter in ((), ("pirate",))
            ),
        )
    assert free.token_ids == alone.token_ids
    for answer in guided:
        assert answer.finished.reason == pb.FINISH_REASON_STOP
        found = json.loads(answer.text)
        assert found.keys() == {"name", "old"}
        assert len(found["name"]) <= 12
        assert isinstance(found["old"], bool)


async def test_bad_words_and_an_echo_on_the_real_vocabulary(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        free = await e2e.generate(stub, e2e.ask("Tell me about the sea.", max_tokens=12))
        words = [word for word in free.text.split() if len(word) > 3][:2]
        assert words
        sampling = pb.SamplingParams(bad_words=words)
        other = await e2e.generate(stub, e2e.ask("Tell me about the sea.", max_tokens=12, sampling=sampling))
    assert not any(word in other.text for word in words)


async def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(system: Any, e2e: Any) -> None:
    sampling = pb.SamplingParams(temperature=1, seed=7, typical_p=0.9, repetition_penalty=1.2, frequency_penalty=0.1)
    async with system.stub() as stub:
        alone = await e2e.generate(stub, e2e.ask(sampling=sampling, max_tokens=24, ignore_eos=True))
        others = [e2e.ask(f"{n}?", "sql", sampling=pb.SamplingParams(temperature=1), max_tokens=24) for n in range(5)]
        among, *_ = await asyncio.gather(
            e2e.generate(stub, e2e.ask(sampling=sampling, max_tokens=24, ignore_eos=True)),
            *(e2e.generate(stub, other) for other in others),
        )
    assert among.token_ids == alone.token_ids
