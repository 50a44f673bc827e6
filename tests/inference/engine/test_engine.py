from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.engine.engine import Engine, RequestsFailed, StepRunner
from inference.engine.request import Admitted, Event, Failed, Finished, FinishReason, Request, Token
from inference.engine.sequence import Chunk, Sampled
from inference.engine.tenants import TenantPolicy, Tenants
from inference.errors import (
    Draining,
    EngineFailed,
    InferenceError,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    TenantRateExceeded,
)

Simulate = Callable[..., Any]


class Gate:
    """A runner that waits before each step until the test lets it, and fails when the test says so."""

    def __init__(self, runner: StepRunner) -> None:
        self.runner = runner
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.errors: list[Exception] = []

    def run(self, chunks: list[Chunk]) -> list[Sampled | InferenceError]:
        self.entered.release()
        self.passes.acquire()
        if self.errors:
            raise self.errors.pop()
        return self.runner.run(chunks)


class Inbox:
    """Takes events as the service would, and lets a test wait for the end of a request."""

    def __init__(self) -> None:
        self.calls: list[list[Event]] = []
        self.outputs: dict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, Finished | Failed] = {}
        self.changed = threading.Condition()

    def __call__(self, events: list[Event]) -> None:
        with self.changed:
            self.calls.append(events)
            for event in events:
                assert event.request_id not in self.ends
                if isinstance(event, Token):
                    self.outputs[event.request_id].append(event.token_id)
                elif isinstance(event, Finished | Failed):
                    self.ends[event.request_id] = event
            self.changed.notify_all()

    def wait_for(self, *requests: Request) -> list[Finished | Failed]:
        with self.changed:
            assert self.changed.wait_for(lambda: all(r.id in self.ends for r in requests), timeout=30)
        return [self.ends[request.id] for request in requests]


class Bench:
    """An engine under test over a simulation."""

    def __init__(self, world: Any, runner: StepRunner) -> None:
        self.world = world
        self.runner = runner
        self.inbox = Inbox()
        self.failures: list[EngineFailed] = []
        self.engine = Engine(runner, world.scheduler, self.inbox, on_failure=self.failures.append)

    def submit(self, *args: Any, **options: Any) -> Request:
        request: Request = self.world.request(*args, **options)
        self.engine.submit(request)
        return request


@pytest.fixture
def bench(simulate: Simulate) -> Iterator[Bench]:
    world = simulate()
    bench = Bench(world, world.runner)
    bench.engine.start()
    yield bench
    bench.engine.stop()


@pytest.fixture
def gated(simulate: Simulate) -> Iterator[tuple[Bench, Gate]]:
    world = simulate(max_waiting=2, max_running=1)
    gate = Gate(world.runner)
    bench = Bench(world, gate)
    bench.engine.start()
    yield bench, gate
    gate.passes.release(1000)
    bench.engine.stop()


def test_requests_from_many_threads_are_answered_as_if_alone(bench: Bench) -> None:
    requests = [bench.world.request(1 + n % 5, max_tokens=1 + n % 6, adapter=f"a{n % 4}") for n in range(60)]
    threads = [
        threading.Thread(target=lambda part=part: [bench.engine.submit(r) for r in requests[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = bench.inbox.wait_for(*requests)
    assert {end.reason for end in ends} == {FinishReason.LENGTH}
    assert all(bench.inbox.outputs[r.id] == bench.world.answer_alone(r) for r in requests)
    stats = bench.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)
    assert stats.tokens == sum(len(outputs) for outputs in bench.inbox.outputs.values())


def test_the_events_of_one_step_are_handed_over_in_one_call(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    request = bench.submit(3, max_tokens=2)
    gate.passes.release(2)
    bench.inbox.wait_for(request)
    assert [[type(event) for event in call] for call in bench.inbox.calls] == [[Admitted, Token], [Token, Finished]]


def test_a_full_queue_refuses_at_once_and_takes_again_when_there_is_room(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    first = bench.submit(3, max_tokens=1)
    assert gate.entered.acquire(timeout=30)
    waiting = [bench.submit(3, max_tokens=1) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting and 2 may") as full:
        bench.submit(3)
    assert full.value.retry_after_s is not None
    assert bench.engine.stats().waiting == 2
    gate.passes.release(3)
    bench.inbox.wait_for(first, *waiting)
    gate.passes.release(100)
    bench.inbox.wait_for(bench.submit(3))


def test_a_queue_full_of_tokens_refuses_at_once_but_lets_a_long_prompt_wait_alone(simulate: Simulate) -> None:
    world = simulate(max_waiting_tokens=20, max_running=1)
    gate = Gate(world.runner)
    bench = Bench(world, gate)
    bench.engine.start()
    first = bench.submit(3, max_tokens=1)
    assert gate.entered.acquire(timeout=30)
    waiting = [bench.submit(30, max_tokens=1)]
    with pytest.raises(QueueFull, match="prompts of 30 tokens are waiting, 20 may, and this one has 1") as full:
        bench.submit(1)
    assert full.value.retry_after_s is not None
    bench.engine.cancel(waiting[0].id)
    gate.passes.release(1000)
    bench.inbox.wait_for(first, *waiting)
    bench.inbox.wait_for(bench.submit(20))
    bench.engine.stop()


def test_a_cancelled_request_is_gone_at_the_next_step(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    running, waiting = bench.submit(3, max_tokens=50), bench.submit(3, max_tokens=50)
    assert gate.entered.acquire(timeout=30)
    bench.engine.cancel(running.id)
    bench.engine.cancel(waiting.id)
    bench.engine.cancel("never seen")
    gate.passes.release()
    ends = bench.inbox.wait_for(running, waiting)
    assert [(end.reason, end.output_tokens) for end in ends] == [(FinishReason.CANCELLED, n) for n in (1, 0)]
    assert bench.engine.run_between_steps(lambda: bench.engine.stats().blocks_free).result(30) == 64


def test_an_exception_fails_the_requests_of_its_step_and_the_engine_goes_on(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    gate.errors = [ZeroDivisionError("a bug")]
    broken, waiting = bench.submit(3), bench.submit(3)
    gate.passes.release(100)
    end, other = bench.inbox.wait_for(broken, waiting)
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineFailed)
    assert "ZeroDivisionError: a bug" in str(end.error)
    assert isinstance(other, Finished)
    assert bench.inbox.outputs[waiting.id] == bench.world.answer_alone(waiting)
    bench.world.scheduler.check_integrity()


def test_a_runner_may_refuse_single_requests_and_the_others_lose_nothing(simulate: Simulate) -> None:
    world = simulate()
    gate = Gate(world.runner)
    bench = Bench(world, gate)
    wrong, right = bench.submit(3), bench.submit(3)
    gate.errors = [RequestsFailed("not these weights", request_ids=[wrong.id])]
    gate.passes.release(100)
    bench.engine.start()
    end, other = bench.inbox.wait_for(wrong, right)
    bench.engine.stop()
    assert isinstance(end, Failed)
    assert isinstance(other, Finished)
    assert bench.inbox.outputs == {right.id: world.answer_alone(right)}


def test_an_error_in_the_scheduler_ends_the_engine_and_says_so_to_everybody(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    request = bench.submit(3)
    assert gate.entered.acquire(timeout=30)
    bench.world.scheduler.complete = None
    gate.passes.release()
    (end,) = bench.inbox.wait_for(request)
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineFailed)
    with pytest.raises(EngineFailed, match="the engine ended: TypeError"):
        bench.submit(3)
    assert bench.failures == [end.error]


def test_functions_run_on_the_engine_thread_between_steps(bench: Bench) -> None:
    names = bench.engine.run_between_steps(lambda: threading.current_thread().name)
    assert names.result(30) == "engine"
    with pytest.raises(KeyError, match="lost"):
        bench.engine.run_between_steps(lambda: {}["lost"]).result(30)


def test_stopping_fails_what_is_left_and_refuses_what_comes(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    requests = [bench.submit(3, max_tokens=50), bench.submit(3)]
    assert gate.entered.acquire(timeout=30)
    late = bench.engine.run_between_steps(lambda: "done")
    gate.passes.release(1000)
    bench.engine.stop()
    assert all(isinstance(end, Failed) and isinstance(end.error, Draining) for end in bench.inbox.wait_for(*requests))
    assert late.result(30) == "done"
    with pytest.raises(Draining):
        bench.submit(3)
    with pytest.raises(Draining):
        bench.engine.run_between_steps(lambda: None)


def test_an_engine_that_never_started_can_be_stopped(simulate: Simulate) -> None:
    world = simulate()
    bench = Bench(world, world.runner)
    request = bench.submit(3)
    bench.engine.stop()
    (end,) = bench.inbox.wait_for(request)
    assert isinstance(end, Failed)


def test_bad_requests_are_refused_before_they_are_queued(bench: Bench) -> None:
    with pytest.raises(PromptTooLong):
        bench.submit(64)
    first = bench.submit(3, max_tokens=1, id="twice")
    bench.inbox.wait_for(first)
    bench.inbox.ends.clear()
    bench.inbox.wait_for(bench.submit(3, id="twice"))


def test_an_id_in_use_is_refused(gated: tuple[Bench, Gate]) -> None:
    bench, _ = gated
    bench.submit(3, id="twice")
    with pytest.raises(InvalidRequest, match="twice"):
        bench.submit(3, id="twice")


def test_a_listener_that_fails_does_not_stop_the_engine(bench: Bench) -> None:
    answer = bench.engine._on_events
    bench.engine._on_events = lambda events: 1 / 0
    lost = bench.submit(3, max_tokens=1)
    while lost.id in bench.engine._unfinished:
        bench.engine.run_between_steps(lambda: None).result(30)
    bench.engine._on_events = answer
    bench.inbox.wait_for(bench.submit(3))


def test_an_idle_engine_takes_no_steps(bench: Bench) -> None:
    bench.inbox.wait_for(bench.submit(3, max_tokens=2))
    for _ in range(5):
        bench.engine.run_between_steps(lambda: None).result(30)
    assert bench.engine.stats().steps == 2


def test_draining_fails_who_waits_with_a_time_to_retry_and_lets_who_runs_end(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    running, waiting = bench.submit(3, max_tokens=5), bench.submit(3)
    assert gate.entered.acquire(timeout=30)
    bench.engine.drain()
    with pytest.raises(Draining) as refused:
        bench.submit(3)
    assert refused.value.retry_after_s is not None
    gate.passes.release(100)
    end, failed = bench.inbox.wait_for(running, waiting)
    assert isinstance(end, Finished)
    assert bench.inbox.outputs[running.id] == bench.world.answer_alone(running)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Draining)
    assert failed.error.retry_after_s is not None


def test_a_tenant_over_its_rate_is_refused_and_told_when_to_retry(simulate: Simulate) -> None:
    world = simulate(tenants=Tenants({"small": TenantPolicy(tokens_per_s=1e-3, burst_tokens=8)}))
    bench = Bench(world, world.runner)
    bench.engine.start()
    bench.inbox.wait_for(bench.submit(3, max_tokens=6, tenant="small"))
    with pytest.raises(TenantRateExceeded, match=r"'small' has used the 0\.001 tokens a second") as refused:
        bench.submit(1, tenant="small")
    assert 1000 < refused.value.retry_after_s <= 2000, "nine of eight tokens are used, and one must be there"
    bench.inbox.wait_for(bench.submit(3, tenant="other"))
    bench.engine.stop()


def test_a_paused_request_uses_no_steps_and_its_neighbours_do_not_notice(gated: tuple[Bench, Gate]) -> None:
    bench, gate = gated
    slow = bench.submit(3, max_tokens=9)
    assert gate.entered.acquire(timeout=30)
    bench.engine.pause(slow.id)
    bench.engine.pause("never seen")
    other = bench.submit(3, max_tokens=4)
    gate.passes.release(100)
    bench.inbox.wait_for(other)
    stats = bench.engine.run_between_steps(bench.engine.stats).result(30)
    assert (stats.running, stats.waiting, stats.paused, stats.steps) == (0, 0, 1, 1 + 4)
    assert bench.inbox.outputs[slow.id] == bench.world.answer_alone(slow)[:1]
    bench.engine.resume(slow.id)
    bench.inbox.wait_for(slow)
    assert bench.inbox.outputs[slow.id] == bench.world.answer_alone(slow)
