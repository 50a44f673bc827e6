"""An adapter with probes is tried before anyone is served by it, and never served when it answers something else."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from adapter.manifest import PROBE_FILE, WEIGHTS_FILE
from inference.errors import InferenceError
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [5, 6, 7]


@pytest.fixture
def with_probes(tiny_adapter, open_worker):
    """Writes an adapter with a probe of what it answers, but for the keywords: `with_probes("a", leading=1)`."""

    async def write(name, *, seed=1, **changes):
        folder = tiny_adapter(name, seed=seed)
        async with open_worker(adapters=(f"a={folder}",)) as worker:
            messages = await worker.generate(PROMPT, "a", max_tokens=4, logprobs=0)
        found = [one for message in messages for one in message.chunk.logprobs]
        probe = {
            "token_ids": PROMPT,
            "expected_token_ids": [one.token_id for one in found],
            "logprobs": [round(one.logprob, 3) for one in found],
            "tolerance": 0.01,
        }
        (folder / PROBE_FILE).write_text(json.dumps({"probes": [probe | changes]}))
        return folder

    return write


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, InferenceError)


async def test_an_adapter_that_answers_as_expected_is_served_and_tried_once(open_worker, with_probes):
    folder = await with_probes("good")
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        answers = await asyncio.gather(*(worker.tokens(PROMPT, "a", max_tokens=4) for _ in range(3)))
        tokens = worker.core.engine.stats().tokens
        assert tokens == 4 * (1 + len(answers)), "expected one trial beside the answers"
        await worker.stub.UnloadAdapter(pb.UnloadAdapterRequest(reference="a"))
        assert await worker.tokens(PROMPT, "a", max_tokens=4) == answers[0]
        assert worker.core.engine.stats().tokens == tokens + 4, "the same bytes were tried again"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expected_token_ids": [1, 2, 3, 4]}, r"expected the tokens \[1, 2, 3, 4\], found \["),
        ({"logprobs": [-90.0, -1.0, -1.0, -1.0]}, r"token 0: expected a log-probability of -90.0000 ± 0.01, found -"),
        ({"token_ids": [5000]}, "expected ids below 96"),
        ({"token_ids": [5] * 300}, "expected a prompt of at most"),
        ({"leading": 9}, "leading: expected 1 to 4"),
    ],
)
async def test_an_adapter_that_fails_is_never_served_and_says_what_was_expected_and_found(
    open_worker, with_probes, changes, words
):
    folder = await with_probes("bad", **changes)
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        for _ in range(2):
            error = await refused(worker.generate(PROMPT, "a"))
            assert error.reason == "ADAPTER_LOAD_FAILED"
            with pytest.raises(type(error), match=words):
                raise error
        assert worker.core.adapters.loaded() == [], "its memory is not given back"
        assert (await refused(worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference="a")))).reason == error.reason
        assert await worker.tokens(PROMPT)


async def test_tokens_after_the_leading_ones_are_not_compared(open_worker, with_probes):
    folder = await with_probes("good", leading=1)
    document = json.loads((folder / PROBE_FILE).read_text())
    document["probes"][0]["expected_token_ids"][1:] = [0, 0, 0]
    (folder / PROBE_FILE).write_text(json.dumps(document))
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        assert await worker.tokens(PROMPT, "a")


async def test_a_prompt_is_read_as_the_text_of_a_request_is(open_worker, with_probes):
    folder = await with_probes("good")
    document = json.loads((folder / PROBE_FILE).read_text())
    async with open_worker() as worker:
        text = (await worker.stub.Detokenize(pb.DetokenizeRequest(token_ids=PROMPT))).text
    del document["probes"][0]["token_ids"]
    document["probes"][0]["prompt"] = text
    (folder / PROBE_FILE).write_text(json.dumps(document))
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        assert await worker.tokens(PROMPT, "a")


async def test_weights_that_are_replaced_by_worse_ones_are_not_served_and_better_ones_are(
    open_worker, with_probes, tiny_adapter, tmp_path
):
    good = await with_probes("good")
    (tmp_path / "dir").mkdir()
    place = tmp_path / "dir" / "a"
    worse = tiny_adapter("worse", seed=2)
    (worse / PROBE_FILE).write_bytes((good / PROBE_FILE).read_bytes())
    async with open_worker(adapter_dirs=(str(tmp_path / "dir"),)) as worker:
        worse.rename(place)
        assert "self-test" in str(await refused(worker.generate(PROMPT, "a")))
        place.rename(worse)
        good.rename(place)
        assert await worker.tokens(PROMPT, "a")


async def test_who_will_not_wait_is_refused_until_the_trial_has_passed(open_worker, with_probes):
    folder = await with_probes("good")
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        error = await refused(worker.generate(PROMPT, "a", adapter_loading=pb.ADAPTER_LOADING_REFUSE))
        assert (error.reason, error.retry_after_s) == ("ADAPTER_LOADING", 1.0)
        assert (folder / WEIGHTS_FILE).exists()
        assert await worker.tokens(PROMPT, "a")
        assert await worker.generate(PROMPT, "a", adapter_loading=pb.ADAPTER_LOADING_REFUSE)
