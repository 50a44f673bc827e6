from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.request import Failed, Finished, FinishReason
from inference.engine.sequence import Sampled
from inference.engine.tenants import TenantPolicy, Tenants
from inference.errors import EngineFailed, PromptTooLong

Simulate = Callable[..., Any]


def test_every_request_gets_the_answer_it_gets_alone(simulate: Simulate) -> None:
    world = simulate(num_blocks=200)
    requests = [world.submit(1 + n % 9, max_tokens=1 + n % 7, adapter=[None, "a", "b"][n % 3]) for n in range(40)]
    world.run()
    assert {r.id: world.outputs[r.id] for r in requests} == {r.id: world.answer_alone(r) for r in requests}
    assert world.scheduler.num_preemptions == 0


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(16, 40), budget=st.integers(4, 40), rows=st.integers(1, 4))
def test_random_traffic_ends_with_right_answers_and_no_block_lost(
    simulate: Simulate, seed: int, num_blocks: int, budget: int, rows: int
) -> None:
    rng, tenants = random.Random(seed), Tenants(rest=TenantPolicy(max_rows=rows))
    world = simulate(num_blocks=num_blocks, max_running=4, max_step_tokens=budget, tenants=tenants)
    requests, cancelled = [], set()
    for _ in range(60):
        for _ in range(rng.randrange(3)):
            stop = rng.sample(range(50), rng.randrange(4))
            adapter = rng.choice([None, "a", "b", "c"])
            requests.append(world.submit(rng.randint(1, 40), max_tokens=rng.randint(1, 30), adapter=adapter, stop=stop))
        if requests and rng.random() < 0.2:
            victim = rng.choice(requests)
            if victim.id not in world.ends:
                cancelled.add(victim.id)
            world.cancel(victim)
        if world.scheduler.has_work:
            world.step()
    world.run()
    for request in requests:
        alone, outputs = world.answer_alone(request), world.outputs.get(request.id, [])
        if request.id in cancelled:
            assert outputs == alone[: len(outputs)]
            assert world.ends[request.id].reason is FinishReason.CANCELLED
        else:
            assert outputs == alone
            stopped = outputs[-1] in request.stop_token_ids
            assert world.ends[request.id].reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert max(sum(chunk.length for chunk in chunks) for chunks in world.runner.steps) <= budget


def test_ten_times_more_than_fits_leaves_hardly_a_row_unused(simulate: Simulate) -> None:
    world = simulate(num_blocks=100, max_running=8, max_step_tokens=64)
    requests = [world.submit(8, max_tokens=16) for _ in range(80)]
    world.run()
    answered = sum(len(world.outputs[request.id]) for request in requests)
    assert answered == 80 * 16
    assert answered / len(world.runner.steps) >= 0.95 * 8


def test_a_chunked_prefill_computes_each_position_once(simulate: Simulate) -> None:
    world = simulate(max_step_tokens=8)
    request = world.submit(50, max_tokens=3)
    world.run()
    assert [[chunk.length for chunk in chunks] for chunks in world.runner.steps] == [[8]] * 6 + [[2], [1], [1]]
    assert world.outputs[request.id] == world.answer_alone(request)


def test_decoding_goes_on_beside_a_long_prefill(simulate: Simulate) -> None:
    world = simulate(max_step_tokens=8)
    first = world.submit(2, max_tokens=20)
    world.step()
    world.submit(40, max_tokens=1)
    for tokens in range(2, 7):
        chunks = world.step()
        assert [chunk.length for chunk in chunks] == [1, 7]
        assert len(world.outputs[first.id]) == tokens


def test_a_one_token_prompt_runs(simulate: Simulate) -> None:
    world = simulate()
    request = world.submit(1, max_tokens=2)
    world.run()
    assert world.outputs[request.id] == world.answer_alone(request)


def test_the_newest_sequence_is_preempted_and_answers_as_if_it_never_was(simulate: Simulate) -> None:
    world = simulate(num_blocks=16, max_running=4)
    requests = [world.submit(8, max_tokens=50) for _ in range(4)]
    preempted = set()
    while world.scheduler.has_work:
        before = {sequence.request.id for sequence in world.scheduler._running}
        world.scheduler.schedule(world.now_s)
        gone = before - {sequence.request.id for sequence in world.scheduler._running}
        preempted |= gone
        world.step()
    assert world.scheduler.num_preemptions > 0
    assert requests[0].id not in preempted, "the oldest is never preempted"
    assert [world.outputs[r.id] for r in requests] == [world.answer_alone(r) for r in requests]


def test_an_answer_ends_where_the_context_does(simulate: Simulate) -> None:
    world = simulate(max_context=16, num_blocks=4)
    request = world.submit(10, max_tokens=100)
    world.run()
    assert len(world.outputs[request.id]) == 6
    assert world.ends[request.id].reason is FinishReason.LENGTH


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused_up_front(simulate: Simulate) -> None:
    world = simulate(max_context=16)
    world.submit(15)
    with pytest.raises(PromptTooLong, match=r"at most 15 tokens.*found 16"):
        world.submit(16)


def test_a_stop_token_ends_the_answer_and_is_part_of_it(simulate: Simulate) -> None:
    world = simulate()
    alone = world.answer_alone(world.request([1, 2], max_tokens=10))
    request = world.submit([1, 2], max_tokens=10, stop=[alone[2]])
    world.run()
    assert world.outputs[request.id] == alone[: alone.index(alone[2]) + 1]
    assert world.ends[request.id].reason is FinishReason.STOP


def test_a_flood_for_one_adapter_delays_another_by_one_turn(simulate: Simulate) -> None:
    world = simulate(max_running=1)
    for _ in range(100):
        world.submit(3, max_tokens=1, adapter="flood")
    world.step()
    quiet = world.submit(3, max_tokens=1, adapter="quiet")
    world.step()
    world.step()
    assert quiet.id in world.ends


def test_a_large_request_is_not_overtaken_for_ever(simulate: Simulate) -> None:
    world = simulate(num_blocks=16, max_running=4)
    for _ in range(4):
        world.submit(4, max_tokens=8)
    world.step()
    large = world.submit(60, max_tokens=2, adapter="large")
    for _ in range(30):
        world.submit(4, max_tokens=8)
        world.step()
    assert large.id in world.ends


def test_cancelling_frees_the_blocks_at_once(simulate: Simulate) -> None:
    world = simulate()
    running = world.submit(9, max_tokens=9)
    world.step()
    waiting = world.submit(9, max_tokens=9)
    world.cancel(waiting)
    world.cancel(running)
    world.cancel(running)
    assert world.scheduler.blocks.num_free == world.scheduler.blocks.num_blocks
    assert not world.scheduler.has_work
    assert world.ends[running.id].output_tokens == 1
    assert world.ends[waiting.id].output_tokens == 0


def test_times_count_from_the_arrival(simulate: Simulate) -> None:
    world = simulate(max_running=1)
    world.submit(3, max_tokens=3)
    world.step()
    request = world.submit(3, max_tokens=3)
    world.run()
    finished = world.ends[request.id]
    assert isinstance(finished, Finished)
    assert (finished.queued_s, finished.first_token_s, finished.total_s) == (2.0, 3.0, 5.0)


def test_logits_that_are_not_numbers_fail_their_own_request_only(simulate: Simulate) -> None:
    world = simulate()
    broken, sound = world.submit(3), world.submit(3)
    chunks = world.scheduler.schedule(0.0)
    world.take(world.scheduler.complete(chunks, [EngineFailed("no numbers"), Sampled(7)], 1.0))
    end = world.ends[broken.id]
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineFailed)
    assert world.outputs == {sound.id: [7]}
    world.scheduler.check_integrity()


def test_decodes_of_one_adapter_are_side_by_side(simulate: Simulate) -> None:
    world = simulate()
    for n in range(6):
        world.submit(3, max_tokens=9, adapter=["a", "bb", None][n % 3])
    world.step()
    keys = [chunk.sequence.request.adapter_key for chunk in world.step()]
    assert keys == sorted(keys)


def test_a_step_that_never_ran_can_be_scheduled_again(simulate: Simulate) -> None:
    world = simulate()
    request = world.submit(7, max_tokens=5)
    for _ in range(7):
        world.scheduler.schedule(world.now_s)
        if world.scheduler.has_work:
            world.step()
    world.run()
    assert world.outputs[request.id] == world.answer_alone(request)


@pytest.mark.parametrize("limits", [{"max_context": 257}, {"max_step_tokens": 7}])
def test_limits_that_cannot_hold_are_refused(simulate: Simulate, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected|does not fit"):
        simulate(**limits)
