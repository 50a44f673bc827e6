"""Where the engine's events meet the event loop: one stream for each request. Knows no gRPC and no text.

The engine thread hands over the events of a step in one call; the loop deals them out. A stream that nobody reads
gathers its tokens, so a slow consumer gets them in larger pieces and delays no one; past a bound its request is paused
until they are taken. The leases of a request's adapters are released when the engine says that it is done with them,
which is after a cancelled request's last step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from inference.engine.request import Admitted, Event, Failed, Finished, PromptScored, Reloaded, Request, Score, Token

# Tokens that a stream may gather before its request is paused: some ten seconds of a fast answer, a few KiB without
# log-probabilities. The steps under way add one each.
MAX_UNREAD = 512


class Engine(Protocol):
    """The part of the engine that streams need."""

    def submit(self, request: Request) -> None:
        """Queues a request. Raises InferenceError."""

    def cancel(self, request_id: str, answer: int | None = None) -> None:
        """Ends a request, or one answer of it, at the next step; harmless when it has ended."""

    def pause(self, request_id: str) -> None:
        """Takes a request out of the steps from the next one on; harmless when it has ended."""

    def resume(self, request_id: str) -> None:
        """Lets a paused request go on."""


class Releasable(Protocol):
    """A lease on an adapter's memory."""

    def release(self) -> None:
        """Gives it back."""


class Stream:
    """The answers to one request, as they come."""

    def __init__(self, engine: Engine, request: Request, leases: Sequence[Releasable]) -> None:
        self._engine = engine
        self.request_id = request.id
        self.uses = request.uses
        """The adapters that its first token is computed with."""
        self._leases = leases
        self._is_paused = False
        self._admitted: Admitted | None = None
        self.prompt_scores: tuple[Score, ...] = ()
        """Of every prompt token but the first, if they were asked for; there before the first token."""
        self._news: list[Token | Reloaded] = []
        self._ends: list[Finished] = []
        self._failure: Failed | None = None
        self._is_finished = False
        self._has_news = asyncio.Event()

    async def admitted(self) -> Admitted:
        """Returns when the first step that computed the request has run; before `batches`. Raises what it failed with.

        A request that is cancelled before that is told to nobody: only who reads the stream cancels it.
        """
        while self._admitted is None:
            await self._has_news.wait()
            if self._failure is not None:
                raise self._failure.error
            assert self._admitted is not None or not self._ends, "expected no one to read a cancelled request"
        return self._admitted

    async def batches(self) -> AsyncIterator[list[Token] | Reloaded | Finished]:
        """Every token in order, as many at once as have come, and a Finished after the last token of each answer.

        A Reloaded comes between the tokens that were computed before and after it.

        The tokens of several answers are mixed. Ends with the last Finished; raises what the engine failed with.
        """
        is_over = False
        while not is_over:
            await self._has_news.wait()
            self._has_news.clear()
            news, self._news = self._news, []
            ends, self._ends = self._ends, []
            is_over = self._is_finished
            for batch in _batches(news):
                yield batch
            if self._is_paused:  # and whoever reads has come back for more
                self._is_paused = False
                self._engine.resume(self.request_id)
            for end in ends:
                yield end
        if self._failure is not None:
            raise self._failure.error

    @property
    def is_finished(self) -> bool:
        """Whether the engine is done with the request."""
        return self._is_finished

    def _take(self, event: Event) -> bool:
        """Takes the next event of the request; returns whether it is the last."""
        match event:
            case Admitted():
                self._admitted = event
            case PromptScored():
                self.prompt_scores = event.scores
            case Token():
                self._news.append(event)
                if len(self._news) > MAX_UNREAD and not self._is_paused:
                    self._is_paused = True
                    self._engine.pause(self.request_id)
            case Reloaded() if self._admitted is None:
                self.uses = event.uses
                return False  # nobody need know before the request is admitted
            case Reloaded():
                self._news.append(event)
            case Finished():
                self._ends.append(event)
                self._is_finished = event.is_last
            case Failed():
                self._failure = event
                self._is_finished = True
        if self._is_finished:
            for lease in self._leases:
                lease.release()
        self._has_news.set()
        return self._is_finished


def _batches(news: Sequence[Token | Reloaded]) -> Iterator[list[Token] | Reloaded]:
    """As many tokens at once as come without another event between them."""
    tokens: list[Token] = []
    for one in news:
        if isinstance(one, Token):
            tokens.append(one)
            continue
        if tokens:
            yield tokens
            tokens = []
        yield one
    if tokens:
        yield tokens


class Streams:
    """All open streams of one engine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def deliver(self, events: Sequence[Event]) -> None:
        """The engine's `on_events`; called on its thread."""
        self._loop.call_soon_threadsafe(self._deal, events)

    def open(self, engine: Engine, request: Request, leases: Sequence[Releasable]) -> Stream:
        """Submits the request; from here on the stream owns the leases, also when this raises what `submit` raises."""
        stream = Stream(engine, request, leases)
        self._streams[request.id] = stream
        self._empty.clear()
        try:
            engine.submit(request)
        except BaseException:
            self._forget(request.id)
            for lease in leases:
                lease.release()
            raise
        return stream

    async def wait_until_empty(self) -> None:
        """Returns when the engine has ended every request."""
        await self._empty.wait()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._streams

    def __len__(self) -> int:
        return len(self._streams)

    def _deal(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._streams[event.request_id]._take(event):
                self._forget(event.request_id)

    def _forget(self, request_id: str) -> None:
        del self._streams[request_id]
        if not self._streams:
            self._empty.set()
