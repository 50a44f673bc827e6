from __future__ import annotations

from itertools import pairwise

from inference.engine.fair_queue import FairQueue
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.engine.sequence import Sequence


def make_sequence(number: int, adapter: str) -> Sequence:
    request = Request(f"r{number}", (1,), SamplingParams(1), uses=(SlotUse(0, adapter),))
    return Sequence(request, number)


def pop(queue: FairQueue, *, resting: tuple[str, ...] = ()) -> Sequence:
    """Whose turn it is when these adapters may not run."""
    sequence = queue.next(lambda sequence: sequence.request.uses[0].digest not in resting)
    assert sequence is not None
    queue.pop(sequence)
    return sequence


def test_adapters_take_turns_and_each_is_first_come_first_served() -> None:
    queue = FairQueue()
    for number, adapter in enumerate("aaaabbc"):
        queue.push(make_sequence(number, adapter))
    popped = [pop(queue).number for _ in range(len(queue))]
    assert popped == [0, 4, 6, 1, 5, 2, 3]
    assert queue.next(lambda _: True) is None


def test_between_two_turns_of_one_adapter_every_waiting_one_has_a_turn() -> None:
    queue = FairQueue()
    for number in range(90):
        queue.push(make_sequence(number, "abc"[number % 3]))
    order = [pop(queue).request.adapter_key for _ in range(90)]
    assert all(before != after for before, after in pairwise(order))


def test_an_adapter_that_may_not_run_keeps_its_turn() -> None:
    queue = FairQueue()
    for number, adapter in enumerate("aabbc"):
        queue.push(make_sequence(number, adapter))
    assert [pop(queue, resting=("a",)).number for _ in range(2)] == [2, 4]
    assert queue.next(lambda _: False) is None
    assert [pop(queue).number for _ in range(3)] == [0, 3, 1]


def test_removing_one_leaves_the_turns_of_the_others() -> None:
    queue = FairQueue()
    sequences = [make_sequence(number, adapter) for number, adapter in enumerate("aabb")]
    for sequence in sequences:
        queue.push(sequence)
    queue.remove(sequences[0])
    queue.remove(sequences[3])
    assert list(queue) == [sequences[1], sequences[2]]
    assert len(queue) == 2
    queue.remove(sequences[1])
    queue.remove(sequences[2])
    assert queue.next(lambda _: True) is None
