"""Equal beginnings on equal weights are computed once; anything else is never shared."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.prefixes import extend, root
from inference.engine.request import Finished

Simulate = Callable[..., Any]
LONG = list(range(30))


def test_keys_differ_by_weights_by_tokens_and_by_everything_before() -> None:
    keys = {
        extend(root(adapters), tokens)
        for adapters in [(), (("a", 1.0),), (("a", 0.5),), (("b", 1.0),), (("a", 1.0), ("b", 1.0))]
        for tokens in [(1, 2), (2, 1), (1, 3), (12,), (1, 2, 0)]
    }
    assert len(keys) == 25
    assert extend(extend(root(()), [1, 2]), [3, 4]) != extend(extend(root(()), [1, 1]), [3, 4])


def test_a_known_beginning_is_not_computed_again_but_the_last_token_is(simulate: Simulate) -> None:
    world = simulate(block_size=4)
    for prompt, cached in ((LONG[:20], 0), (LONG[:20], 16), (LONG[:21], 20), (LONG[:3], 0), (LONG, 20)):
        before = world.runner.computed_tokens
        request = world.submit(prompt, max_tokens=1)
        world.run()
        assert world.cached[request.id] == cached
        assert world.runner.computed_tokens - before == len(prompt) - cached
        assert world.outputs[request.id] == world.answer_alone(request)


def test_the_next_turn_of_a_conversation_begins_with_the_answer(simulate: Simulate) -> None:
    world = simulate(block_size=4)
    first = world.submit(LONG[:10], max_tokens=9)
    world.run()
    second = world.submit([*LONG[:10], *world.outputs[first.id], 1, 2], max_tokens=3)
    world.run()
    assert world.cached[second.id] == 16  # the last token of the answer was never computed
    assert world.outputs[second.id] == world.answer_alone(second)


@pytest.mark.parametrize(
    "other", [{"adapter": None}, {"adapter": "b"}, {"adapter": "a", "weight": 0.5}, {"adapter": "a, of a new version"}]
)
def test_other_weights_never_share_a_block(simulate: Simulate, other: dict[str, Any]) -> None:
    world = simulate()
    world.submit(LONG, adapter="a")
    world.step()
    request = world.submit(LONG, **other)
    world.run()
    assert world.cached[request.id] == 0
    assert world.outputs[request.id] == world.answer_alone(request)


def test_a_running_sequence_shares_with_those_that_come_later(simulate: Simulate) -> None:
    world = simulate(num_blocks=16, block_size=4, max_running=4)
    requests = [world.submit(LONG, max_tokens=6, adapter="a")]
    world.step()
    requests += [world.submit([*LONG[:28], n], max_tokens=6, adapter="a") for n in range(2)]
    world.run()
    assert [world.cached[request.id] for request in requests] == [0, 28, 28]
    assert [world.outputs[r.id] for r in requests] == [world.answer_alone(r) for r in requests]
    assert world.scheduler.num_preemptions == 0, "16 blocks hold three sequences of 9 blocks that share 7"


def test_kept_blocks_are_handed_out_when_free_ones_run_out_the_oldest_first(simulate: Simulate) -> None:
    world = simulate(num_blocks=16, block_size=4)
    old, recent = [1] * 20, [2] * 20
    for prompt in (old, recent, old, recent):
        world.submit(prompt, max_tokens=1)
        world.run()
    world.submit([3] * 28, max_tokens=1)  # takes the 6 free blocks and one more
    world.run()
    request = world.submit(recent, max_tokens=1)
    world.run()
    assert world.cached[request.id] == 16
    request = world.submit(old, max_tokens=1)
    world.run()
    assert world.cached[request.id] == 16, "its end was forgotten, its beginning was not"
    world.submit([4] * 60, max_tokens=1)
    world.run()
    request = world.submit(old, max_tokens=1)
    world.run()
    assert world.cached[request.id] == 4, "the one block that 60 tokens left over"


def test_a_preempted_sequence_finds_what_it_computed(simulate: Simulate) -> None:
    costs = []
    for is_prefix_cached in (True, False):
        world = simulate(num_blocks=16, max_running=4, is_prefix_cached=is_prefix_cached)
        requests = [world.submit(8, max_tokens=50) for _ in range(4)]
        world.run()
        assert world.scheduler.num_preemptions > 0
        assert [world.outputs[r.id] for r in requests] == [world.answer_alone(r) for r in requests]
        costs.append(world.runner.computed_tokens)
    assert costs[0] < costs[1]


def test_without_the_cache_every_token_is_computed(simulate: Simulate) -> None:
    world = simulate(is_prefix_cached=False)
    requests = [world.submit(LONG, max_tokens=1) for _ in range(2)]
    world.run()
    assert world.runner.computed_tokens == 60
    assert [world.cached[r.id] for r in requests] == [0, 0]
    assert world.scheduler.blocks.num_kept == 0


@settings(deadline=None, max_examples=30, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(16, 40), budget=st.integers(4, 40))
def test_random_traffic_over_few_beginnings_is_answered_as_without_the_cache(
    simulate: Simulate, seed: int, num_blocks: int, budget: int
) -> None:
    rng = random.Random(seed)
    world = simulate(num_blocks=num_blocks, max_running=4, max_step_tokens=budget)
    beginnings = [[rng.randrange(3) for _ in range(24)] for _ in range(3)]
    requests = []
    for _ in range(60):
        for _ in range(rng.randrange(3)):
            prompt = rng.choice(beginnings)[: rng.randint(1, 24)] + [rng.randrange(2)] * rng.randrange(8)
            adapter, weight = rng.choice([None, "a", "b"]), rng.choice([0.5, 1.0])
            requests.append(world.submit(prompt, max_tokens=rng.randint(1, 30), adapter=adapter, weight=weight))
        if requests and rng.random() < 0.2:
            victim = rng.choice(requests)
            world.cancel(victim)
        if world.scheduler.has_work:
            world.step()
    world.run()
    for request in requests:
        alone, outputs, end = world.answer_alone(request), world.outputs.get(request.id, []), world.ends[request.id]
        assert isinstance(end, Finished)
        assert outputs == alone[: end.output_tokens]
    assert sum(world.cached.values()) > 0
