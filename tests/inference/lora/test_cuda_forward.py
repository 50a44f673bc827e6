"""A worker's forward passes through the CUDA ops, on the simulated device, equal those on the CPU.

So the launch code, a batch's metadata and the bank's tables are what a device would get. torch's own attention needs a
real one: a stand-in that follows its documentation takes its place.
"""

from __future__ import annotations

from collections import Counter
from types import ModuleType

import pytest
import torch

import kernels
import kernels.cuda
from inference.models.llama import Llama
from kernels.cuda import attention
from tests.inference.lora.vectors import add_vectors
from tests.kernels.cuda.simulator.attention import documented
from tests.kernels.cuda.simulator.device import Device, installed

TOLERANCE = {"rtol": 0.02, "atol": 0.2}  # of bfloat16 logits of deviation 1, as in tests/inference/models
RANKS = {
    "all": dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 5),
    "some": {"q": 3, "v": 16, "down": 1},
    "vectors": {"o": 2},
}


@pytest.fixture
async def bank_and_slots(make_worker, tiny_model_dir, write_adapter, files_of):
    """A bank with two adapters for a tiny model in bfloat16, and what the model is."""
    model = Llama.load(tiny_model_dir("llama"), "bfloat16")
    worker = make_worker(model=model)
    slots = {}
    for seed, (name, ranks) in enumerate(RANKS.items()):
        folder = write_adapter(name, worker.modules, ranks, seed=seed)
        slots[name] = await worker.adapters.acquire(files_of(folder))
    yield model, worker.bank, {name: lease.slot for name, lease in slots.items()}
    for lease in slots.values():
        lease.release()


@pytest.fixture
def device(monkeypatch):
    """Where `ops` says so, the ops of a CUDA device, simulated; blocks may be small, as its attention is a stand-in."""
    monkeypatch.setattr(attention, "BLOCK_STEP", 1)
    monkeypatch.setattr(attention, "varlen_attn", documented)
    with installed(Device()) as device:
        yield device


def run_steps(model, bank, slots, *, paged, prompt_ids, ops: ModuleType) -> list[torch.Tensor]:
    """A prefill of four prompts, a token for each beside a composed prompt, two decodes: logits of all rows."""
    one, two, three = slots["all"], slots["some"], slots["vectors"]

    def lora(uses):
        return bank.lora_batch(uses).send("cpu")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_ops", lambda _: ops)
        sequences = paged(model)
        prompts = [("a", prompt_ids(19)), ("b", prompt_ids(3, seed=1)), ("c", prompt_ids(4, seed=2)), ("v", [9, 8, 7])]
        uses = [(19, [(one, 1.0)]), (3, []), (4, [(two, 0.5)]), (3, [(three, 1.0)])]
        prefill = sequences.step(prompts, lora=lora(uses))
        tokens = [("a", [5]), ("b", [6]), ("c", [7]), ("v", [6]), ("d", prompt_ids(40, seed=3))]
        uses = [(1, [(one, 1.0)]), (1, []), (1, [(two, 0.5)]), (1, [(three, 1.0)]), (40, [(one, 0.5), (two, -1.0)])]
        mixed = sequences.step(tokens, lora=lora(uses))
        tokens = [("b", [1]), ("a", [2]), ("c", [3]), ("v", [4])]
        uses = [(1, []), (1, [(one, 1.0)]), (1, [(two, 0.5), (one, -0.5)]), (1, [(three, 1.0)])]
        composed = sequences.step(tokens, lora=lora(uses))
        uses = [(1, []), (1, [(one, 1.0)]), (1, [(two, 0.5)]), (1, [(three, 1.0)])]
        return [prefill, mixed, composed, sequences.step(tokens, lora=lora(uses))]


def test_a_forward_pass_through_the_cuda_ops_is_the_cpus(bank_and_slots, device, paged, prompt_ids):
    from kernels import cpu

    model, bank, slots = bank_and_slots
    add_vectors(bank, slots["vectors"], begin=1 << 18)
    on_cpu = run_steps(model, bank, slots, paged=paged, prompt_ids=prompt_ids, ops=cpu)
    on_cuda = run_steps(model, bank, slots, paged=paged, prompt_ids=prompt_ids, ops=kernels.cuda)
    for actual, expected in zip(on_cuda, on_cpu, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)
    launched = Counter(launch.name for launch in device.launches)
    assert {name for kernel in kernels.cuda.KERNELS if (name := kernel.name) not in launched} == set()
    num_layers, num_steps = model.config.num_layers, len(on_cuda)
    assert launched["write_kv"] == num_steps * num_layers
    added = sum(count for name, count in launched.items() if name.startswith(("shrink", "expand")))
    at_ends = 4 * num_steps  # shrink or look_up, and expand, at the embedding and at the head
    assert added <= 8 * num_steps * num_layers + at_ends, "more than 8 LoRA launches in a layer"
