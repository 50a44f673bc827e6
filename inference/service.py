"""InferenceService: protobuf in, protobuf out. Every RPC of the worker; the life of Generate is in `generation`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from adapter.names import Reference
from inference.adapters import AdapterDesk
from inference.catalog import Catalog
from inference.engine.engine import Engine
from inference.errors import Draining, InvalidRequest, NotImplementedYet
from inference.generation import Generation
from inference.identity import ModelIdentity, WorkerFacts
from inference.lora.loader import Adapters
from inference.push import Pushes
from inference.resolver.cache import FileCache
from inference.streams import Streams
from inference.text.vocabularies import Vocabularies
from inference.wire import messages
from inference.wire.push_requests import read_chunks, read_header
from inference.wire.requests import RequestReader
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

MAX_PAGE_SIZE = 1000


class InferenceService(pb_grpc.InferenceServiceServicer):
    """The worker's door."""

    def __init__(
        self,
        *,
        model: ModelIdentity,
        reader: RequestReader,
        vocabularies: Vocabularies,
        desk: AdapterDesk,
        engine: Engine,
        adapters: Adapters,
        streams: Streams,
        generation: Generation,
        pushes: Pushes,
        disk: FileCache,
        catalog: Catalog,
        facts: WorkerFacts,
        revision: Callable[[], int],
        is_connected: Callable[[], bool],
    ) -> None:
        """`revision` is the registry's that this worker has reconciled to, 0 without a registry."""
        self._model = model
        self._reader = reader
        self._vocabularies = vocabularies
        self._generation = generation
        self._pushes = pushes
        self._desk = desk
        self._engine = engine
        self._adapters = adapters
        self._streams = streams
        self._disk = disk
        self._catalog = catalog
        self._facts = facts
        self._revision = revision
        self._is_connected = is_connected
        self._start_time = Timestamp()
        self._start_time.GetCurrentTime()
        self._is_draining = False

    @property
    def worker_id(self) -> str:
        return self._facts.worker_id

    async def drain(self, limit_s: float) -> None:
        """Refuses what comes and what waits; returns when what runs has ended, if need be by force after `limit_s`."""
        self._is_draining = True
        self._engine.drain()
        try:
            async with asyncio.timeout(limit_s):
                await self._streams.wait_until_empty()
        except TimeoutError:
            await asyncio.to_thread(self._engine.stop)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self._is_draining:
            raise Draining(retry_after_s=1.0)
        async with contextlib.aclosing(self._generation.run(request)) as stream:
            async for message in stream:
                yield message

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse]
    ) -> pb.TokenizeResponse:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt: expected text or chat, found neither", field="prompt")
        reader = await self._reader_of(request.adapters)
        if kind == "text":
            return pb.TokenizeResponse(token_ids=await reader.encode(request.text), text=request.text)
        text = await reader.render(request.chat)
        return pb.TokenizeResponse(token_ids=await reader.encode(text, is_rendered=True), text=text)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        reader = await self._reader_of(request.adapters)
        ids = reader.check_ids(request.token_ids, "token_ids")
        text = reader.tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens)
        return pb.DetokenizeResponse(text=text)

    async def _reader_of(self, references: Iterable[str]) -> RequestReader:
        """Who reads in the words of these adapters, which need not be in memory for that."""
        versions = [await self._desk.resolve(Reference.parse(reference)) for reference in references]
        tokenizer = await self._vocabularies.of(versions)
        if tokenizer is None:
            return self._reader
        return self._reader.of(tokenizer, vocab_size=max(self._model.vocab_size, tokenizer.size))

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        models = [messages.model(self._model.name, one) for one in self._catalog.models()]
        size = request.page_size or 100
        if size > MAX_PAGE_SIZE or (request.page_token and not request.page_token.isdecimal()):
            raise InvalidRequest("page_size is at most 1000, and page_token is from the previous answer")
        start = int(request.page_token or 0)
        rest = str(start + size) if start + size < len(models) else ""
        return pb.ListModelsResponse(models=models[start : start + size], next_page_token=rest)

    async def GetWorker(
        self, request: pb.GetWorkerRequest, context: grpc.aio.ServicerContext[pb.GetWorkerRequest, pb.GetWorkerResponse]
    ) -> pb.GetWorkerResponse:
        stats = self._engine.stats()
        return pb.GetWorkerResponse(
            worker_id=self._facts.worker_id,
            base_model=self._model.name,
            base_model_digest=self._model.digest,
            device=self._facts.device,
            dtype=self._facts.dtype,
            registry_connected=self._is_connected(),
            registry_revision=self._revision(),
            running=stats.running,
            waiting=stats.waiting,
            kv_blocks=stats.blocks,
            kv_blocks_free=stats.blocks_free,
            adapter_bytes=self._adapters.capacity_bytes,
            adapter_bytes_used=self._adapters.used_bytes,
            adapters_loaded=len(self._adapters.loaded()),
            start_time=self._start_time,
            max_context=self._model.max_context,
            host_bytes=self._adapters.host.capacity_bytes,
            host_bytes_used=self._adapters.host.used_bytes,
            disk_bytes=self._disk.capacity_bytes,
            disk_bytes_used=self._disk.used_bytes,
        )

    async def LoadAdapter(
        self,
        request: pb.LoadAdapterRequest,
        context: grpc.aio.ServicerContext[pb.LoadAdapterRequest, pb.LoadAdapterResponse],
    ) -> pb.LoadAdapterResponse:
        version = await self._desk.resolve(Reference.parse(request.reference))
        size_bytes = await self._desk.prefetch(version, messages.tier(request.tier))
        return pb.LoadAdapterResponse(adapter=messages.served(version, 1.0), size_bytes=size_bytes)

    async def Embed(
        self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext[pb.EmbedRequest, pb.EmbedResponse]
    ) -> pb.EmbedResponse:
        raise NotImplementedYet("Embed is not part of this release")

    async def UnloadAdapter(
        self,
        request: pb.UnloadAdapterRequest,
        context: grpc.aio.ServicerContext[pb.UnloadAdapterRequest, pb.UnloadAdapterResponse],
    ) -> pb.UnloadAdapterResponse:
        version = await self._desk.resolve(Reference.parse(request.reference))
        self._adapters.evict(version.digest)
        return pb.UnloadAdapterResponse(adapter=messages.served(version, 1.0))

    async def PinAdapter(
        self,
        request: pb.PinAdapterRequest,
        context: grpc.aio.ServicerContext[pb.PinAdapterRequest, pb.PinAdapterResponse],
    ) -> pb.PinAdapterResponse:
        version, lease = await self._desk.lease(Reference.parse(request.reference))
        self._adapters.pin(version.digest)
        lease.release()
        return pb.PinAdapterResponse(adapter=messages.served(version, 1.0))

    async def UnpinAdapter(
        self,
        request: pb.UnpinAdapterRequest,
        context: grpc.aio.ServicerContext[pb.UnpinAdapterRequest, pb.UnpinAdapterResponse],
    ) -> pb.UnpinAdapterResponse:
        version = await self._desk.resolve(Reference.parse(request.reference))
        self._adapters.unpin(version.digest)
        return pb.UnpinAdapterResponse(adapter=messages.served(version, 1.0))

    async def PushAdapter(
        self,
        request_iterator: AsyncIterator[pb.PushAdapterRequest],
        context: grpc.aio.ServicerContext[pb.PushAdapterRequest, pb.PushAdapterResponse],
    ) -> pb.PushAdapterResponse:
        if self._is_draining:
            raise Draining(retry_after_s=1.0)
        version = await self._pushes.push(await read_header(request_iterator), read_chunks(request_iterator))
        return pb.PushAdapterResponse(adapter=messages.served(version, 1.0))
