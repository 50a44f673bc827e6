"""The engine answers as transformers + PEFT do, on real weights: every golden prompt alone, and all in one batch.

The goldens were made one prompt at a time by code that is not ours. Sums in another order may turn a near-tie, so an
answer is compared up to the first step where one was found: in bfloat16 also where float32, the truth that it rounds,
has one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.base_model import describe_base_model
from adapter.manifest import manifest_of_adapter
from inference.engine.engine import Engine
from inference.engine.kv_cache import KVCache
from inference.engine.request import Event, Failed, Finished, Request, SamplingParams, SlotUse, Token
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import HostCache
from inference.lora.lease import Lease
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles, Reader
from inference.lora.slots import Slots
from inference.models.llama import Llama

# By dtype: its key in the goldens, the margin of the two best logits under which a step is a near-tie, and how far
# log-probabilities may be off. bfloat16 logits between 16 and 32 are 0.125 apart, after 30 layers of such steps.
RULES = {"float32": ("fp32", 0.01, 5e-4), "bfloat16": ("bf16", 0.2, 0.5)}
ADAPTERS = ("pirate", "sql", "json", "classify")
EOS = 2
ADAPTER_BYTES = 64 * 2**20


class Golden:
    """The base model with the four adapters in memory, in one dtype."""

    def __init__(self, base_model_dir: Path, dtype: str) -> None:
        model = Llama.load(base_model_dir, dtype)
        config = model.config
        scheduler = Scheduler(
            Limits(
                max_context=512,
                max_running=16,
                max_step_tokens=128,
                max_waiting=100,
                max_waiting_tokens=10_000,
            ),
            num_blocks=128,
            block_size=16,
        )
        kv_cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=128,
            block_size=16,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        self.bank = Bank(model.sites, capacity_bytes=ADAPTER_BYTES, dtype=model.dtype)
        slots = Slots(ADAPTER_BYTES)
        reader = Reader(
            sites=model.sites,
            modules=describe_base_model(base_model_dir).modules,
            base=BaseWeights(base_model_dir, model.dtype),
            dtype=model.dtype,
            check_fits=slots.check_fits,
        )
        self.adapters = Adapters(self.bank, slots, reader, host=HostCache(0))
        self.engine = Engine(Runner(model, kv_cache, self.bank), scheduler, self._on_events)
        self.leases: dict[str, Lease] = {}
        self.tokens: dict[str, list[Token]] = defaultdict(list)
        self.ends: dict[str, Event] = {}
        self._ended = threading.Condition()

    async def load(self, adapters_dir: Path) -> None:
        for name in ADAPTERS:
            folder = adapters_dir / name
            self.leases[name] = await self.adapters.acquire(AdapterFiles(manifest_of_adapter(folder), folder))
        await self.adapters.close()

    def answer(self, entries: list[dict[str, Any]]) -> list[list[Token]]:
        """Submits all at once and waits for all."""
        ids = [f"{len(self.ends)}-{n}" for n in range(len(entries))]
        for request_id, entry in zip(ids, entries, strict=True):
            lease = self.leases.get(entry["adapter"])
            uses = () if lease is None else (SlotUse(lease.slot, lease.digest),)
            sampling = SamplingParams(entry["max_tokens"], logprobs=5)
            self.engine.submit(Request(request_id, tuple(entry["prompt_ids"]), sampling, frozenset([EOS]), uses))
        with self._ended:
            assert self._ended.wait_for(lambda: all(request_id in self.ends for request_id in ids), timeout=250)
        assert all(isinstance(self.ends[request_id], Finished) for request_id in ids)
        return [self.tokens[request_id] for request_id in ids]

    def _on_events(self, events: list[Event]) -> None:
        with self._ended:
            for event in events:
                if isinstance(event, Token):
                    self.tokens[event.request_id].append(event)
                elif isinstance(event, Finished | Failed):
                    self.ends[event.request_id] = event
            self._ended.notify_all()


@pytest.fixture(scope="module", params=RULES)
def golden(request: pytest.FixtureRequest, base_model_dir: Path, adapters_dir: Path) -> Iterator[tuple[str, Golden]]:
    """A dtype and an engine that runs in it."""
    golden = Golden(base_model_dir, request.param)
    asyncio.run(golden.load(adapters_dir))
    golden.engine.start()
    yield request.param, golden
    golden.engine.stop()


@pytest.fixture(scope="module")
def entries(goldens: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in goldens["entries"] if entry["adapter"] in (None, *ADAPTERS)]


def near_tie(entry: dict[str, Any], dtype: str) -> int:
    """The first step that may turn, or the length of the answer."""
    key, least_margin, _ = RULES[dtype]
    length, margins = len(entry[key]["output_ids"]), entry[key]["margins"]
    exact = entry["fp32"]["margins"]
    return next((n for n in range(length) if min(margins[n], *exact[n : n + 1]) < least_margin), length)


def assert_golden(answer: list[Token], entry: dict[str, Any], dtype: str) -> None:
    key, _, atol = RULES[dtype]
    expected, end = entry[key], near_tie(entry, dtype)
    if end == len(expected["output_ids"]):
        end = len(answer)  # no near-tie, so nothing may follow either
    assert [token.token_id for token in answer[:end]] == expected["output_ids"][:end]
    logprobs = [token.logprob for token in answer[:end]]
    assert logprobs == pytest.approx(expected["logprobs"][:end], abs=atol)
    # Log-probabilities differ from logits by one number for the whole step, so their distances are the same.
    found = dict(answer[0].alternatives)
    (best, best_logit), *others = expected["first_step_top5"]
    for token_id, logit in others:
        if token_id in found and best in found:
            assert found[token_id] - found[best] == pytest.approx(logit - best_logit, abs=2 * atol)


def test_all_prompts_in_one_batch_get_their_golden_answers(
    golden: tuple[str, Golden], entries: list[dict[str, Any]]
) -> None:
    dtype, engine = golden
    for answer, entry in zip(engine.answer(entries), entries, strict=True):
        assert_golden(answer, entry, dtype)


def test_a_prompt_alone_gets_its_golden_answer(golden: tuple[str, Golden], entries: list[dict[str, Any]]) -> None:
    dtype, engine = golden
    firsts = {entry["adapter"]: entry for entry in reversed(entries)}
    assert firsts.keys() == {None, *ADAPTERS}
    for entry in firsts.values():
        (answer,) = engine.answer([entry])
        assert_golden(answer, entry, dtype)
