"""What a batch of adapters answers, whatever else happens, is what each request is answered alone."""

from __future__ import annotations

import asyncio
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file

from inference.errors import AdapterNotFound, EngineFailed
from inference.models.llama import Llama

LOGPROB_ATOL = 1e-3  # float32 sums in another order, where tiny layers under strong adapters make an ulp grow
ALL = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture
def adapters(write_adapter, tiny_model):
    """Six adapters of different ranks and targets, by name."""
    modules = {part.module: (part.width, site.in_features) for site in tiny_model.sites for part in site.parts}
    ranks = {
        "all-4": dict.fromkeys(ALL, 4),
        "all-16": dict.fromkeys(ALL, 16),
        "qv-3": {"q": 3, "v": 3},
        "one-layer": {(1, "q"): 8, (1, "down"): 8},
        "mixed": {"q": 1, "k": 2, "v": 5, "up": 7, "down": 1},
        "mlp-2": {"gate": 2, "up": 2, "down": 2},
    }
    return {
        name: write_adapter(name, modules, targets, seed=seed) for seed, (name, targets) in enumerate(ranks.items())
    }


def prompts(number, rng):
    return [[rng.randrange(3, 96) for _ in range(rng.randint(1, 30))] for _ in range(number)]


def assert_same(found, alone):
    assert [token.token_id for token in found] == [token.token_id for token in alone]
    for one, other in zip(found, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=LOGPROB_ATOL)


async def test_a_mixed_batch_answers_each_request_as_if_alone(make_worker, adapters):
    rng = random.Random(1)
    choices = [[], *([(folder, 1.0)] for folder in adapters.values()), [(adapters["qv-3"], -0.5)]]
    requests = [(prompt, choices[n % len(choices)]) for n, prompt in enumerate(prompts(16, rng))]
    worker = make_worker()
    alone = [await worker.generate(prompt, uses) for prompt, uses in requests]
    together = await asyncio.gather(*(worker.generate(prompt, uses) for prompt, uses in requests))
    for found, expected in zip(together, alone, strict=True):
        assert_same(found, expected)
    answers = [tuple(token.token_id for token in answer) for answer in alone]
    assert len(set(answers)) == len(answers), "the adapters make no difference, so this test could not fail"


async def test_an_adapter_on_the_fly_answers_as_its_weights_merged(make_worker, adapters, tiny_model_dir, tmp_path):
    merged_dir = tmp_path / "merged"
    shutil.copytree(tiny_model_dir("llama"), merged_dir)
    weights = load_file(merged_dir / "model.safetensors")
    lora = load_file(adapters["mixed"] / "adapter_model.safetensors")
    for key in [key for key in lora if "lora_A" in key]:
        a, b = lora[key], lora[key.replace("lora_A", "lora_B")]
        weights[key.removeprefix("base_model.model.").replace(".lora_A", "")] += 8 / a.shape[0] * b @ a
    save_file(weights, merged_dir / "model.safetensors", metadata={"format": "pt"})
    merged, worker = make_worker(model=Llama.load(merged_dir, "float32")), make_worker()
    for prompt in prompts(4, random.Random(2)):
        assert_same(await worker.generate(prompt, [(adapters["mixed"], 1.0)]), await merged.generate(prompt))


async def test_a_row_may_apply_the_sum_of_several_adapters(
    make_worker, adapters, write_adapter, tiny_model_dir, tmp_path
):
    merged_dir = tmp_path / "sum"
    shutil.copytree(tiny_model_dir("llama"), merged_dir)
    weights = load_file(merged_dir / "model.safetensors")
    uses = [(adapters["qv-3"], 0.5), (adapters["mlp-2"], 1.0), (adapters["all-4"], -0.25)]
    for folder, weight in uses:
        lora = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in lora if "lora_A" in key]:
            a, b = lora[key], lora[key.replace("lora_A", "lora_B")]
            weights[key.removeprefix("base_model.model.").replace(".lora_A", "")] += weight * 8 / a.shape[0] * b @ a
    save_file(weights, merged_dir / "model.safetensors", metadata={"format": "pt"})
    merged, worker = make_worker(model=Llama.load(merged_dir, "float32")), make_worker()
    some = prompts(3, random.Random(3))
    neighbours = [worker.generate(prompt, [(adapters["mixed"], 1.0)]) for prompt in some]
    answers = await asyncio.gather(*(worker.generate(prompt, uses) for prompt in some), *neighbours)
    for prompt, found in zip(some, answers, strict=False):
        assert_same(found, await merged.generate(prompt))


async def test_an_adapter_evicted_and_loaded_again_answers_as_before(make_worker, adapters):
    worker = make_worker()
    (prompt,) = prompts(1, random.Random(4))
    before = await worker.generate(prompt, [(adapters["all-4"], 1.0)])
    for loaded in worker.adapters.loaded():
        worker.adapters.evict(loaded.digest)
    await worker.generate(prompt, [(adapters["all-16"], 1.0)])
    assert_same(await worker.generate(prompt, [(adapters["all-4"], 1.0)]), before)


async def test_preempted_requests_answer_as_if_never_preempted(make_worker, adapters):
    rng = random.Random(5)
    requests = [([(folder, 1.0)], prompt) for folder, prompt in zip(adapters.values(), prompts(6, rng), strict=True)]
    plenty, scarce = make_worker(), make_worker(num_blocks=32)
    alone = [await plenty.generate(prompt, uses, max_tokens=40) for uses, prompt in requests]
    found = await asyncio.gather(*(scarce.generate(prompt, uses, max_tokens=40) for uses, prompt in requests))
    assert scarce.engine.stats().preemptions > 0
    for one, other in zip(found, alone, strict=True):
        assert_same(one, other)


async def test_a_chunked_prefill_answers_as_a_plain_one(make_worker, adapters):
    rng = random.Random(6)
    prompt = [rng.randrange(3, 96) for _ in range(90)]
    plain, chunked = make_worker(max_step_tokens=100), make_worker(max_step_tokens=8)
    for uses in ([], [(adapters["all-16"], 1.0)]):
        assert_same(await chunked.generate(prompt, uses), await plain.generate(prompt, uses))


async def test_a_slot_that_holds_other_weights_fails_the_request_and_never_answers(make_worker, adapters):
    worker = make_worker()
    (prompt,) = prompts(1, random.Random(7))
    await worker.generate(prompt, [(adapters["all-4"], 1.0)])
    (loaded,) = worker.adapters.loaded()
    worker.bank.owners[loaded.slot] = "sha256:somebody else's"
    sound = asyncio.create_task(worker.generate(prompt))
    worker.adapters.check_integrity = lambda: None
    with pytest.raises(EngineFailed, match=f"expected the weights of {loaded.digest}, found those of sha256:somebody"):
        await worker.generate(prompt, [(adapters["all-4"], 1.0)])
    assert len(await sound) == 8
    worker.bank.owners[loaded.slot] = loaded.digest
    del worker.adapters.check_integrity


async def test_slots_that_move_under_running_requests_change_no_answer(
    make_worker, write_adapter, files_of, tiny_model, monkeypatch
):
    """Of four neighbours two leave, and what comes in their place needs both holes; the other two answer meanwhile.

    Alone, before and after, an answer has the same bits; beside others its sums may come in another order.
    """
    monkeypatch.setattr("inference.lora.bank.PART_BYTES", 512)
    monkeypatch.setattr("inference.lora.moving.BYTES_PER_STEP", 1024)
    modules = {part.module: (part.width, site.in_features) for site in tiny_model.sites for part in site.parts}
    folders = [write_adapter(f"four-{n}", modules, dict.fromkeys(ALL, 4), seed=10 + n) for n in range(4)]
    (prompt,) = prompts(1, random.Random(9))
    calm = make_worker(is_prefix_cached=False)
    running = [([(folders[1], 1.0)], 60), ([(folders[3], 0.5), (folders[1], 1.0)], 50)]
    alone = [await calm.generate(prompt, uses, max_tokens=tokens) for uses, tokens in running]
    size = calm.adapters.loaded()[0].size_bytes
    worker = make_worker(adapter_bytes=4 * size, is_prefix_cached=False)
    for folder in folders:
        await worker.generate(prompt, [(folder, 1.0)], max_tokens=1)
    tasks = [asyncio.create_task(worker.generate(prompt, uses, max_tokens=tokens)) for uses, tokens in running]
    while worker.engine.stats().running < len(tasks):
        await asyncio.wrap_future(worker.engine.run_between_steps(lambda: None))
    begins = dict(worker.bank._begins)
    both_holes = write_adapter("seven", modules, dict.fromkeys(ALL, 7), seed=20)
    await worker.generate(prompt, [(both_holes, 1.0)], max_tokens=1)
    assert worker.adapters.compactions == 1
    assert worker.adapters.mover.moved_bytes >= size
    assert worker.bank._begins != begins
    assert worker.adapters.is_loaded(files_of(folders[1]).digest)
    for found, expected in zip(await asyncio.gather(*tasks), alone, strict=True):
        assert_same(found, expected)
    again = await worker.generate(prompt, running[0][0], max_tokens=60)
    assert [(token.token_id, token.logprob) for token in again] == [
        (token.token_id, token.logprob) for token in alone[0]
    ]


@pytest.mark.parametrize("memory", ["scarce", "plenty", "tight"])
async def test_random_loads_evictions_and_cancels_change_no_answer(make_worker, adapters, memory):
    """Memory for a fraction of the adapters, for all of them, or for hardly more than the largest composition."""
    rng = random.Random(memory)
    folders = list(adapters.values())
    some = prompts(5, rng)
    choices = [(), *(((folder, 1.0),) for folder in folders)]
    if memory != "scarce":
        choices += [((folders[0], 0.5), (folders[2], 1.0)), ((folders[4], 1.0), (folders[5], -1.0))]
        choices += [((folders[2], 1.0), (folders[3], 0.5), (folders[5], 1.0))]
    calm = make_worker()
    alone = {(p, c): await calm.generate(some[p], choices[c]) for p in range(len(some)) for c in range(len(choices))}
    sizes = [loaded.size_bytes for loaded in calm.adapters.loaded()]
    room = {"scarce": max(sizes) + min(sizes), "plenty": 4 * sum(sizes), "tight": max(sizes) + sum(sizes) // 4}
    host_bytes = {"scarce": 0, "plenty": sum(sizes) // 2, "tight": sum(sizes) // 2}
    worker = make_worker(adapter_bytes=room[memory], host_bytes=host_bytes[memory], num_blocks=40, max_step_tokens=16)

    async def client(turns):
        for _ in range(turns):
            key = rng.randrange(len(some)), rng.randrange(len(choices))
            cancel_after = rng.choice([None, None, None, 1, 3])
            found = await worker.generate(some[key[0]], choices[key[1]], cancel_after=cancel_after)
            assert_same(found, alone[key][: len(found)])
            assert cancel_after is not None or len(found) == len(alone[key])

    async def disturber(turns):
        for _ in range(turns):
            loaded = worker.adapters.loaded()
            if loaded:
                action = rng.choice([worker.adapters.evict, worker.adapters.retire])
                action(rng.choice(loaded).digest)
            worker.adapters.check_integrity()
            steps = worker.engine.stats().steps
            while worker.engine.stats().steps == steps and worker.scheduler.has_work:
                await asyncio.wrap_future(worker.engine.run_between_steps(lambda: None))

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(client(15))
        group.create_task(disturber(60))
    stats = worker.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_free) == (0, 0, stats.blocks)
    assert all(loaded.leases == 0 for loaded in worker.adapters.loaded())
    with pytest.raises(AdapterNotFound):
        worker.adapters.evict("sha256:never")
