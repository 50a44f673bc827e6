"""Where the engine's events meet the event loop: one stream for each request. Knows no gRPC and no text.

The engine thread hands over the events of a step in one call; the loop deals them out. A stream that nobody reads
gathers its tokens, so a slow consumer gets them in larger pieces and delays no one. The leases of a request's adapters
are released when the engine says that it is done with them, which is after a cancelled request's last step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from inference.engine.request import Admitted, Event, Failed, Finished, Request, Token


class Engine(Protocol):
    """The part of the engine that streams need."""

    def submit(self, request: Request) -> None:
        """Queues a request. Raises InferenceError."""

    def cancel(self, request_id: str) -> None:
        """Ends a request at the next step; harmless when it has ended."""


class Releasable(Protocol):
    """A lease on an adapter's memory."""

    def release(self) -> None:
        """Gives it back."""


class Stream:
    """The answer to one request, as it comes."""

    def __init__(self, leases: Sequence[Releasable]) -> None:
        self._leases = leases
        self._admitted: Admitted | None = None
        self._tokens: list[Token] = []
        self._end: Finished | Failed | None = None
        self._news = asyncio.Event()

    async def admitted(self) -> Admitted:
        """Returns when the first step that computed the request has run; before `batches`. Raises what it failed with.

        A request that is cancelled before that is told to nobody: only who reads the stream cancels it.
        """
        while self._admitted is None:
            await self._news.wait()
            if isinstance(self._end, Failed):
                raise self._end.error
            assert self._admitted is not None or self._end is None, "expected no one to read a cancelled request"
        return self._admitted

    async def batches(self) -> AsyncIterator[list[Token] | Finished]:
        """Every token in order, as many at once as have come, and then Finished. Raises what the engine failed with."""
        while True:
            await self._news.wait()
            self._news.clear()
            tokens, self._tokens = self._tokens, []
            if tokens:
                yield tokens
            if isinstance(self._end, Failed):
                raise self._end.error
            if self._end is not None and not self._tokens:
                yield self._end
                return

    @property
    def is_finished(self) -> bool:
        """Whether the engine is done with the request."""
        return self._end is not None

    def _take(self, event: Event) -> None:
        if isinstance(event, Admitted):
            self._admitted = event
        elif isinstance(event, Token):
            self._tokens.append(event)
        else:
            self._end = event
            for lease in self._leases:
                lease.release()
        self._news.set()


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
        stream = Stream(leases)
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
            self._streams[event.request_id]._take(event)
            if isinstance(event, Finished | Failed):
                self._forget(event.request_id)

    def _forget(self, request_id: str) -> None:
        del self._streams[request_id]
        if not self._streams:
            self._empty.set()
