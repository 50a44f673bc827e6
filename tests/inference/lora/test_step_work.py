"""The Python work of a step depends on its rows, and not on how many adapters are loaded beside those that it uses."""

from __future__ import annotations

import sys

import pytest

from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.lora.bank import Bank
from inference.lora.extents import ALIGNMENT_BYTES, Extent


@pytest.fixture
async def loaded(make_worker, write_adapter):
    """The layout of an adapter, and its weights as they lie in memory."""
    worker = make_worker()
    await worker.generate([1], [(write_adapter("used", worker.modules, {"q": 4, "v": 4}), 1.0)], max_tokens=1)
    layout = worker.bank._layouts[0]
    return layout, worker.bank._arena[: layout.num_elements].clone()


def lines_of_a_step(model, bank, slots):
    """Lines of Python that the cheapest of some decode steps runs: a sequence now and then needs a block more."""
    config = model.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=64,
        block_size=4,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=model.dtype,
    )
    scheduler = Scheduler(Limits(128, 8, 64, 100, 1000), num_blocks=64, block_size=4)
    runner, counts = Runner(model, cache, bank), []
    for slot in slots:
        use = SlotUse(slot, bank.owners[slot])
        scheduler.add(Request(f"r{slot}", (5, 6, slot % 7), SamplingParams(30), uses=(use,)))

    def count_line(frame, event, argument):
        counts[-1] += event == "line"
        return count_line

    for _ in range(10):
        counts.append(0)
        sys.settrace(count_line)
        try:
            chunks = scheduler.schedule(0.0)
            scheduler.complete(chunks, runner.run(chunks), 0.0)
        finally:
            sys.settrace(None)
        assert len(chunks) == len(slots)
    return min(counts)


def test_two_thousand_more_adapters_cost_a_step_no_line_of_python(tiny_model, loaded):
    layout, slab = loaded
    size = -(-slab.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    bank = Bank(tiny_model.sites, capacity_bytes=2003 * size, dtype=tiny_model.dtype)

    def load(slots):
        for slot in slots:
            bank.write(slot, Extent(slot * size, (slot + 1) * size), slab, layout)
            bank.publish(slot, f"sha256:{slot}")

    load(range(3))
    few = lines_of_a_step(tiny_model, bank, range(3))
    load(range(3, 2003))
    assert few > 100, "expected to see the step"
    assert lines_of_a_step(tiny_model, bank, range(3)) == few
    assert lines_of_a_step(tiny_model, bank, range(2000, 2003)) == few
