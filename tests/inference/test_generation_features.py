"""What a Generate call promises, over the real door of a tiny worker: several answers, the best of them, guides, bad
words, echoes and scores, each equal to what plainer calls or plain arithmetic give."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import torch

from inference.errors import AnswerStuck, InferenceError
from inference.models.llama import Llama
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [40, 41, 42, 43, 44]
FREE = {"temperature": 1.0, "top_p": 0.95}


@dataclass
class Heard:
    """One answer, as it was told."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finished: pb.Finished | None = None


def ask(*, seed: int = 1, max_tokens: int = 12, ignore_eos: bool = True, stop: Any = None, **fields: Any) -> Any:
    sampling = pb.SamplingParams(**{**FREE, "seed": seed, **fields.pop("sampling", {})})
    adapters = [pb.AdapterUse(reference=reference) for reference in fields.pop("adapters", ())]
    conditions = pb.StopConditions(max_tokens=max_tokens, ignore_eos=ignore_eos, **(stop or {}))
    prompt = {} if "text" in fields else {"token_ids": pb.TokenIds(ids=PROMPT)}
    return pb.GenerateRequest(sampling=sampling, stop=conditions, adapters=adapters, **prompt, **fields)


async def hear(worker: Any, request: Any) -> tuple[list[Heard], pb.Prompt | None]:
    """Every answer of a call by its number, and the prompt; checks the order of the messages."""
    answers: dict[int, Heard] = {}
    prompt, has_started = None, False
    async for message in worker.stub.Generate(request, timeout=60):
        kind = message.WhichOneof("message")
        assert has_started == (kind != "started"), "expected Started first, and once"
        has_started = True
        if kind == "prompt":
            assert prompt is None
            assert not answers, "expected the prompt before the answers"
            prompt = message.prompt
        elif kind == "chunk":
            heard = answers.setdefault(message.chunk.answer, Heard())
            assert heard.finished is None
            assert message.chunk.index == len(heard.ids)
            heard.ids += message.chunk.token_ids
            heard.text += message.chunk.text
            heard.logprobs += [one.logprob for one in message.chunk.logprobs]
        elif kind == "finished":
            heard = answers.setdefault(message.finished.answer, Heard())
            assert heard.finished is None
            heard.finished = message.finished
            assert message.finished.output_tokens == len(heard.ids)
            assert message.finished.prompt_tokens > 0
    assert sorted(answers) == list(range(len(answers)))
    assert all(heard.finished is not None for heard in answers.values())
    return [answers[number] for number in sorted(answers)], prompt


async def hear_one(worker: Any, request: Any) -> Heard:
    [heard], _ = await hear(worker, request)
    return heard


async def fails(worker: Any, request: Any) -> InferenceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await hear(worker, request)
    return from_rpc_error(caught.value, InferenceError)


async def idle(worker: Any) -> None:
    """Nothing of an ended call is left: rows, blocks, streams."""
    await worker.core.streams.wait_until_empty()
    stats = await asyncio.wrap_future(worker.core.engine.run_between_steps(worker.core.engine.stats))
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)


async def test_each_of_several_answers_is_that_of_a_call_with_the_seed_plus_its_number(open_worker: Any) -> None:
    async with open_worker() as worker:
        several, _ = await hear(worker, ask(seed=2**64 - 2, n=4, logprobs=1))
        for number, heard in enumerate(several):
            alone = await hear_one(worker, ask(seed=(2**64 - 2 + number) % 2**64, logprobs=1))
            assert (heard.ids, heard.text) == (alone.ids, alone.text)
            assert heard.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
            assert heard.finished.reason == alone.finished.reason
        assert len({heard.text for heard in several}) > 1
        await idle(worker)


async def test_the_best_answers_are_those_with_the_highest_mean_logprob_best_first(open_worker: Any) -> None:
    def mean(heard: Heard) -> float:
        return sum(heard.logprobs) / len(heard.logprobs)

    async with open_worker() as worker:
        every, _ = await hear(worker, ask(n=6, logprobs=0, ignore_eos=False))
        ranked = sorted(every, key=mean, reverse=True)
        best, _ = await hear(worker, ask(n=2, best_of=6, ignore_eos=False))
        assert [heard.ids for heard in best] == [heard.ids for heard in ranked[:2]]
        assert best[0].logprobs == [], "they were not asked for"
        all_of_them, _ = await hear(worker, ask(n=6, best_of=6, logprobs=0, ignore_eos=False))
        assert [heard.ids for heard in all_of_them] == [heard.ids for heard in ranked]
        assert len(all_of_them[0].logprobs) == len(all_of_them[0].ids)
        await idle(worker)


async def test_a_stop_string_ends_its_own_answer_only_wherever_its_tokens_end(open_worker: Any) -> None:
    async with open_worker() as worker:
        free, _ = await hear(worker, ask(n=4, max_tokens=20))
        strings = [free[0].text[5:8], free[2].text[9:10]]  # each character is a token, and '#' is the end token
        cut, _ = await hear(worker, ask(n=4, max_tokens=20, stop={"strings": strings}))
        for whole, heard in zip(free, cut, strict=True):
            ends = [(whole.text.find(one) + len(one), -len(one), one) for one in strings if one in whole.text]
            if ends:
                end, _, string = min(ends)
                assert heard.text == whole.text[: end - len(string)]
                assert heard.finished.stop_string == string
                assert heard.finished.reason == pb.FINISH_REASON_STOP_STRING
                assert heard.ids == whole.ids[: len(heard.ids)]
            else:
                assert heard.text == whole.text
        assert {heard.finished.reason for heard in cut} >= {pb.FINISH_REASON_STOP_STRING}
        await idle(worker)


async def test_an_echo_is_the_prompt_as_the_model_reads_it(open_worker: Any) -> None:
    async with open_worker() as worker:
        _, prompt = await hear(worker, ask(echo=True, text="Hello!", max_tokens=2))
        assert prompt.text == "Hello!"
        assert list(prompt.token_ids) == worker.core.tokenizer.encode("Hello!")
        assert not prompt.logprobs
        _, nothing = await hear(worker, ask(max_tokens=2))
        assert nothing is None


@pytest.mark.parametrize("n", [1, 3])
async def test_scores_of_a_prompt_are_those_of_one_plain_pass(
    open_worker: Any, tiny_served_dir: Any, paged: Any, prompt_ids: Any, n: int
) -> None:
    ids = prompt_ids(90)
    async with open_worker(step_tokens=16, max_batch=8) as worker:
        request = ask(n=n, max_tokens=2, prompt_logprobs=2, echo=n == 3)
        request.token_ids.ids[:] = ids
        for _ in range(2):  # the second could use what the first left in the cache
            answers, prompt = await hear(worker, request)
            assert len(answers) == n
            assert bool(prompt.text) == (n == 3)
            expected = paged(Llama.load(tiny_served_dir, "float32")).step([("a", ids)]).log_softmax(-1)
            assert [one.token_id for one in prompt.logprobs] == ids[1:]
            chosen = expected[range(89), ids[1:]].tolist()
            assert [one.logprob for one in prompt.logprobs] == pytest.approx(chosen, abs=1e-4)
            best = expected[:-1].topk(2)
            assert [[o.token_id for o in one.alternatives] for one in prompt.logprobs] == best.indices.tolist()


async def test_bad_words_never_occur_and_harmless_ones_change_nothing(open_worker: Any, prompt_ids: Any) -> None:
    async def answer(seed: int, words: list[str], **sampling: Any) -> str:
        request = ask(seed=seed, max_tokens=40, sampling={"bad_words": words, **sampling})
        request.token_ids.ids[:] = prompt_ids(6, seed=seed)
        return (await hear_one(worker, request)).text

    async with open_worker() as worker:
        for seed in range(3):
            free = await answer(seed, [], temperature=0)
            words = [free[3:5], free[11], free[20:23]]
            likeliest = await answer(seed, words, temperature=0)
            drawn = await answer(seed, words)
            assert not any(word in text for word in words for text in (likeliest, drawn))
            first = min(free.find(word) + len(word) - 1 for word in words)
            assert likeliest[:first] == free[:first], "nothing changes before a word would be complete"
            assert await answer(seed, [free[:4] + "~~", "  "], temperature=0) == free


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4, "pattern": "^[A-Z]+$"},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 120}, "maxItems": 3},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}
COMPACT = SCHEMA | {"x-guidance": {"whitespace_flexible": False}}  # the tiny vocabulary has no space


async def test_guided_rows_beside_adapters_and_free_rows_have_their_form_and_disturb_nobody(
    open_worker: Any, tiny_adapter: Any
) -> None:
    adapters = (f"a={tiny_adapter('a', seed=1)}", f"b={tiny_adapter('b', seed=2)}")
    guides = [
        (pb.Guide(json_schema=json.dumps(COMPACT)), is_person),
        (pb.Guide(regex="[a-f]{3,9}(-[0-9])?"), lambda text: re.fullmatch("[a-f]{3,9}(-[0-9])?", text)),
        (pb.Guide(choices=pb.Choices(texts=["yes", "no", "maybe"])), {"yes", "no", "maybe"}.__contains__),
        (pb.Guide(grammar='start: "(" start ")" | "x"\n'), lambda text: re.fullmatch(r"\(*x\)*", text)),
    ]
    names = [(), ("a",), ("b",)]

    def guided(index: int, **fields: Any) -> Any:
        extra = {"logit_bias": {77: 3.0}, "repetition_penalty": 1.1, "top_k": 30}
        return ask(
            seed=index, max_tokens=120, ignore_eos=False, adapters=names[index % 3],
            guide=guides[index % 4][0], sampling=extra, **fields,
        )  # fmt: skip

    async with open_worker(adapters=adapters) as worker:
        free = [ask(seed=index, adapters=names[index % 3]) for index in range(6)]
        alone = [await hear_one(worker, request) for request in free]
        requests = [*free, *(guided(index) for index in range(12))]
        heard = await asyncio.gather(*(hear_one(worker, request) for request in requests))
        assert [one.ids for one in heard[:6]] == [one.ids for one in alone]
        for index, one in enumerate(heard[6:]):
            if one.finished.reason == pb.FINISH_REASON_STOP:
                assert guides[index % 4][1](one.text), one.text
            else:
                assert one.finished.reason == pb.FINISH_REASON_LENGTH
                assert len(one.ids) == 120
        assert sum(one.finished.reason == pb.FINISH_REASON_STOP for one in heard[6:]) >= 9
        again = await hear_one(worker, guided(0))
        assert again.ids == heard[6].ids, "the same seed gives the same answer, whatever runs beside it"
        await idle(worker)


def is_person(text: str) -> bool:
    person = json.loads(text)
    assert person.keys() == {"name", "ages"}
    assert re.fullmatch("[A-Z]{1,4}", person["name"])
    return len(person["ages"]) <= 3 and all(0 <= age <= 120 for age in person["ages"])


async def test_several_guided_answers_walk_by_themselves(open_worker: Any) -> None:
    async with open_worker() as worker:
        request = ask(n=8, max_tokens=90, ignore_eos=False, guide=pb.Guide(json_schema=json.dumps(COMPACT)))
        answers, _ = await hear(worker, request)
        assert all(is_person(heard.text) for heard in answers)
        assert len({heard.text for heard in answers}) > 1


async def test_an_answer_that_is_cut_says_so_and_is_a_beginning_of_its_form(open_worker: Any) -> None:
    async with open_worker() as worker:
        form = {"guide": pb.Guide(regex="abc[d-z]{30}"), "ignore_eos": False}
        heard = await hear_one(worker, ask(max_tokens=7, **form))
        assert heard.finished.reason == pb.FINISH_REASON_LENGTH
        assert re.fullmatch("abc[d-z]{4}", heard.text)
        stopped = await hear_one(worker, ask(max_tokens=40, stop={"strings": ["bc"]}, **form))
        assert (stopped.text, stopped.finished.reason) == ("a", pb.FINISH_REASON_STOP_STRING)
        late = await hear_one(
            worker, ask(max_tokens=9, stop={"min_tokens": 5}, ignore_eos=False, guide=pb.Guide(regex="ab"))
        )
        assert late.text == "ab", "a form that is complete ends, however few its tokens are"


async def test_an_answer_without_a_way_on_is_an_error_after_its_first_tokens(open_worker: Any) -> None:
    async with open_worker() as worker:
        request = ask(ignore_eos=False, guide=pb.Guide(regex="abc"), sampling={"bad_words": ["ab"]})
        assert isinstance(await fails(worker, request), AnswerStuck)
        request = ask(ignore_eos=False, guide=pb.Guide(regex="ab c"))  # the tiny vocabulary has no space
        assert isinstance(await fails(worker, request), AnswerStuck)
        await idle(worker)


async def test_a_call_that_is_left_frees_every_answer(open_worker: Any) -> None:
    async with open_worker() as worker:
        call = worker.stub.Generate(ask(n=8, max_tokens=200, best_of=8))
        async for message in call:
            assert message.HasField("started")
            break
        call.cancel()
        await idle(worker)


async def test_the_text_of_an_answer_is_that_of_its_ids(open_worker: Any) -> None:
    async with open_worker() as worker:
        heard = await hear_one(worker, ask(max_tokens=60))
        assert heard.text == worker.core.tokenizer.decode(heard.ids)
        assert torch.tensor(heard.ids).max() < 96


async def test_guided_answers_that_are_preempted_go_on_where_they_were(open_worker: Any) -> None:
    guide = pb.Guide(regex="[a-m]{60}[n-z]{60}")
    requests = [ask(seed=seed, max_tokens=200, ignore_eos=False, guide=guide, n=2) for seed in range(4)]
    async with open_worker() as worker:
        roomy = [await hear(worker, request) for request in requests]
    # 48 blocks of 16 positions, where eight answers of 126 tokens need 64.
    async with open_worker(kv_memory=48 * 16 * 3 * 2 * 2 * 8 * 4, max_context=256) as worker:
        tight = await asyncio.gather(*(hear(worker, request) for request in requests))
        assert worker.core.engine.stats().preemptions > 0
        await idle(worker)
    for (ours, _), (theirs, _) in zip(tight, roomy, strict=True):
        assert [heard.ids for heard in ours] == [heard.ids for heard in theirs]
        assert all(re.fullmatch("[a-m]{60}[n-z]{60}", heard.text) for heard in ours)
