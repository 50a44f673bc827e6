"""A worker in this process under ten times the load it has room for, and beside readers that do not read."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from inference import streams as streams_module
from inference.engine.request import Finished, Request, SamplingParams
from inference.errors import QueueFull
from inference.streams import Stream

ROWS, QUEUE, TOKENS = 4, 16, 32
PROMPTS = [tuple(range(3 + n, 9 + 2 * n)) for n in range(5)]


class Asker:
    """Submits requests to a worker's engine and reads their answers."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self._ids = itertools.count()

    def open(self, prompt: tuple[int, ...], *, max_tokens: int = TOKENS, tenant: str = "") -> Stream:
        request = Request(f"load-{next(self._ids)}", prompt, SamplingParams(max_tokens), tenant=tenant)
        stream: Stream = self.core.streams.open(self.core.engine, request, [])
        return stream

    async def read(self, stream: Stream) -> list[int]:
        found: list[int] = []
        async for batch in stream.batches():
            if isinstance(batch, list):
                assert [token.index for token in batch] == list(range(len(found), len(found) + len(batch)))
                found += [token.token_id for token in batch]
        return found

    async def alone(self, prompt: tuple[int, ...], *, max_tokens: int = TOKENS) -> list[int]:
        return await self.read(self.open(prompt, max_tokens=max_tokens))


@pytest.fixture
async def asker(open_worker: Callable[..., Any]) -> AsyncIterator[Asker]:
    async with open_worker(max_batch=ROWS, max_queue=QUEUE, step_tokens=64) as worker:
        yield Asker(worker.core)


async def until_paused(engine: Any, count: int) -> None:
    async with asyncio.timeout(30):
        while engine.stats().paused < count:
            await asyncio.sleep(0)


async def test_at_ten_times_the_load_no_row_is_idle_and_nothing_is_lost(asker: Asker) -> None:
    expected = {prompt: await asker.alone(prompt) for prompt in PROMPTS}
    engine, counts = asker.core.engine, Counter[str]()
    has_ended = asyncio.Condition()
    marks: list[tuple[int, int]] = []  # tokens and steps, at the first and the last answer of the crowded time

    async def ask(number: int) -> None:
        prompt = PROMPTS[number % len(PROMPTS)]
        while counts["answered"] < 45:
            try:
                stream = asker.open(prompt, tenant=f"t{number % 4}")
            except QueueFull as refused:
                counts["refused"] += 1
                counts["refused with a time"] += refused.retry_after_s is not None
                async with has_ended:
                    await has_ended.wait()
                continue
            counts["most"] = max(counts["most"], len(asker.core.streams))
            assert await asker.read(stream) == expected[prompt]
            counts["answered"] += 1
            if counts["answered"] in (5, 40):
                stats = engine.stats()
                marks.append((stats.tokens, stats.steps))
            async with has_ended:
                # As many come back as there is room for, and one more; all of them in the end.
                has_ended.notify(2 if counts["answered"] < 45 else 1000)

    await asyncio.gather(*map(ask, range(10 * (ROWS + QUEUE))))
    (first_tokens, first_steps), (last_tokens, last_steps) = marks
    assert (last_tokens - first_tokens) / (last_steps - first_steps) >= 0.95 * ROWS
    assert counts["refused with a time"] == counts["refused"] > 9 * (ROWS + QUEUE)
    assert counts["most"] <= ROWS + QUEUE, "what waits and runs is bounded"
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)


async def test_a_reader_that_does_not_read_pauses_its_own_request_only(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "MAX_UNREAD", 16)
    engine = asker.core.engine
    prompts, tokens = PROMPTS[:ROWS], 150
    expected = await asyncio.gather(*(asker.alone(prompt, max_tokens=tokens) for prompt in prompts))
    before = engine.stats()
    slow = [asker.open(prompt, max_tokens=tokens) for prompt in prompts]
    await until_paused(engine, ROWS)
    between = engine.stats()
    assert between.tokens - before.tokens < ROWS * tokens, "expected them to be paused before their end"
    assert await asyncio.gather(*(asker.alone(prompt, max_tokens=tokens) for prompt in prompts)) == expected
    after = engine.stats()
    assert after.tokens - between.tokens == ROWS * tokens
    assert after.steps - between.steps <= tokens + 2 * ROWS, "all of them were in each step, from the first ones on"
    assert [await asker.read(stream) for stream in slow] == expected
    assert engine.stats().paused == 0


async def test_a_request_that_is_paused_can_be_cancelled(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "MAX_UNREAD", 4)
    stream = asker.open(PROMPTS[0], max_tokens=200)
    engine = asker.core.engine
    await until_paused(engine, 1)
    engine.cancel(stream.request_id)
    batches = [batch async for batch in stream.batches()]
    assert isinstance(batches[-1], Finished)
    assert engine.stats().blocks_free == engine.stats().blocks
