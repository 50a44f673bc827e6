from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inference.engine.intake import GREED, Intake
from inference.errors import QueueFull

Simulate = Callable[..., Any]


def fill(world: Any, intake: Intake, tenant: str, *, prompt: int = 1) -> int:
    """Submits for one tenant until it is refused; how many were taken."""
    taken = 0
    while True:
        request = world.request(prompt, tenant=tenant)
        try:
            intake.take(request, now_s=0.0)
        except QueueFull:
            return taken
        taken += 1
        if taken % 2:  # some are on their way, and some are there
            world.scheduler.add(request)
            intake.hand_over(request)


def test_a_flood_leaves_room_in_the_queue_for_others(simulate: Simulate) -> None:
    world = simulate(max_waiting=100)
    intake = Intake(world.scheduler)
    flood = fill(world, intake, "flood")
    assert flood == 100 * GREED / (GREED + 1)
    second = fill(world, intake, "second")
    assert second == 16
    assert fill(world, intake, "third") == 4, "four times what the others left, but for themselves"


def test_a_flood_of_long_prompts_leaves_room_in_the_queue_for_others(simulate: Simulate) -> None:
    world = simulate(max_waiting_tokens=1000)
    intake = Intake(world.scheduler)
    assert fill(world, intake, "flood", prompt=20) == 40
    assert fill(world, intake, "other", prompt=20) == 8


def test_paused_requests_take_room_until_they_end(simulate: Simulate) -> None:
    world = simulate(max_waiting=2)
    requests = [world.submit(3, max_tokens=9) for _ in range(2)]
    world.step()
    intake = Intake(world.scheduler)
    for request in requests:
        world.scheduler.pause(request.id)
    with pytest.raises(QueueFull, match="2 requests are waiting and 2 may") as refused:
        intake.take(world.request(3), now_s=0.0)
    assert refused.value.retry_after_s is not None
    world.cancel(requests[0])
    intake.take(world.request(3), now_s=0.0)
    assert intake.num_requests == 1
