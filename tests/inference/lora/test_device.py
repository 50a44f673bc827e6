"""Captured decodes where a device can do them: `pytest -m gpu`. On the CPU the same steps are repeated by the host.

Never run on a device yet. There a replay must have the bits of the same padded step computed directly, while adapters
come and go on another thread.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

import kernels
from inference.engine.batch import HostBatch, lay_out
from inference.engine.graphs import CudaCapture, DecodeGraphs, eager, pad
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams
from inference.engine.sequence import Chunk, Sequence
from inference.lora.bank import Bank
from inference.lora.extents import Extent
from inference.lora.weights import Layout
from inference.models.llama import Llama

NUM_STEPS, NUM_SEQUENCES, NUM_SLOTS = 8, 5, 6
BLOCK_SIZE = 256  # the least that torch's attention reads on a device
EXTENT_BYTES = 1 << 17


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request, tiny_model_dir) -> Llama:
    torch.manual_seed(0)
    model = Llama.load(tiny_model_dir("llama"), "bfloat16", request.param)
    kernels.warm_up(model.device.type, [model.dtype])
    return model


def write_random(bank: Bank, model: Llama, slot: int, rank: int) -> None:
    """An adapter of one rank at every projection of the layers, in the slot's own extent."""
    num_projections = 4 * model.config.num_layers
    end, a_start, b_start, ranks = 0, [], [], []
    for index, site in enumerate(model.sites):
        here = rank if index < num_projections else 0
        a_start.append(end)
        end += here * len(site.parts) * site.in_features
        for part in site.parts:
            b_start.append(end)
            end += here * part.width
            ranks.append(here)
    zeros = np.zeros(len(ranks), np.int64)
    layout = Layout(
        end,
        np.array(a_start),
        np.array(ranks, np.int32),
        np.array(b_start),
        np.full(len(ranks), 0.5, np.float32),
        zeros.astype(np.int32),
        zeros,
        (),
        (),
    )
    extent = Extent(slot * EXTENT_BYTES, (slot + 1) * EXTENT_BYTES)
    bank.write(slot, extent, torch.randn(end).div(8).to(model.dtype), layout)
    bank.publish(slot, f"adapter of {slot}")


def lay_out_next(bank: Bank, sequences: list[Sequence], uses: list[list[tuple[int, float]]]) -> HostBatch:
    chunks = [Chunk(one, one.computed, one.remaining, samples=True) for one in sequences]
    for chunk in chunks:
        chunk.sequence.computed += chunk.length
    host = lay_out(chunks, block_size=BLOCK_SIZE)
    rows = [(chunk.length, pairs) for chunk, pairs in zip(chunks, uses, strict=True)]
    logit_rows = None if host.is_decode else host.logit_rows
    return dataclasses.replace(host, lora=bank.lora_batch(rows, logit_rows=logit_rows))


def test_replays_have_the_bits_of_the_steps_beside_loads_on_another_thread(model):
    config, device = model.config, model.device
    bank = Bank(
        model.sites, capacity_bytes=NUM_SLOTS * EXTENT_BYTES, dtype=model.dtype, device=device, max_slots=NUM_SLOTS
    )
    caches = [
        KVCache(
            num_layers=config.num_layers,
            num_blocks=NUM_SEQUENCES,
            block_size=BLOCK_SIZE,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
            device=device,
        )
        for _ in range(2)
    ]
    for cache in caches:
        cache._memory.zero_()  # what no step writes is compared too
    for slot in range(3):
        write_random(bank, model, slot, rank=(5, 16, 3)[slot])
    requests = [Request(f"{n}", tuple(range(3, 6 + n)), SamplingParams(9)) for n in range(NUM_SEQUENCES)]
    sequences = [Sequence(request, n, blocks=[n]) for n, request in enumerate(requests)]
    uses: list[list[tuple[int, float]]] = [[(0, 1.0)], [], [(1, 0.5)], [(2, 1.0)], [(1, 1.0)]]
    prefill = lay_out_next(bank, sequences, uses).send(device)
    capture = eager if device.type == "cpu" else CudaCapture(device)
    graphs = DecodeGraphs(model, caches[1], capture, vocab_size=config.vocab_size, max_rows=8, max_blocks=16)
    with torch.inference_mode():
        logits, _ = (model.forward(prefill, cache) for cache in caches)
    for step in range(NUM_STEPS):
        for sequence, token in zip(sequences, logits.argmax(dim=-1).tolist(), strict=True):
            sequence.tokens.append(token)
        coming = min(set(range(NUM_SLOTS)) - {slot for pairs in uses for slot, _ in pairs})
        bank.disown(coming)
        loading = threading.Thread(target=write_random, args=(bank, model, coming, 16))
        loading.start()
        host = lay_out_next(bank, sequences, uses)
        with torch.inference_mode():
            logits = model.forward(pad(host, max_blocks=16).send(device), caches[0])[: host.num_rows]
            replayed = graphs.logits(host)
        bank.mark_step()
        assert torch.equal(replayed, logits), f"step {step}"
        loading.join()
        uses = [*uses[1:], [(coming, 1.0)]]
    assert len(graphs) <= 2, "one for each rank that the adapters' largest rounds up to"
    assert all(torch.equal(caches[0].k(n), caches[1].k(n)) for n in range(config.num_layers))
