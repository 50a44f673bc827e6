from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.fair_queue import AGING_S, QUANTUM, FairQueue
from inference.engine.request import Request, SamplingParams
from inference.engine.sequence import Sequence


def make_queue(**weights: float) -> FairQueue:
    return FairQueue(lambda tenant: weights.get(tenant, 1.0))


def make_sequence(number: int, tenant: str, *, priority: int = 0, arrival_s: float = 0.0) -> Sequence:
    request = Request(f"r{number}", (1,), SamplingParams(1), tenant=tenant, priority=priority, arrival_s=arrival_s)
    return Sequence(request, number)


def pop(queue: FairQueue, *, resting: tuple[str, ...] = ()) -> Sequence:
    """Whose turn it is when these tenants may not run."""
    sequence = queue.next(lambda sequence: sequence.request.tenant not in resting)
    assert sequence is not None
    queue.pop(sequence)
    queue.check_integrity()
    return sequence


def test_tenants_take_turns_of_a_quantum_and_each_is_first_come_first_served() -> None:
    queue = make_queue()
    for number, tenant in enumerate("aaaabbc"):
        queue.push(make_sequence(number, tenant), cost=QUANTUM)
    popped = [pop(queue).number for _ in range(len(queue))]
    assert popped == [0, 4, 6, 1, 5, 2, 3]
    assert queue.next(lambda _: True) is None


def test_a_turn_is_as_many_cheap_requests_as_a_quantum_holds() -> None:
    queue = make_queue()
    for number, tenant in enumerate("aaaaabb"):
        queue.push(make_sequence(number, tenant), cost=QUANTUM // 2)
    assert [pop(queue).number for _ in range(7)] == [0, 1, 5, 6, 2, 3, 4]


def test_asking_again_changes_nothing() -> None:
    queue = make_queue()
    for number, tenant in enumerate("ab"):
        queue.push(make_sequence(number, tenant), cost=10 * QUANTUM)
    first = queue.next(lambda _: True)
    assert [queue.next(lambda _: True) for _ in range(50)] == [first] * 50
    assert [pop(queue).number, pop(queue).number] == [0, 1]


def test_a_tenant_that_may_not_run_is_passed_and_has_its_turn_when_it_may() -> None:
    queue = make_queue()
    for number, tenant in enumerate("aabbc"):
        queue.push(make_sequence(number, tenant), cost=QUANTUM)
    assert [pop(queue, resting=("a",)).number for _ in range(2)] == [2, 4]
    assert queue.next(lambda _: False) is None
    assert [pop(queue).number for _ in range(3)] == [0, 3, 1]


def test_one_that_was_served_before_and_waits_again_costs_nothing() -> None:
    queue = make_queue(a=0.001)
    queue.push(make_sequence(0, "a"), cost=0)
    queue.push(make_sequence(1, "b"), cost=1)
    assert [pop(queue).number, pop(queue).number] == [0, 1]


def test_removing_one_leaves_the_turns_of_the_others() -> None:
    queue = make_queue()
    sequences = [make_sequence(number, tenant) for number, tenant in enumerate("aabb")]
    for sequence in sequences:
        queue.push(sequence, cost=QUANTUM)
    queue.remove(sequences[0])
    queue.remove(sequences[3])
    assert list(queue) == [sequences[1], sequences[2]]
    assert len(queue) == 2
    queue.remove(sequences[1])
    queue.remove(sequences[2])
    assert queue.next(lambda _: True) is None
    assert (queue.num_tokens, queue.total_weight, queue.has("a")) == (0, 0.0, False)


def test_a_higher_priority_goes_first_until_its_lead_is_waited_up() -> None:
    queue = make_queue()
    queue.push(make_sequence(0, "a", arrival_s=0.0), cost=1)
    queue.push(make_sequence(1, "a", arrival_s=5.0, priority=9), cost=1)
    queue.push(make_sequence(2, "a", arrival_s=9.5 * AGING_S, priority=9), cost=1)
    assert [pop(queue).number for _ in range(3)] == [1, 0, 2]


def test_a_priority_is_worth_nothing_against_other_tenants() -> None:
    queue = make_queue()
    for number in range(10):
        queue.push(make_sequence(number, "a", priority=100), cost=QUANTUM)
    queue.push(make_sequence(10, "b", priority=-100), cost=QUANTUM)
    assert 10 in [pop(queue).number for _ in range(2)]


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32))
def test_nothing_waits_longer_than_the_bounds_say(seed: int) -> None:
    rng = random.Random(seed)
    weights = {tenant: rng.choice([0.25, 1.0, 3.0]) for tenant in "abcd"}
    queue, now_s, number = make_queue(**weights), 0.0, 0
    costs: dict[int, int] = {}
    order: list[Sequence] = []
    heads: dict[str, tuple[int, Counter[str]]] = {}  # the first of each line, and what others were served since it was
    most = 3000
    while number < 150 or len(queue):
        now_s += 1.0
        for _ in range(rng.randrange(4) if number < 150 else 0):
            costs[number] = rng.randint(1, most)
            one = make_sequence(number, rng.choice("abcd"), priority=rng.choice([-100, 0, 7]), arrival_s=now_s)
            queue.push(one, cost=costs[number])
            number += 1
        if not len(queue):
            continue
        waiting = list(queue)
        served = pop(queue)
        order.append(served)
        tenant = served.request.tenant
        overtaken = [one for one in waiting if one.request.tenant == tenant and one.number < served.number]
        for one in overtaken:
            lead = served.request.priority - one.request.priority
            assert served.request.arrival_s - one.request.arrival_s <= AGING_S * lead
        if heads.pop(tenant, (served.number, None))[0] != served.number:
            heads.clear()  # a priority came between, and the count begins anew
        for name, (head, counts) in list(heads.items()):
            counts[tenant] += costs[served.number]
            turns = math.ceil(costs[head] / (QUANTUM * weights[name]))
            assert counts[tenant] <= turns * QUANTUM * weights[tenant] + most, f"{name} waits too long"
        lines = {one.request.tenant: one for one in reversed(list(queue))}
        for name, one in lines.items():
            if heads.get(name, (None, None))[0] != one.number:
                heads[name] = (one.number, Counter())
    assert len(order) == number


@settings(deadline=None, max_examples=15, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), weight=st.sampled_from([0.01, 0.5, 2.0, 7.0]))
def test_weights_are_honoured_to_within_a_quantum_and_a_request_each(seed: int, weight: float) -> None:
    rng = random.Random(seed)
    queue, most = make_queue(a=weight), 2000
    costs = [rng.randint(1, most) for _ in range(600)]
    for number, cost in enumerate(costs):
        queue.push(make_sequence(number, "ab"[number % 2]), cost=cost)
    served = {"a": 0.0, "b": 0.0}
    left = Counter("ab" * 300)
    while min(left.values()):
        one = pop(queue)
        left[one.request.tenant] -= 1
        served[one.request.tenant] += costs[one.number]
        assert abs(served["a"] / weight - served["b"]) <= QUANTUM + most / weight + most


@pytest.mark.parametrize("lines", [1, 5])
def test_costs_far_above_a_quantum_take_no_longer_to_find(lines: int) -> None:
    queue = make_queue(**dict.fromkeys("abcde", 1e-6))
    for number in range(lines):
        queue.push(make_sequence(number, "abcde"[number]), cost=10**6)
    assert [pop(queue).number for _ in range(lines)] == list(range(lines))
