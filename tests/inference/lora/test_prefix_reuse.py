"""Prefix reuse = one plain prefill, tokens and log-probabilities, through the real kernels on a tiny model."""

from __future__ import annotations

import asyncio
import random

import pytest

LOGPROB_ATOL = 1e-3  # float32 sums in another order, as in test_serving
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def random_tokens(count, seed):
    rng = random.Random(seed)
    return [rng.randrange(3, 96) for _ in range(count)]


def assert_same(found, alone):
    assert [token.token_id for token in found] == [token.token_id for token in alone]
    for one, other in zip(found, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_ATOL)


@pytest.fixture
def folders(write_adapter, tiny_model):
    modules = {part.module: (part.width, site.in_features) for site in tiny_model.sites for part in site.parts}
    return [write_adapter(f"version-{seed}", modules, dict.fromkeys(ALL, 8), seed=seed) for seed in range(2)]


async def test_an_answer_after_a_cached_prefix_is_that_of_a_plain_prefill(make_worker, folders):
    plain, worker = make_worker(is_prefix_cached=False), make_worker()
    system = random_tokens(50, seed=1)
    choices = [[], [(folders[0], 1.0)], [(folders[0], 0.5)], [(folders[0], 0.5), (folders[1], 1.0)]]
    for uses in choices:
        await worker.generate(system, uses, max_tokens=1)
        prompts = [system + random_tokens(count, seed=count) for count in (1, 2, 7, 30)]
        found = await asyncio.gather(*(worker.generate(prompt, uses) for prompt in prompts))
        for prompt, answer in zip(prompts, found, strict=True):
            assert_same(answer, await plain.generate(prompt, uses))
    assert worker.cached_tokens == [0, 48, 48, 48, 48] * len(choices)


async def test_a_conversation_goes_on_from_blocks_that_decoding_filled(make_worker, folders):
    plain, worker = make_worker(is_prefix_cached=False), make_worker()
    uses = [(folders[0], 1.0)]
    tokens = random_tokens(9, seed=2)
    for turn in range(4):
        tokens += [token.token_id for token in await worker.generate(tokens, uses, max_tokens=12)]
        tokens += random_tokens(5, seed=turn)
    assert_same(await worker.generate(tokens, uses), await plain.generate(tokens, uses))
    assert worker.cached_tokens[-1] >= 64


async def test_a_new_version_in_the_slot_of_the_old_one_finds_nothing_of_it(make_worker, folders):
    plain, worker = make_worker(is_prefix_cached=False), make_worker()
    prompt = random_tokens(60, seed=3)
    await worker.generate(prompt, [(folders[0], 1.0)])
    (old,) = worker.adapters.loaded()
    worker.adapters.evict(old.digest)
    found = await worker.generate(prompt, [(folders[1], 1.0)])
    (new,) = worker.adapters.loaded()
    assert new.slot == old.slot
    assert worker.cached_tokens == [0, 0]
    assert_same(found, await plain.generate(prompt, [(folders[1], 1.0)]))
    worker.adapters.evict(new.digest)
    assert_same(await worker.generate(prompt, [(folders[0], 1.0)]), await plain.generate(prompt, [(folders[0], 1.0)]))
    assert worker.cached_tokens[-1] == 56, "the same weights again may use what they computed before"
