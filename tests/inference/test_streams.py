"""Streams: every token once and in order, however slowly it is read, and leases given back exactly when it ends."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from inference.engine.request import (
    Admitted,
    Failed,
    Finished,
    FinishReason,
    Reloaded,
    Request,
    SamplingParams,
    SlotUse,
    Token,
)
from inference.errors import EngineFailed, QueueFull
from inference.streams import MAX_UNREAD, Stream, Streams

END = Finished("r", FinishReason.LENGTH, output_tokens=3, queued_s=0.0, first_token_s=0.1, total_s=0.2)


class Lease:
    def __init__(self) -> None:
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


class Engine:
    """Takes or refuses; its events are whatever the test delivers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.orders: list[str] = []

    def submit(self, request: Request) -> None:
        if self.error is not None:
            raise self.error

    def cancel(self, request_id: str, answer: int | None = None) -> None: ...

    def pause(self, request_id: str) -> None:
        self.orders.append("pause")

    def resume(self, request_id: str) -> None:
        self.orders.append("resume")


def make_request() -> Request:
    return Request(id="r", prompt_ids=(1,), sampling=SamplingParams(max_tokens=3))


def deliver_from_another_thread(streams: Streams, *batches: list[Admitted | Token | Finished | Failed]) -> None:
    def run() -> None:
        for batch in batches:
            streams.deliver(batch)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


async def read(stream: Stream) -> tuple[list[list[int]], Finished]:
    pieces: list[list[int]] = []
    async for batch in stream.batches():
        if isinstance(batch, Finished):
            return pieces, batch
        pieces.append([token.token_id for token in batch])
    raise AssertionError("expected Finished")


async def test_tokens_that_wait_for_a_slow_reader_come_in_one_piece() -> None:
    streams, lease = Streams(), Lease()
    stream = streams.open(Engine(), make_request(), [lease])
    tokens = [Token("r", index, 10 + index) for index in range(3)]
    deliver_from_another_thread(streams, [tokens[0]], [tokens[1]], [tokens[2], END])
    await asyncio.sleep(0)
    assert await read(stream) == ([[10, 11, 12]], END)
    assert lease.releases == 1
    assert len(streams) == 0


async def test_a_reader_that_keeps_up_gets_each_step() -> None:
    streams = Streams()
    stream = streams.open(Engine(), make_request(), [])
    reading = asyncio.create_task(read(stream))
    for index in range(3):
        await asyncio.sleep(0)
        deliver_from_another_thread(streams, [Token("r", index, 10 + index)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    deliver_from_another_thread(streams, [END])
    assert await reading == ([[10], [11], [12]], END)


async def test_a_request_is_admitted_before_its_first_token() -> None:
    streams = Streams()
    stream = streams.open(Engine(), make_request(), [])
    admitted = asyncio.create_task(stream.admitted())
    await asyncio.sleep(0)
    assert not admitted.done()
    deliver_from_another_thread(streams, [Admitted("r", cached_tokens=7), Token("r", 0, 10)], [END])
    assert (await admitted).cached_tokens == 7
    assert await read(stream) == ([[10]], END)


async def test_a_request_that_fails_in_the_queue_says_why() -> None:
    streams, lease = Streams(), Lease()
    stream = streams.open(Engine(), make_request(), [lease])
    deliver_from_another_thread(streams, [Failed("r", EngineFailed("the engine ended"))])
    with pytest.raises(EngineFailed, match="the engine ended"):
        await stream.admitted()
    assert lease.releases == 1


async def test_a_lease_outlives_its_reader_until_the_engine_is_done() -> None:
    streams, lease = Streams(), Lease()
    stream = streams.open(Engine(), make_request(), [lease])
    del stream  # the caller has gone; the engine may still be computing the row
    await asyncio.sleep(0)
    assert lease.releases == 0
    deliver_from_another_thread(streams, [END])
    await streams.wait_until_empty()
    assert lease.releases == 1


async def test_an_engine_error_reaches_the_reader_after_the_tokens_before_it() -> None:
    streams, lease = Streams(), Lease()
    stream = streams.open(Engine(), make_request(), [lease])
    deliver_from_another_thread(streams, [Token("r", 0, 10), Failed("r", EngineFailed("no numbers"))])
    await asyncio.sleep(0)
    batches = stream.batches()
    assert [token.token_id for token in await anext(batches)] == [10]
    with pytest.raises(EngineFailed, match="no numbers"):
        await anext(batches)
    assert lease.releases == 1


async def test_a_refused_request_gives_its_leases_back_at_once() -> None:
    streams, lease = Streams(), Lease()
    with pytest.raises(QueueFull):
        streams.open(Engine(QueueFull()), make_request(), [lease])
    assert lease.releases == 1
    assert len(streams) == 0


async def test_the_answers_of_one_request_end_one_by_one_and_give_the_leases_back_with_the_last() -> None:
    streams, lease = Streams(), Lease()
    stream = streams.open(Engine(), make_request(), [lease])
    first = replace(END, answer=1, is_last=False)
    tokens = [Token("r", 0, 10), Token("r", 0, 20, answer=1), Token("r", 1, 11)]
    deliver_from_another_thread(streams, [tokens[0], tokens[1], first])
    await asyncio.sleep(0)
    batches = stream.batches()
    assert await anext(batches) == tokens[:2]
    deliver_from_another_thread(streams, [tokens[2], END])
    assert await anext(batches) == first
    assert lease.releases == 0
    await asyncio.sleep(0)
    assert [batch async for batch in batches] == [[tokens[2]], END]
    assert lease.releases == 1


async def test_a_request_is_paused_when_its_tokens_are_not_taken_and_goes_on_when_they_are() -> None:
    streams, engine = Streams(), Engine()
    stream = streams.open(engine, make_request(), [])
    tokens = [Token("r", index, 10) for index in range(MAX_UNREAD + 3)]
    deliver_from_another_thread(streams, tokens[:MAX_UNREAD])
    await asyncio.sleep(0)
    assert engine.orders == []
    deliver_from_another_thread(streams, tokens[MAX_UNREAD:])
    await asyncio.sleep(0)
    assert engine.orders == ["pause"]
    batches = stream.batches()
    assert await anext(batches) == tokens
    assert engine.orders == ["pause"], "the tokens are taken, and may be on their way for a long time"
    deliver_from_another_thread(streams, [END])
    assert await anext(batches) == END
    assert engine.orders == ["pause", "resume"]


async def test_a_reload_comes_between_the_tokens_before_and_after_it_and_one_before_the_start_is_no_news() -> None:
    streams = Streams()
    stream = streams.open(Engine(), make_request(), [])
    early, late = (Reloaded("r", index, (SlotUse(index, "sha256:new"),)) for index in (0, 1))
    deliver_from_another_thread(
        streams, [early], [Admitted("r", cached_tokens=0), Token("r", 0, 10)], [late, Token("r", 1, 11)], [END]
    )
    await stream.admitted()
    assert stream.uses == early.uses
    found = [batch async for batch in stream.batches()]
    assert found == [[Token("r", 0, 10)], late, [Token("r", 1, 11)], END]
