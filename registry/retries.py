"""When to try again and how long to wait. Knows error codes and time, no particular call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from registry.errors import RegistryError

MAX_ATTEMPTS = 4
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.2, 5.0

T = TypeVar("T")


async def retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeats what failed only because the registry could not be reached; `attempt` must be safe to repeat."""
    for count in range(MAX_ATTEMPTS - 1):
        try:
            return await attempt()
        except RegistryError as error:
            if error.code != "UNAVAILABLE":
                raise
            await asyncio.sleep(backoff_s(count, error))
    return await attempt()


def backoff_s(count: int, error: RegistryError) -> float:
    """How long to wait after `count` earlier failures in a row: growing, jittered, and what the registry asked for."""
    ceiling = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(count, 16))
    jittered = random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- spreads callers out; nobody gains by guessing it
    return max(jittered, min(error.retry_after_s or 0.0, LAST_BACKOFF_S))
