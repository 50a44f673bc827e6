"""Slots to other bytes of the arena while requests use them: a part at a time, between the engine's steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain

from inference.errors import InferenceError
from inference.lora.bank import Bank
from inference.lora.slots import Move

BYTES_PER_STEP = 4 * 2**20  # about a millisecond of a CPU's memory, less than a step's own
log = logging.getLogger(__name__)

RunBetweenSteps = Callable[[Callable[[], bool]], Future[bool]]


def run_at_once(function: Callable[[], bool]) -> Future[bool]:
    """What Engine.run_between_steps does, for where no engine runs."""
    future: Future[bool] = Future()
    future.set_result(function())
    return future


class Mover:
    """Carries out moves, one list after the other."""

    def __init__(self, bank: Bank, run_between_steps: RunBetweenSteps) -> None:
        self._bank = bank
        self._run_between_steps = run_between_steps
        self.moved_bytes = 0

    async def move(self, moves: Sequence[Move]) -> None:
        """Returns when all is moved; must not be cancelled, since it would leave slots between two places."""
        parts = chain.from_iterable(self._bank.move(move.slot.index, move.target) for move in moves)

        def move_some() -> bool:
            """On the engine's thread, between two steps. True at the end."""
            moved = 0
            for num_bytes in parts:
                moved += num_bytes
                self.moved_bytes += num_bytes
                if moved >= BYTES_PER_STEP:
                    return False
            return True

        try:
            while not await asyncio.wrap_future(self._run_between_steps(move_some)):
                pass
        except InferenceError as error:
            log.info("the engine has ended, so nothing is in the way of the rest of the moves: %s", error)
            while not move_some():
                pass
