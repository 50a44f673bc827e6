"""Several answers of one prompt: computed once, shared by reference, copied on write, equal to separate requests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.request import Failed, FinishReason, PromptScored, Request, SamplingParams
from inference.errors import EngineFailed, InvalidRequest

Simulate = Callable[..., Any]


def test_every_answer_is_what_a_request_of_its_own_gets(simulate: Simulate) -> None:
    world = simulate()
    request = world.submit(10, max_tokens=6, answers=4, seed=7)
    world.run()
    expected = [world.answer_alone(request, answer) for answer in range(4)]
    assert [world.answers(request.id, answer) for answer in range(4)] == expected
    assert len(set(map(tuple, expected))) == 4, "expected answers that differ"


@pytest.mark.parametrize("prompt", [1, 2, 4, 5, 9, 33])
def test_the_prompt_is_computed_once_but_for_its_last_token(simulate: Simulate, prompt: int) -> None:
    world = simulate(is_prefix_cached=False)
    request = world.submit(prompt, max_tokens=3, answers=5)
    world.run()
    assert world.runner.computed_tokens == prompt - 1 + 5 * 3
    assert all(world.answers(request.id, n) == world.answer_alone(request, n) for n in range(5))


def test_full_blocks_are_shared_and_only_the_open_one_is_copied(simulate: Simulate) -> None:
    world = simulate(block_size=4, num_blocks=64)
    world.submit(11, max_tokens=2, answers=3)
    world.step()
    copies = [chunk.copy for chunk in world.step()]
    tables = [sequence.blocks for sequence in world.scheduler._running]
    assert [table[:2] for table in tables] == [tables[0][:2]] * 3
    assert len({table[2] for table in tables}) == 3
    assert copies == [(copies[0][0], table[2]) for table in tables]


def test_a_prompt_that_ends_with_a_block_copies_nothing(simulate: Simulate) -> None:
    world = simulate(block_size=4)
    world.submit(9, max_tokens=5, answers=3)
    world.run()
    assert all(chunk.copy is None for chunks in world.runner.steps for chunk in chunks)


def test_a_request_waits_until_there_are_rows_for_all_its_answers(simulate: Simulate) -> None:
    world = simulate(max_running=4)
    world.submit(3, max_tokens=4)
    many = world.submit(3, max_tokens=2, answers=4)
    world.submit(3, max_tokens=2)
    world.step()
    assert world.scheduler.num_running == 1, "nobody overtakes it"
    world.run()
    assert all(world.answers(many.id, n) == world.answer_alone(many, n) for n in range(4))


def test_more_answers_than_rows_are_refused_up_front(simulate: Simulate) -> None:
    world = simulate(max_running=4)
    with pytest.raises(InvalidRequest, match="n: expected at most the 4 rows of a step, found 5"):
        world.submit(3, answers=5)


def test_one_answer_can_be_cancelled_and_the_others_go_on(simulate: Simulate) -> None:
    world = simulate()
    request = world.submit(6, max_tokens=6, answers=3)
    for _ in range(3):
        world.step()
    world.take(world.scheduler.cancel(request.id, world.now_s, answer=1))
    world.scheduler.check_integrity()
    assert not world.ends
    world.run()
    reasons = [world.ended_answers[request.id, n].reason for n in range(3)]
    assert reasons == [FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.LENGTH]
    assert world.answers(request.id, 2) == world.answer_alone(request, 2)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_cancelling_the_request_ends_every_answer_at_once(simulate: Simulate, steps: int) -> None:
    world = simulate(max_step_tokens=8)
    request = world.submit(10, max_tokens=6, answers=3)
    for _ in range(steps):
        world.step()
    world.cancel(request)
    assert world.ends[request.id].is_last
    assert not world.scheduler.has_work
    assert world.scheduler.blocks.num_free == world.scheduler.blocks.num_blocks


def test_logits_that_are_not_numbers_in_one_answer_fail_the_request_once(simulate: Simulate) -> None:
    world = simulate()
    broken, sound = world.submit(5, answers=3), world.submit(5)
    world.step()
    chunks = world.scheduler.schedule(world.now_s)
    sampled = world.runner.run(chunks)
    sampled[[chunk.sequence.answer for chunk in chunks].index(1)] = EngineFailed("no numbers")
    events = world.scheduler.complete(chunks, sampled, world.now_s)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [broken.id]
    world.take(events)
    world.run()
    assert world.outputs[sound.id] == world.answer_alone(sound)


def test_a_step_that_failed_for_another_request_copies_again(simulate: Simulate) -> None:
    world = simulate()
    request = world.submit(6, max_tokens=4, answers=2)
    world.step()
    first = [chunk.copy for chunk in world.scheduler.schedule(world.now_s)]
    assert None not in first
    assert [chunk.copy for chunk in world.step()] == first
    world.run()
    assert all(world.answers(request.id, n) == world.answer_alone(request, n) for n in range(2))


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(16, 40), budget=st.integers(6, 40))
def test_answers_survive_any_traffic_preemption_and_cancels(
    simulate: Simulate, seed: int, num_blocks: int, budget: int
) -> None:
    rng = random.Random(seed)
    world = simulate(num_blocks=num_blocks, max_running=6, max_step_tokens=budget)
    requests: list[Request] = []
    cancelled: set[tuple[str, int]] = set()
    for _ in range(50):
        for _ in range(rng.randrange(3)):
            answers, stop = rng.choice([1, 1, 2, 3, 6]), rng.sample(range(50), rng.randrange(4))
            prompt, length = rng.randint(1, 40), rng.randint(1, 20)
            adapter = rng.choice([None, "a"])
            requests.append(world.submit(prompt, max_tokens=length, answers=answers, stop=stop, adapter=adapter))
        begun = [key for r in requests for key in [(r.id, n) for n in range(r.answers)] if world.answers(*key)]
        if begun and rng.random() < 0.3:
            victim = rng.choice(begun)
            if victim not in world.ended_answers:
                cancelled.add(victim)
            world.take(world.scheduler.cancel(victim[0], world.now_s, answer=victim[1]))
            world.scheduler.check_integrity()
        if world.scheduler.has_work:
            world.step()
    world.run()
    for request in requests:
        for answer in range(request.answers):
            alone, outputs = world.answer_alone(request, answer), world.answers(request.id, answer)
            assert outputs == (alone[: len(outputs)] if (request.id, answer) in cancelled else alone)


def test_scores_of_the_prompt_come_once_and_take_nothing_from_the_cache(simulate: Simulate) -> None:
    world = simulate(max_step_tokens=8)
    world.submit(20, max_tokens=1)
    world.run()
    request = Request("scored", tuple(range(20)), SamplingParams(2, prompt_logprobs=0), answers=2)
    world.scheduler.add(request)
    events = []
    while world.scheduler.has_work:
        chunks = world.scheduler.schedule(world.now_s)
        events += world.scheduler.complete(chunks, world.runner.run(chunks), world.now_s)
    assert sum(isinstance(event, PromptScored) for event in events) == 1
    assert events[0].cached_tokens == 0
