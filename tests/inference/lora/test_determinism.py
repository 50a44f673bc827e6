"""With tiled products an answer is the same bits alone, beside any neighbours and in any chunks of its prompt."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from inference.models.linear import TiledLinear
from inference.models.llama import Llama

WIDTHS = {"q": 4, "v": 7, "down": 16, "gate": 3}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request, tiny_model_dir):
    return Llama.load(tiny_model_dir("llama with a wide middle"), request.param, linear=TiledLinear)


@pytest.fixture
def adapters(write_adapter, model):
    modules = {part.module: (part.width, site.in_features) for site in model.sites for part in site.parts}
    one, two = (write_adapter(f"adapter-{seed}", modules, WIDTHS, seed=seed) for seed in range(2))
    return [[], [(one, 1.0)], [(two, 0.5)], [(one, 0.5), (two, 2.0)]]


async def test_an_answer_is_the_same_bits_alone_and_in_any_batch(make_worker, model, adapters):
    rng = random.Random(11)
    shared = [rng.randrange(3, 96) for _ in range(20)]
    requests = []
    for place in range(24):
        prompt = shared[: rng.choice([0, 20])] + [rng.randrange(3, 96) for _ in range(rng.randint(1, 40))]
        requests.append((prompt, adapters[place % 4], rng.randint(1, 9)))
    plain = make_worker(model=model, is_prefix_cached=False)
    alone = [await plain.generate(prompt, uses, max_tokens=count) for prompt, uses, count in requests]
    for budget, rows in [(8, 8), (17, 3), (64, 8)]:
        worker = make_worker(model=model, max_step_tokens=budget, max_running=rows, num_blocks=48)
        places = rng.sample(range(24), 24)
        answers = await asyncio.gather(
            *(
                worker.generate(requests[place][0], requests[place][1], max_tokens=requests[place][2])
                for place in places
            )
        )
        for place, answer in zip(places, answers, strict=True):
            # Whole tokens: their ids, and every log-probability to the last bit.
            assert answer == [replace(token, request_id=answer[0].request_id) for token in alone[place]]
