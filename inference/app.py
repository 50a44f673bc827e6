"""The composition root of a worker: builds every part once, connects them, runs until SIGTERM, takes them down.

Nothing else in the worker constructs a long-lived part or starts a thread or a task; `resolution` is a part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from adapter.base_model import BaseModelDescription, describe_base_model
from adapter.names import Reference
from adapter.plan import MAX_RANK
from inference.adapters import AdapterDesk
from inference.catalog import Catalog
from inference.constraints.guides import Guides
from inference.engine.engine import Engine
from inference.engine.graphs import CudaCapture, DecodeGraphs
from inference.engine.kv_cache import KVCache, block_bytes
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.errors import EngineFailed, InvalidRequest
from inference.generation import Generation
from inference.identity import ModelIdentity, WorkerFacts
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import MAX_ADAPTERS, HostCache
from inference.lora.loader import Adapters
from inference.lora.merging import Merged
from inference.lora.priority import LOADER_NICENESS
from inference.lora.reading import Reader
from inference.lora.slots import MAX_SLOTS, Slots
from inference.merger import Merger
from inference.metrics import Metrics
from inference.models.linear import PackedLinear, TiledLinear
from inference.models.llama import Llama
from inference.prefetching import Prefetcher
from inference.push import Pushes
from inference.resolution import STATE_FILE, open_resolution
from inference.resolver.cache import FileCache
from inference.self_test import SelfTest
from inference.service import InferenceService
from inference.settings import Settings
from inference.state_folder import own_state_folder, read_worker_id
from inference.streams import Streams
from inference.tenants import read_tenants
from inference.text.tokenizer import Tokenizer
from inference.text.vocabularies import Vocabularies
from inference.watcher import Watcher
from inference.wire.requests import RequestReader
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
from registry.resources import Worker as WorkerAccount
from rpc.server import Service, serve

log = logging.getLogger(__name__)

# Positions in a KV block: small enough to waste little on short answers, large enough for the block tables to be short.
BLOCK_SIZES = {"cpu": 16, "cuda": 256}  # positions of a KV block; on CUDA as few as torch's attention reads
# For the last messages of streams that have ended to reach their callers.
LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Core:
    """A worker without its doors: what computes, and the memory of adapters. `streams.open` is the way in."""

    described: BaseModelDescription
    tokenizer: Tokenizer
    model: Llama
    adapters: Adapters
    engine: Engine
    streams: Streams
    limits: Limits
    reader: Reader
    bank: Bank
    failure: asyncio.Future[None]
    """Gets the engine's error should it end by itself; pending otherwise."""


@contextlib.asynccontextmanager
async def open_core(settings: Settings) -> AsyncIterator[Core]:
    """Loads the model and starts the engine. Raises InferenceError and BaseModelRefused."""
    device = _device(settings)  # before the minute that a large model takes
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    log.info("loading %s", settings.model)
    described = await asyncio.to_thread(describe_base_model, settings.model)
    tokenizer = await asyncio.to_thread(Tokenizer.load, settings.model)
    model = await asyncio.to_thread(
        functools.partial(Llama.load, linear=_linear(settings, device)), settings.model, settings.dtype, str(device)
    )
    if settings.deterministic and model.config.head_dim % 16:
        raise InvalidRequest(
            f"deterministic: expected heads of a multiple of 16 features, found {model.config.head_dim}",
            field="deterministic",
        )
    log.info("compiling the kernels for this machine, or loading what an earlier start compiled")
    await asyncio.to_thread(kernels.warm_up, device.type, [model.dtype])
    streams = Streams()
    max_slots = settings.max_loras or MAX_SLOTS
    with _taking("adapter_memory", settings.adapter_memory):
        bank = Bank(
            model.sites,
            capacity_bytes=settings.adapter_memory,
            dtype=model.dtype,
            device=device,
            max_slots=max_slots,
            is_checked=settings.check_adapters,
        )
    slots = Slots(bank.capacity_bytes, max_slots=max_slots)
    reader = Reader(
        sites=model.sites,
        modules=described.modules,
        base=BaseWeights(settings.model, model.dtype),
        dtype=model.dtype,
        check_fits=slots.check_fits,
        max_rank=settings.max_lora_rank or MAX_RANK,
        is_page_locked=device.type == "cuda",
        niceness=LOADER_NICENESS,
    )
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine, limits = _engine(settings, model, bank, streams=streams, failure=failure)
    adapters = Adapters(
        bank,
        slots,
        reader,
        host=HostCache(settings.host_cache, max_adapters=settings.max_cpu_loras or MAX_ADAPTERS),
        run_between_steps=engine.run_between_steps,
        niceness=LOADER_NICENESS,
        wait_s=settings.load_wait_s,
    )
    engine.start()
    try:
        yield Core(described, tokenizer, model, adapters, engine, streams, limits, reader, bank, failure)
    finally:
        await adapters.close()
        await asyncio.to_thread(engine.stop)


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises InferenceError, ConfigError and BaseModelRefused before it serves, and
    EngineFailed when the engine ended by itself: whoever watches the process starts it again."""
    security = settings.security()
    security.check_listen(settings.listen)  # before the minute that a large model takes
    with own_state_folder(settings.state_dir):
        async with open_core(settings) as core, open_service(settings, core) as service:
            await serve(
                [
                    Service(
                        pb.DESCRIPTOR.services_by_name["InferenceService"],
                        pb_grpc.add_InferenceServiceServicer_to_server,
                        service,
                    )
                ],
                listen=settings.listen,
                security=security,
                drain_s=LAST_WORDS_S,
                on_ready=lambda port: log.info("worker %s serves on port %d", service.worker_id, port),
                on_drain=functools.partial(service.drain, settings.drain_s),
                until=core.failure,
            )


@contextlib.asynccontextmanager
async def open_service(settings: Settings, core: Core) -> AsyncIterator[InferenceService]:
    """The worker's door, with everything between it and the core. Raises InferenceError."""
    async with contextlib.AsyncExitStack() as stack:
        found = await open_resolution(settings, core.described.digest, stack)
        vocabularies = Vocabularies(core.tokenizer, settings.model, found.resolver.fetch)
        self_test = SelfTest(
            core.engine,
            core.streams,
            core.adapters,
            vocabularies,
            vocab_size=core.model.config.vocab_size,
        )
        desk = AdapterDesk(found.resolver, core.adapters, keep=found.cache.keep, self_test=self_test)
        stack.push_async_callback(desk.close)
        model = ModelIdentity(
            name=settings.base_model_name,
            digest=core.described.digest,
            vocab_size=core.model.config.vocab_size,
            max_context=core.limits.max_context,
        )
        facts = WorkerFacts(
            worker_id=read_worker_id(settings.state_dir),
            device=core.model.device.type,
            dtype=str(core.model.dtype).removeprefix("torch."),
        )
        watcher: Watcher | None = None
        if found.client is not None:
            watcher = Watcher(
                found.client,
                found.table,
                desk,
                core.adapters,
                prefetcher=Prefetcher(desk, core.adapters),
                table_path=settings.state_dir / STATE_FILE,
                identity=WorkerAccount(
                    id=facts.worker_id,
                    address=settings.advertise or settings.listen,
                    base_model=model.name,
                    base_model_digest=model.digest,
                    observed_revision=0,
                    adapters=(),
                ),
            )
            following = asyncio.create_task(watcher.run(), name="watcher")
            stack.push_async_callback(_cancel, following)
        guides = Guides()
        stack.push_async_callback(guides.close)
        reader = RequestReader(model, core.tokenizer, guides)
        if settings.merge:
            merging = asyncio.create_task(_merger(settings, core, desk).run(), name="merger")
            stack.push_async_callback(_cancel, merging)
        generation = Generation(
            model=model,
            reader=reader,
            vocabularies=vocabularies,
            desk=desk,
            engine=core.engine,
            streams=core.streams,
            metrics=_metrics(settings, core, found.cache, stack),
            revision=lambda: found.table.revision,
        )
        pushes = Pushes(
            found.pushed,
            desk,
            resolver=found.resolver,
            registry=found.registry,
            adapters=core.adapters,
            engine=core.engine,
            scratch=found.scratch,
            base_model_digest=model.digest,
            max_bytes=settings.push_bytes,
            allowed=settings.pushes,
        )
        yield InferenceService(
            model=model,
            reader=reader,
            vocabularies=vocabularies,
            generation=generation,
            pushes=pushes,
            desk=desk,
            engine=core.engine,
            adapters=core.adapters,
            streams=core.streams,
            disk=found.cache,
            catalog=Catalog(
                model.name, model.digest, adapters=core.adapters, disk=found.cache, known=found.resolver.known
            ),
            facts=facts,
            revision=lambda: found.table.revision,
            is_connected=lambda: watcher is not None and watcher.is_connected,
        )


def _merger(settings: Settings, core: Core, desk: AdapterDesk) -> Merger:
    device = core.model.device
    make = _linear(settings, device)

    def pack(weight: Tensor, bias: Tensor | None) -> PackedLinear:
        return make(weight.to(device), None if bias is None else bias.to(device))

    async def use(merged: Merged | None) -> None:
        await asyncio.wrap_future(core.engine.run_between_steps(functools.partial(core.bank.merge, merged)))

    return Merger(Reference.parse(settings.merge), desk, read=functools.partial(core.reader.merge, pack=pack), use=use)


def _device(settings: Settings) -> torch.device:
    try:
        return kernels.choose_device(settings.device)
    except kernels.UnsupportedDevice as error:
        raise InvalidRequest(f"device: {error}", field="device") from error


def _linear(settings: Settings, device: torch.device) -> type[PackedLinear]:
    if not settings.deterministic:
        return PackedLinear
    if device.type != "cpu":
        raise InvalidRequest(f"deterministic: expected the device cpu, found {device.type}", field="deterministic")
    return TiledLinear


@contextlib.contextmanager
def _taking(field: str, num_bytes: int) -> Iterator[None]:
    """Round what takes memory for good. Raises InvalidRequest when there is not as much."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise the latter
        raise InvalidRequest(
            f"{field}: expected no more bytes than this machine can give, found {num_bytes}", field=field
        ) from error


def _engine(
    settings: Settings, model: Llama, bank: Bank, *, streams: Streams, failure: asyncio.Future[None]
) -> tuple[Engine, Limits]:
    loop = asyncio.get_running_loop()

    def on_failure(error: EngineFailed) -> None:
        loop.call_soon_threadsafe(failure.set_exception, error)

    config, block_size = model.config, BLOCK_SIZES[model.device.type]
    shape: dict[str, Any] = {
        "num_layers": config.num_layers,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "block_size": block_size,
    }
    one_block = block_bytes(**shape, dtype=model.dtype)
    num_blocks = settings.kv_memory // one_block
    if num_blocks == 0:
        raise InvalidRequest(
            f"kv_memory: expected at least one block of {one_block} bytes, found {settings.kv_memory}",
            field="kv_memory",
        )
    with _taking("kv_memory", settings.kv_memory):
        kv_cache = KVCache(**shape, num_blocks=num_blocks, dtype=model.dtype, device=model.device)
    asked = settings.max_context or config.max_positions
    limits = Limits(
        max_context=min(asked, config.max_positions, num_blocks * block_size),
        max_running=settings.max_batch,
        max_step_tokens=max(settings.step_tokens, settings.max_batch),
        max_waiting=settings.max_queue,
        max_waiting_tokens=settings.max_queue_tokens,
        max_adapters=settings.max_batch_adapters or None,
    )
    if limits.max_context < asked:
        log.warning(
            "the context is %d tokens, not %d: the model has %d positions and the KV memory holds %d",
            limits.max_context, asked, config.max_positions, num_blocks * block_size,
        )  # fmt: skip
    scheduler = Scheduler(
        limits,
        num_blocks=num_blocks,
        block_size=block_size,
        is_prefix_cached=settings.prefix_cache,
        tenants=read_tenants(settings.tenants) if settings.tenants else None,
    )
    runner = Runner(model, kv_cache, bank, _graphs(model, kv_cache, limits))
    return Engine(runner, scheduler, streams.deliver, on_failure=on_failure), limits


def _graphs(model: Llama, kv_cache: KVCache, limits: Limits) -> DecodeGraphs | None:
    """Where captured decodes are kept; None on a CPU, which has no launches to save."""
    if model.device.type == "cpu":
        return None
    return DecodeGraphs(
        model,
        kv_cache,
        CudaCapture(model.device),
        vocab_size=model.config.vocab_size,
        max_rows=limits.max_running,
        max_blocks=-(-limits.max_context // kv_cache.block_size),
    )


def _metrics(settings: Settings, core: Core, disk: FileCache, stack: contextlib.AsyncExitStack) -> Metrics:
    metrics, engine, adapters = Metrics(), core.engine, core.adapters
    metrics.gauge("requests_running", "Requests in the batch.", lambda: engine.stats().running)
    metrics.gauge("requests_waiting", "Requests in the queue.", lambda: engine.stats().waiting)
    metrics.gauge("requests_paused", "Requests whose tokens nobody takes.", lambda: engine.stats().paused)
    metrics.gauge("preemptions", "Times that a request lost its row or its blocks.", lambda: engine.stats().preemptions)
    metrics.gauge("kv_blocks_free", "Free blocks of the KV cache, kept ones too.", lambda: engine.stats().blocks_free)
    metrics.gauge("kv_blocks_kept", "Free blocks that hold cached prefixes.", lambda: engine.stats().blocks_kept)
    metrics.gauge("adapters_loaded", "Adapters in memory.", lambda: len(adapters.loaded()))
    metrics.gauge("adapter_bytes_used", "Bytes of adapters in memory.", lambda: adapters.used_bytes)
    metrics.gauge("adapter_bytes_moved", "Bytes moved to join holes, ever.", lambda: adapters.mover.moved_bytes)
    metrics.gauge("host_cache_bytes_used", "Bytes of adapters in host memory.", lambda: adapters.host.used_bytes)
    metrics.gauge("disk_cache_bytes_used", "Bytes of adapters on disk.", lambda: disk.used_bytes)
    if settings.metrics_listen:
        stack.callback(metrics.serve(settings.metrics_listen))
    return metrics


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
