"""The engine: one thread, one queue in, one call of events out for each step.

    submit, cancel, run_between_steps ──► inbox ──► engine thread: step, step, step … ──► on_events
       (any thread; one lock)                       (owns scheduler, model and sampling)

An engine without work waits for the inbox and uses no processor time. Knows no tensors, no text, no adapter files:
the runner computes a step, the scheduler decides what is in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from inference.engine.intake import RETRY_AFTER_S, Intake
from inference.engine.request import Event, Failed, Finished, Request, Token
from inference.engine.scheduler import Scheduler
from inference.engine.sequence import Chunk, Sampled
from inference.errors import Draining, EngineFailed, InferenceError, InvalidRequest

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class StepRunner(Protocol):
    """Computes a step: what Scheduler.complete takes in. May raise RequestsFailed."""

    def run(self, chunks: list[Chunk]) -> list[Sampled | InferenceError]: ...


class RequestsFailed(Exception):
    """Some requests of a step cannot be computed, and nothing was; between runner and engine only."""

    def __init__(self, message: str, *, request_ids: list[str]) -> None:
        super().__init__(message)
        self.request_ids = request_ids


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Where the engine stands; `steps`, `tokens` (answered) and `preemptions` count from its start.

    `blocks_kept` are those of `blocks_free` whose contents a new request can still use.
    """

    running: int
    waiting: int
    paused: int
    blocks: int
    blocks_free: int
    blocks_kept: int
    steps: int
    tokens: int
    preemptions: int


class Engine:
    """Answers requests until it is stopped.

    `on_events` is called on the engine thread with all events of one step; it must only hand them over. Each request
    that `submit` took gets exactly one last event, whatever happens: Failed, or the Finished of its last answer.
    `on_failure` is called on the same thread, once, if the engine ends because its state cannot be trusted: the process
    should end too.
    """

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        on_events: Callable[[list[Event]], None],
        *,
        on_failure: Callable[[EngineFailed], None] | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._on_events = on_events
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()  # guards the inbox and the five names below
        self._intake = Intake(scheduler)
        self._unfinished: dict[str, str] = {}  # the tenant of each request, in order of submission
        self._is_draining = False
        self._is_stopping = False
        self._failure: EngineFailed | None = None
        self._steps = 0
        self._tokens = 0

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Refuses new requests and fails the waiting ones with Draining, at the next step; those under way go on."""

        def fail_waiting() -> None:
            self._emit(self._scheduler.fail(self._scheduler.not_begun(), Draining(retry_after_s=RETRY_AFTER_S)))

        with self._wake:
            self._is_draining = True
            self._put(fail_waiting)

    def stop(self) -> None:
        """Ends the step under way, fails every request that has not ended with Draining, and joins the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Queues a request, from any thread.

        Raises PromptTooLong, InvalidRequest (the id is in use), QueueFull, TenantRateExceeded, and Draining once the
        engine drains or stops.
        """
        self._scheduler.check_fits(request)
        with self._wake:
            self._check_open()
            if request.id in self._unfinished:
                raise InvalidRequest(
                    f"request_id: expected one that no running request has, found {request.id}", field="request_id"
                )
            if self._is_draining:
                raise Draining(retry_after_s=RETRY_AFTER_S)
            self._intake.take(request, time.monotonic())
            self._unfinished[request.id] = request.tenant
            self._put(lambda: self._add(request))

    def cancel(self, request_id: str, answer: int | None = None) -> None:
        """Frees the request's rows and blocks at the next step, or those of one answer that has had a token.

        Does nothing if it has ended. From any thread.
        """

        def cancel() -> None:
            self._emit(self._scheduler.cancel(request_id, time.monotonic(), answer=answer))

        with self._wake:
            if request_id in self._unfinished:
                self._put(cancel)

    def pause(self, request_id: str) -> None:
        """Gives the request's rows to others from the next step on, until it is resumed. From any thread."""
        with self._wake:
            self._put(lambda: self._scheduler.pause(request_id))

    def resume(self, request_id: str) -> None:
        """Lets a paused request go on when it is its turn. From any thread."""
        with self._wake:
            self._put(lambda: self._scheduler.resume(request_id))

    def reload(self, name: str, *, slot: int, digest: str) -> Future[None]:
        """Has requests that follow a name go on with other weights, as Scheduler.reload; from any thread.

        Requests submitted before are moved; whoever submits later says the new weights. Done when no step uses the old
        ones any more. Raises Draining once the engine stops, and then nothing is moved.
        """
        return self.run_between_steps(lambda: self._emit(self._scheduler.reload(name, slot=slot, digest=digest)))

    def forget_prefixes(self, digest: str) -> Future[None]:
        """Frees the cached blocks that an adapter computed, because nobody will ask for them; from any thread."""
        return self.run_between_steps(lambda: self._scheduler.blocks.forget(digest))

    def run_between_steps(self, function: Callable[[], _T]) -> Future[_T]:
        """Runs a short function on the engine thread when no step is running; its result or error is in the future."""
        future: Future[_T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        with self._wake:
            self._check_open()
            self._put(run)
        return future

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting + self._intake.num_requests,
            paused=scheduler.num_paused,
            blocks=scheduler.blocks.num_blocks,
            blocks_free=scheduler.blocks.num_free,
            blocks_kept=scheduler.blocks.num_kept,
            steps=self._steps,
            tokens=self._tokens,
            preemptions=scheduler.num_preemptions,
        )

    def step(self) -> None:
        """One iteration: schedule, run, postprocess. An exception ends the requests of this step and no others."""
        chunks = self._scheduler.schedule(time.monotonic())
        assert chunks, "expected something to compute, because no request is left that does not fit"
        try:
            sampled = self._runner.run(chunks)
        except RequestsFailed as error:
            log.error("%d requests failed: %s", len(error.request_ids), error)
            events = self._scheduler.fail(error.request_ids, EngineFailed(str(error)))
        except Exception as error:
            log.exception("a step of %d chunks failed", len(chunks))
            failure = EngineFailed(f"the step that computed this request failed: {type(error).__name__}: {error}")
            events = self._scheduler.fail([chunk.sequence.request.id for chunk in chunks], failure)
        else:
            events = self._scheduler.complete(chunks, sampled, time.monotonic())
            self._tokens += len(sampled)
        self._steps += 1
        self._emit(events)

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self.step()
        except Exception as error:
            log.critical("the engine ended, because its state cannot be trusted", exc_info=True)
            with self._wake:
                self._failure = EngineFailed(f"the engine ended: {type(error).__name__}: {error}")
            if self._on_failure is not None:
                self._on_failure(self._failure)
        finally:
            self._close()

    def _take_inbox(self) -> bool:
        """Does what was ordered since the last step, waiting if there is no work; False when it is time to stop."""
        while True:
            with self._wake:
                while not (self._inbox or self._scheduler.has_work or self._is_stopping):
                    self._wake.wait()
                if self._is_stopping:
                    return False
                orders, self._inbox = self._inbox, deque()
            for order in orders:
                order()
            if self._scheduler.has_work:
                return True

    def _put(self, order: Callable[[], None]) -> None:
        self._inbox.append(order)
        self._wake.notify()

    def _add(self, request: Request) -> None:
        self._scheduler.add(request)
        with self._wake:
            self._intake.hand_over(request)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_stopping:
            raise Draining(retry_after_s=RETRY_AFTER_S)

    def _emit(self, events: list[Event]) -> None:
        ended = [e.request_id for e in events if isinstance(e, Failed) or (isinstance(e, Finished) and e.is_last)]
        tokens = Counter(event.request_id for event in events if isinstance(event, Token))
        now_s = time.monotonic()
        with self._wake:
            for request_id, count in tokens.items():
                self._intake.charge_answer(self._unfinished[request_id], count, now_s)
            for request_id in ended:
                del self._unfinished[request_id]
        if events:
            try:
                self._on_events(events)
            except Exception:
                log.exception("%d events were not taken", len(events))

    def _close(self) -> None:
        with self._wake:
            self._is_stopping = True
            orders, self._inbox = self._inbox, deque()
        for order in orders:
            try:
                order()
            except Exception:
                log.exception("an order was not carried out, because the engine ended")
        error = self._failure or Draining(retry_after_s=RETRY_AFTER_S)
        self._emit([Failed(request_id, error) for request_id in list(self._unfinished)])
