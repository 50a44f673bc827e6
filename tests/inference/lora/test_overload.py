"""Ten times more than there is room for, on a tiny model: each request is answered once and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc

from inference.errors import QueueFull

ROWS = 2
CLIENTS = 10 * ROWS
GROWTH_BYTES = 16 * 2**10  # of a round with 20 requests; keeping one answer of each would be more


async def test_ten_times_the_capacity_loses_nothing_doubles_nothing_and_keeps_nothing(make_worker):
    worker = make_worker(max_running=ROWS, num_blocks=32, max_waiting=2 * ROWS)
    rng = random.Random(1)
    prompts = [[rng.randrange(3, 96) for _ in range(rng.randint(2, 30))] for _ in range(8)]
    alone = [[token.token_id for token in await worker.generate(prompt)] for prompt in prompts]
    refusals, an_end = 0, asyncio.Condition()

    async def client(number):
        nonlocal refusals
        which = number % len(prompts)
        while True:
            try:
                found = await worker.generate(prompts[which])
            except QueueFull:
                refusals += 1
                async with an_end:
                    await an_end.wait()
            else:
                assert [token.index for token in found] == list(range(len(found)))
                assert [token.token_id for token in found] == alone[which]
                async with an_end:
                    an_end.notify_all()
                break

    async def everyone():
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        stats = worker.engine.stats()
        assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)
        worker.cached_tokens.clear()
        gc.collect()

    await everyone()
    assert refusals > CLIENTS
    tracemalloc.start()
    try:
        await everyone()
        before = tracemalloc.get_traced_memory()[0]
        await everyone()
        assert tracemalloc.get_traced_memory()[0] - before < GROWTH_BYTES
    finally:
        tracemalloc.stop()
