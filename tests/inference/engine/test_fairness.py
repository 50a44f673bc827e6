"""What one tenant can take from another: rows, tokens of a step and time, by simulation."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.request import Failed, Request, SamplingParams, SlotUse
from inference.engine.tenants import TenantPolicy, Tenants
from inference.errors import InvalidRequest

Simulate = Callable[..., Any]


def rows_by_tenant(world: Any) -> Counter[str]:
    return Counter(sequence.request.tenant for sequence in world.scheduler._running)


def tokens_by_tenant(steps: list[Any]) -> Counter[str]:
    tokens: Counter[str] = Counter()
    for chunks in steps:
        for chunk in chunks:
            tokens[chunk.sequence.request.tenant] += chunk.length
    return tokens


def test_a_flood_of_long_answers_gives_rows_back_in_the_step_in_which_another_asks(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_running=4)
    flood = [world.submit(3, max_tokens=40, tenant="flood") for _ in range(20)]
    world.step()
    assert rows_by_tenant(world) == {"flood": 4}
    quiet = [world.submit(3, max_tokens=10, tenant="quiet") for _ in range(3)]
    world.step()
    assert rows_by_tenant(world) == {"flood": 2, "quiet": 2}
    assert len(world.outputs[quiet[0].id]) == len(world.outputs[quiet[1].id]) == 1
    world.run()
    assert [world.outputs[r.id] for r in flood + quiet] == [world.answer_alone(r) for r in flood + quiet]


def test_a_flood_that_is_alone_has_every_row(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_running=4)
    for _ in range(12):
        world.submit(3, max_tokens=5, tenant="flood")
    world.step()
    assert rows_by_tenant(world) == {"flood": 4}


def test_rows_follow_the_weights(simulate: Simulate) -> None:
    world = simulate(num_blocks=300, max_running=8, tenants=Tenants({"gold": TenantPolicy(weight=3.0)}))
    for _ in range(30):
        world.submit(3, max_tokens=20, tenant="gold")
        world.submit(3, max_tokens=20, tenant="free")
    for _ in range(15):
        world.step()
        assert rows_by_tenant(world) == {"gold": 6, "free": 2}


def test_long_prompts_of_one_tenant_leave_another_its_share_of_every_step(simulate: Simulate) -> None:
    world = simulate(num_blocks=300, max_context=200, max_running=6, max_step_tokens=20, is_prefix_cached=False)
    for _ in range(5):
        world.submit(150, max_tokens=1, tenant="long")
    world.step()
    short = world.submit(30, max_tokens=3, tenant="short")
    assert tokens_by_tenant([world.step() for _ in range(3)]) == {"short": 30, "long": 30}
    assert len(world.outputs[short.id]) == 1
    world.step()
    assert len(world.outputs[short.id]) == 2, "decoding goes on beside long prompts"


def test_first_tokens_beside_a_flood_come_as_soon_as_alone_on_half_of_the_worker(simulate: Simulate) -> None:
    def first_tokens(world: Any, flood: int) -> list[float]:
        rng = random.Random(5)
        quiet = []
        for _ in range(8):
            for _ in range(flood):
                world.submit(rng.randint(5, 40), max_tokens=30, tenant="flood", seed=rng.randrange(2**32))
            quiet.append(world.submit(60, max_tokens=8, tenant="quiet"))
            for _ in range(6):
                world.step()
        while any(request.id not in world.ends for request in quiet):
            world.step()
        return sorted(world.ends[request.id].first_token_s for request in quiet)

    crowded = first_tokens(simulate(num_blocks=400, max_context=100, max_running=8, max_step_tokens=32), flood=100)
    alone = first_tokens(simulate(num_blocks=200, max_context=100, max_running=4, max_step_tokens=16), flood=0)
    assert crowded[-1] <= 1.5 * alone[-1], f"{crowded} beside {alone}"


def test_a_tenant_never_has_more_rows_than_it_may(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, tenants=Tenants({"small": TenantPolicy(max_rows=2)}))
    requests = [world.submit(3, max_tokens=5, tenant="small") for _ in range(9)]
    with pytest.raises(InvalidRequest, match="n: expected at most the 2 rows of a step, found 3"):
        world.submit(3, answers=3, tenant="small")
    while world.scheduler.has_work:
        world.step()
        assert rows_by_tenant(world)["small"] <= 2
    assert all(world.outputs[r.id] == world.answer_alone(r) for r in requests)


def test_a_step_has_no_more_adapters_than_it_may(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_adapters=2)
    requests = [world.submit(3, max_tokens=1 + n % 5, adapter="abcdef"[n % 6]) for n in range(24)]
    requests += [world.submit(3, max_tokens=5) for _ in range(4)]
    while world.scheduler.has_work:
        chunks = world.step()
        assert len({use.digest for chunk in chunks for use in chunk.sequence.request.uses}) <= 2
    assert all(world.outputs[r.id] == world.answer_alone(r) for r in requests)
    three = tuple(SlotUse(slot, digest) for slot, digest in enumerate("abc"))
    with pytest.raises(InvalidRequest, match="adapters: expected at most the 2 of a step, found 3"):
        world.scheduler.check_fits(Request("three", (1,), SamplingParams(1), uses=three))


def test_a_tenant_whose_adapters_fill_the_step_makes_place_for_another(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_running=4, max_adapters=1)
    for _ in range(20):
        world.submit(3, max_tokens=30, adapter="a", tenant="flood")
    world.step()
    quiet = world.submit(3, max_tokens=2, adapter="b", tenant="quiet")
    for _ in range(30):
        world.step()
    assert rows_by_tenant(world)["flood"] < 4 or quiet.id in world.ends
    while quiet.id not in world.ends:
        world.step()
    assert len(world.ends) <= 4 + 1, "nobody was let in before it"


def test_a_prompt_that_another_request_is_computing_is_computed_once(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_step_tokens=16)
    requests = [world.submit(range(40), max_tokens=3, tenant=f"t{n}") for n in range(5)]
    world.run()
    assert world.runner.computed_tokens == 40 + 4 * 4 + 5 * 2, "the last tokens of each, and each answer's"
    assert all(world.outputs[r.id] == world.answer_alone(r) for r in requests)
    assert max(world.ends[r.id].first_token_s for r in requests) == 5.0, "two steps after the prompt's third"


def test_a_prompt_whose_computing_ended_early_is_computed_by_the_next(simulate: Simulate) -> None:
    world = simulate(num_blocks=200, max_step_tokens=16)
    first, second = (world.submit(range(40), max_tokens=3) for _ in range(2))
    world.step()
    assert rows_by_tenant(world) == {"": 1}
    world.cancel(first)
    world.run()
    assert world.outputs[second.id] == world.answer_alone(second)


def test_a_paused_request_gives_its_row_to_others_and_goes_on_where_it_was(simulate: Simulate) -> None:
    world = simulate(max_running=1)
    slow, other = world.submit(6, max_tokens=9), world.submit(6, max_tokens=4)
    for _ in range(3):
        world.step()
    world.scheduler.pause(slow.id)
    world.scheduler.check_integrity()
    while world.scheduler.has_work:
        world.step()
    assert len(world.outputs[slow.id]) == 3
    assert world.outputs[other.id] == world.answer_alone(other)
    computed = world.runner.computed_tokens
    world.scheduler.resume(slow.id)
    world.run()
    assert world.outputs[slow.id] == world.answer_alone(slow)
    assert world.runner.computed_tokens == computed + 6, "it kept what it had computed"


def test_nobody_waits_for_a_prompt_that_a_paused_request_would_compute(simulate: Simulate) -> None:
    world = simulate(max_step_tokens=8)
    paused, other = world.submit(range(40), max_tokens=2), world.submit(range(40), max_tokens=2)
    world.step()
    world.scheduler.pause(paused.id)
    while other.id not in world.ends:
        world.step()
    world.scheduler.resume(paused.id)
    world.run()
    assert world.outputs[paused.id] == world.outputs[other.id] == world.answer_alone(other)


def test_a_paused_request_loses_its_blocks_when_others_need_them(simulate: Simulate) -> None:
    world = simulate(num_blocks=16, is_prefix_cached=False)
    slow = world.submit(20, max_tokens=9)
    world.step()
    world.scheduler.pause(slow.id)
    large = world.submit(60, max_tokens=3)
    world.step()
    assert world.scheduler.num_preemptions == 1
    world.scheduler.resume(slow.id)
    world.run()
    assert all(world.outputs[r.id] == world.answer_alone(r) for r in (slow, large))


def test_who_waits_costs_a_full_step_nothing(simulate: Simulate) -> None:
    def lines(waiting: int) -> int:
        world = simulate(num_blocks=200, max_running=4, max_waiting=10_000)
        for _ in range(4):
            world.submit(3, max_tokens=60, tenant="running")
        world.step()
        for number in range(waiting):
            world.submit(30, tenant=f"t{number % 500}")
        world.step()  # in which those with a claim take rows
        count = 0

        def count_line(frame: object, event: str, argument: object) -> object:
            nonlocal count
            count += event == "line"
            return count_line

        sys.settrace(count_line)
        try:
            world.scheduler.schedule(world.now_s)
        finally:
            sys.settrace(None)
        return count

    assert lines(2000) <= lines(20)


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(16, 60), budget=st.integers(6, 40))
def test_traffic_of_many_tenants_is_answered_right_and_uses_every_step(
    simulate: Simulate, seed: int, num_blocks: int, budget: int
) -> None:
    rng = random.Random(seed)
    policies = {"a": TenantPolicy(weight=4.0), "b": TenantPolicy(max_rows=2), "c": TenantPolicy(weight=0.01)}
    world = simulate(num_blocks=num_blocks, max_running=6, max_step_tokens=budget, tenants=Tenants(policies))
    requests: list[Request] = []
    paused: list[str] = []
    for _ in range(50):
        for _ in range(rng.randrange(3)):
            prompt, options = rng.randint(1, 40), {"max_tokens": rng.randint(1, 20), "priority": rng.randint(-9, 9)}
            shared = [7] * prompt if rng.random() < 0.3 else prompt
            answers, tenant = rng.choice([1, 1, 1, 2]), rng.choice("abcd")
            requests.append(world.submit(shared, answers=answers, tenant=tenant, **options))
        live = [r.id for r in requests if r.id not in world.ends]
        if live and rng.random() < 0.2:
            paused.append(rng.choice(live))
            world.scheduler.pause(paused[-1])
        if paused and rng.random() < 0.2:
            world.scheduler.resume(paused.pop(rng.randrange(len(paused))))
        if live and rng.random() < 0.05:
            world.take(world.scheduler.cancel(rng.choice(live), world.now_s))
        world.scheduler.check_integrity()
        if world.scheduler.has_work:
            check_conserves_work(world, world.step())
    for request_id in paused:
        world.scheduler.resume(request_id)
    world.run()
    for request in requests:
        end = world.ends[request.id]
        assert not isinstance(end, Failed)
        for answer in range(request.answers):
            alone, outputs = world.answer_alone(request, answer), world.answers(request.id, answer)
            cancelled = world.ended_answers.get((request.id, answer), end).reason.value == "cancelled"
            assert outputs == (alone[: len(outputs)] if cancelled else alone)


def check_conserves_work(world: Any, chunks: list[Any]) -> None:
    """No tokens of the step are left while a prompt under way could use them, and every decode had its token."""
    left = world.scheduler.limits.max_step_tokens - sum(chunk.length for chunk in chunks)
    assert left >= 0
    cut = [chunk for chunk in chunks if not chunk.samples and chunk.sequence.rows == 1]
    assert not left or not [chunk for chunk in cut if chunk.sequence.remaining > 0 and chunk.sequence.blocks]
