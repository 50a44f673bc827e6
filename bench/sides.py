"""The two sides that `make bench` compares: the engine in this process, and a worker process over gRPC."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from adapter.manifest import manifest_of_adapter
from examples.processes import Processes
from inference.app import Core, open_core
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.lora.lease import Lease
from inference.lora.reading import AdapterFiles
from inference.settings import Settings
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

MEMORY = 2**30  # for adapters: 32 of rank 16 on a small model, and to spare
WORKER_PORTS = range(7300, 7310)


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` at once, stream i with adapter i modulo `adapters`; 0 adapters is the base model alone."""

    streams: int
    adapters: int
    prompt_tokens: int = 64
    output_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Measurement:
    """One load once. The gap is the time between the arrivals of two pieces of one stream."""

    tokens_per_s: float
    first_token_s: float
    gap_s: float
    gap_p99_s: float


class Side(Protocol):
    """Something that answers."""

    name: str
    dtype: str

    async def measure(self, load: Load) -> Measurement: ...


@dataclass(slots=True)
class Stamps:
    """When the pieces of one stream came."""

    first_token_s: float
    gaps_s: list[float]
    tokens: int


def _prompt(load: Load, stream: int, salt: int) -> tuple[int, ...]:
    """Ordinary token ids that differ between streams and runs, so that no cache can answer."""
    return tuple(1000 + (stream * 7919 + salt * 104729 + i * 31) % 40000 for i in range(load.prompt_tokens))


def _summary(load: Load, stamps: Sequence[Stamps], elapsed_s: float) -> Measurement:
    tokens = sum(stamp.tokens for stamp in stamps)
    expected = load.streams * load.output_tokens
    assert tokens == expected, f"expected {expected} tokens, found {tokens}"
    gaps = sorted(gap for stamp in stamps for gap in stamp.gaps_s)
    return Measurement(
        tokens_per_s=tokens / elapsed_s,
        first_token_s=statistics.median(stamp.first_token_s for stamp in stamps),
        gap_s=statistics.median(gaps),
        gap_p99_s=gaps[int(len(gaps) * 0.99)],
    )


class InProcess:
    """The engine, called as the service calls it, without gRPC and without text."""

    name = "in process"

    def __init__(self, core: Core, leases: Sequence[Lease]) -> None:
        self._core = core
        self._leases = leases
        self._salts = itertools.count()
        self.dtype = str(core.model.dtype).removeprefix("torch.")

    def floor_tokens_per_s(self, load: Load, read_bytes_per_s: float) -> float:
        """If a step only had to read every weight and every distinct adapter once, from memory."""
        adapters = sum(lease.size_bytes for lease in self._leases[: load.adapters])
        modules = dict(self._core.described.modules)
        if "lm_head" in modules:  # of an embedding of its own, a step reads a row for each token
            modules.pop("model.embed_tokens", None)
        elements = sum(out_features * in_features for out_features, in_features in modules.values())
        return load.streams * read_bytes_per_s / (elements * self._core.model.dtype.itemsize + adapters)

    async def measure(self, load: Load) -> Measurement:
        salt = next(self._salts)
        began = time.perf_counter()
        stamps = await asyncio.gather(*(self._stream(load, index, salt, began) for index in range(load.streams)))
        return _summary(load, stamps, time.perf_counter() - began)

    async def _stream(self, load: Load, index: int, salt: int, began: float) -> Stamps:
        uses: tuple[SlotUse, ...] = ()
        if load.adapters:
            lease = self._leases[index % load.adapters]
            uses = (SlotUse(lease.slot, lease.digest),)
        request = Request(
            id=f"bench-{salt}-{index}",
            prompt_ids=_prompt(load, index, salt),
            sampling=SamplingParams(max_tokens=load.output_tokens),
            uses=uses,
            arrival_s=time.monotonic(),
        )
        stamps, last = Stamps(0.0, [], 0), 0.0
        async for tokens in self._core.streams.open(self._core.engine, request, []).batches():
            if not isinstance(tokens, list):
                break  # the end, as nobody swaps weights here
            last = _stamp(stamps, len(tokens), last, began)
        return stamps


class OverGrpc:
    """A worker in a process of its own, asked through the generated stub."""

    name = "gRPC"

    def __init__(self, stub: pb_grpc.InferenceServiceAsyncStub, dtype: str, names: Sequence[str]) -> None:
        self._stub = stub
        self._names = names
        self._salts = itertools.count(start=10_000)
        self.dtype = dtype

    async def measure(self, load: Load) -> Measurement:
        salt = next(self._salts)
        began = time.perf_counter()
        stamps = await asyncio.gather(*(self._stream(load, index, salt, began) for index in range(load.streams)))
        return _summary(load, stamps, time.perf_counter() - began)

    async def _stream(self, load: Load, index: int, salt: int, began: float) -> Stamps:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=_prompt(load, index, salt)),
            stop=pb.StopConditions(max_tokens=load.output_tokens, ignore_eos=True),
        )
        if load.adapters:
            request.adapters.add(reference=self._names[index % load.adapters])
        stamps, last = Stamps(0.0, [], 0), 0.0
        async for message in self._stub.Generate(request):
            if message.HasField("chunk") and message.chunk.token_ids:
                last = _stamp(stamps, len(message.chunk.token_ids), last, began)
        return stamps


def _stamp(stamps: Stamps, tokens: int, last: float, began: float) -> float:
    now = time.perf_counter()
    if last:
        stamps.gaps_s.append(now - last)
    else:
        stamps.first_token_s = now - began
    stamps.tokens += tokens
    return now


@asynccontextmanager
async def open_in_process(model: Path, folders: Sequence[Path], *, dtype: str) -> AsyncIterator[InProcess]:
    """The engine with every adapter loaded."""
    async with open_core(Settings(model=model, dtype=dtype, adapter_memory=MEMORY)) as core:
        files = [AdapterFiles(manifest_of_adapter(folder), folder) for folder in folders]
        leases = [await core.adapters.acquire(one) for one in files]
        try:
            yield InProcess(core, leases)
        finally:
            for lease in leases:
                lease.release()


@asynccontextmanager
async def open_grpc(model: Path, folders: Sequence[Path], *, dtype: str, log: Path) -> AsyncIterator[OverGrpc]:
    """A worker process with every adapter loaded."""
    async with Processes(log.parent) as processes:
        named = {f"adapter-{index}": folder for index, folder in enumerate(folders)}
        flags = [flag for name, folder in named.items() for flag in ("--adapter", f"{name}={folder}")]
        address = await processes.start(
            "bench-worker",
            [
                *("inference", "serve", "--model", str(model), "--dtype", dtype, "--adapter-memory", str(MEMORY)),
                *("--state-dir", str(log.parent / "state"), *flags),
            ],
            WORKER_PORTS,
        )
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            for name in named:
                await stub.LoadAdapter(pb.LoadAdapterRequest(reference=name))
            worker = await stub.GetWorker(pb.GetWorkerRequest())
            yield OverGrpc(stub, worker.dtype, list(named))
