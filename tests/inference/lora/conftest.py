"""Random adapters as PEFT folders, room for them, and a whole engine over a tiny model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapter.base_model import read_modules
from adapter.manifest import manifest_of_adapter
from inference.engine.engine import Engine
from inference.engine.kv_cache import KVCache
from inference.engine.request import Admitted, Event, Failed, Finished, Request, SamplingParams, SlotUse, Token
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import HostCache
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles, Reader
from inference.lora.slots import Slots
from inference.models.llama import Llama
from inference.models.sites import SitePart, SiteShape

SUFFIXES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
SUFFIXES |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
# Odd widths, so that nothing is aligned by itself; only "down" has an input of its own.
WIDTHS = {"q": (12, 12), "k": (6, 12), "v": (6, 12), "o": (12, 12), "gate": (20, 12), "up": (20, 12), "down": (12, 20)}
PARTS = {"qkv": "qkv", "o": ["o"], "gate_up": ["gate", "up"], "down": ["down"]}
NO_FOLDER = Path("no-folder")  # of a base model whose weights no adapter of the test asks for


def module_name(layer: int, short: str) -> str:
    return f"model.layers.{layer}.{SUFFIXES[short]}"


@pytest.fixture(scope="session")
def sites() -> tuple[SiteShape, ...]:
    """The sites of a model of two layers."""
    return tuple(
        SiteShape(
            name=f"layers.{layer}.{site}",
            in_features=WIDTHS[parts[0]][1],
            parts=tuple(SitePart(module_name(layer, part), WIDTHS[part][0]) for part in parts),
        )
        for layer in range(2)
        for site, parts in PARTS.items()
    )


def modules_of(sites: Sequence[SiteShape]) -> dict[str, tuple[int, int]]:
    return {part.module: (part.width, site.in_features) for site in sites for part in site.parts}


@pytest.fixture(scope="session")
def modules(sites: Sequence[SiteShape]) -> dict[str, tuple[int, int]]:
    """Name -> (out_features, in_features) of the same model."""
    return modules_of(sites)


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random PEFT folder: ranks by short name (`q`) or by (layer, short name)."""

    def write(
        name: str,
        modules: Mapping[str, tuple[int, int]],
        ranks: Mapping[Any, int],
        *,
        alpha: float = 8,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        strength: float = 0.5,
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors, pattern = {}, {}
        for module, (out_features, in_features) in modules.items():
            short = next((s for s, end in SUFFIXES.items() if module.endswith(end)), None)
            if short is None:
                continue
            layer = int(module.split(".")[2])
            rank = ranks.get((layer, short), ranks.get(short, 0))
            if rank:
                pattern[module] = rank
                a = torch.randn(rank, in_features, generator=generator)
                b = torch.randn(out_features, rank, generator=generator) * (strength / rank)
                tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype)
                tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype)
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        targets = sorted(pattern)
        config = {"peft_type": "LORA", "lora_alpha": alpha, "target_modules": targets, "rank_pattern": pattern}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


def files_of(folder: Path) -> AdapterFiles:
    return AdapterFiles(manifest_of_adapter(folder), folder)


@pytest.fixture(name="files_of")
def files_of_fixture() -> Callable[[Path], AdapterFiles]:
    """What the resolver would hand over for a folder."""
    return files_of


class Worker:
    """An engine with adapters over a tiny model, without gRPC, text and registry."""

    def __init__(
        self,
        model: Llama,
        *,
        base_folder: Path = NO_FOLDER,
        adapter_bytes: int = 1 << 20,
        num_blocks: int = 64,
        max_running: int = 8,
        max_step_tokens: int = 64,
        host_bytes: int = 0,
        wait_s: float = 30.0,
        max_waiting: int = 1000,
        is_prefix_cached: bool = True,
    ) -> None:
        config = model.config
        self.modules = modules_of(model.sites) if base_folder == NO_FOLDER else read_modules(base_folder)
        self.scheduler = Scheduler(
            Limits(
                max_context=128,
                max_running=max_running,
                max_step_tokens=max_step_tokens,
                max_waiting=max_waiting,
                max_waiting_tokens=100_000,
            ),
            num_blocks=num_blocks,
            block_size=4,
            is_prefix_cached=is_prefix_cached,
        )
        kv_cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_size=4,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        for layer in range(config.num_layers):
            kv_cache.k(layer).fill_(torch.nan)
            kv_cache.v(layer).fill_(torch.nan)
        self.bank = Bank(model.sites, capacity_bytes=adapter_bytes, dtype=model.dtype, is_checked=True)
        self.bank._arena.fill_(torch.nan)
        slots = Slots(adapter_bytes)
        reader = Reader(
            sites=model.sites,
            modules=self.modules,
            base=BaseWeights(base_folder, model.dtype),
            dtype=model.dtype,
            check_fits=slots.check_fits,
        )
        self.engine = Engine(Runner(model, kv_cache, self.bank), self.scheduler, self._on_events)
        self.adapters = Adapters(
            self.bank,
            slots,
            reader,
            host=HostCache(host_bytes),
            run_between_steps=self.engine.run_between_steps,
            wait_s=wait_s,
        )
        self._loop = asyncio.get_running_loop()
        self._ends: dict[str, asyncio.Future[Finished | Failed]] = {}
        self.tokens: dict[str, list[Token]] = {}
        self.cached_tokens: list[int] = []  # of each request, in the order of their admission
        self._cancel_after: dict[str, int | None] = {}
        self._ids = count()
        self.engine.start()

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.stop)
        await self.adapters.close()
        self.scheduler.check_integrity()
        self.adapters.check_integrity()

    async def generate(
        self,
        prompt: Sequence[int],
        adapters: Sequence[tuple[Path, float]] = (),
        *,
        max_tokens: int = 8,
        cancel_after: int | None = None,
    ) -> list[Token]:
        """The tokens of an answer, with log-probabilities; raises what the engine or the loader failed with."""
        leases = await self.adapters.acquire_all([files_of(folder) for folder, _ in adapters])
        try:
            uses = tuple(
                SlotUse(lease.slot, lease.digest, weight) for lease, (_, weight) in zip(leases, adapters, strict=True)
            )
            request = Request(
                f"r{next(self._ids)}",
                tuple(prompt),
                SamplingParams(max_tokens, logprobs=2),
                uses=uses,
                arrival_s=time.monotonic(),
            )
            self.engine.submit(request)
            # The events come on this loop, so not before these are here.
            self._ends[request.id] = end = self._loop.create_future()
            self.tokens[request.id] = []
            self._cancel_after[request.id] = cancel_after
            ended = await end
        finally:
            for lease in leases:
                lease.release()
            self.adapters.check_integrity()
        if isinstance(ended, Failed):
            raise ended.error
        return self.tokens.pop(request.id)

    def _on_events(self, events: list[Event]) -> None:
        self._loop.call_soon_threadsafe(self._deal, events)

    def _deal(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Admitted):
                self.cached_tokens.append(event.cached_tokens)
            elif isinstance(event, Token):
                self.tokens[event.request_id].append(event)
                if event.index + 1 == self._cancel_after[event.request_id]:
                    self.engine.cancel(event.request_id)
            elif isinstance(event, Finished | Failed):
                end = self._ends.pop(event.request_id)
                del self._cancel_after[event.request_id]
                if not end.cancelled():
                    end.set_result(event)


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Callable[..., Path]) -> Llama:
    """A tiny random Llama in float32."""
    return Llama.load(tiny_model_dir("llama"), "float32")


@pytest.fixture
async def make_worker(tiny_model: Llama) -> AsyncIterator[Callable[..., Worker]]:
    """Makes workers and closes them, their integrity checked."""
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(options.pop("model", tiny_model), **options))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.close()
