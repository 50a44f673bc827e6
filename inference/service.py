"""InferenceService: protobuf in, protobuf out. Translates, and joins text, adapters and the engine for one request.

The life of a Generate call:

    check and tokenize ─► lease every adapter (may load) ─► submit ─► (queue) ─► Started ─► TokenChunk* ─► Finished

Whatever ends the call early (a cancel, a deadline, a stop string) cancels the request in the engine, which frees its
row and blocks at the next step and gives the leases back.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from adapter.names import Reference
from inference import messages
from inference.adapters import AdapterDesk
from inference.answer import Answer
from inference.catalog import Catalog
from inference.engine.engine import Engine
from inference.engine.request import Finished, Request, SlotUse
from inference.errors import Draining, InvalidRequest, NotImplementedYet
from inference.identity import ModelIdentity, WorkerFacts
from inference.lora.loader import Adapters, Lease, check_composition
from inference.metrics import Metrics
from inference.requests import RequestReader, stop_strings
from inference.streams import Streams
from inference.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

MAX_ADAPTERS = 8  # of one request; each adds its own arithmetic to every row
CONTEXT_TOKENS = 16  # of the prompt, enough to know an open word and an open character
MAX_PAGE_SIZE = 1000


class InferenceService(pb_grpc.InferenceServiceServicer):
    """The worker's door."""

    def __init__(
        self,
        *,
        model: ModelIdentity,
        tokenizer: Tokenizer,
        desk: AdapterDesk,
        engine: Engine,
        adapters: Adapters,
        streams: Streams,
        metrics: Metrics,
        catalog: Catalog,
        facts: WorkerFacts,
        revision: Callable[[], int],
        is_connected: Callable[[], bool],
    ) -> None:
        """`revision` is the registry's that this worker has reconciled to, 0 without a registry."""
        self._model = model
        self._tokenizer = tokenizer
        self._reader = RequestReader(model, tokenizer)
        self._desk = desk
        self._engine = engine
        self._adapters = adapters
        self._streams = streams
        self._metrics = metrics
        self._catalog = catalog
        self._facts = facts
        self._revision = revision
        self._is_connected = is_connected
        self._ids = itertools.count()
        self._start_time = Timestamp()
        self._start_time.GetCurrentTime()
        self._is_draining = False

    async def drain(self, limit_s: float) -> None:
        """Refuses new work from now on; returns when what runs has ended, which the engine sees to after `limit_s`."""
        self._is_draining = True
        try:
            async with asyncio.timeout(limit_s):
                await self._streams.wait_until_empty()
        except TimeoutError:
            await asyncio.to_thread(self._engine.stop)

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateResponse]
    ) -> AsyncIterator[pb.GenerateResponse]:
        arrival_s = time.monotonic()
        if self._is_draining:
            raise Draining(retry_after_s=1.0)
        prompt_ids = await self._reader.prompt_ids(request)
        sampling = self._reader.sampling(request, len(prompt_ids))
        strings = stop_strings(request.stop.strings)
        stop_ids = frozenset(self._reader.check_ids(request.stop.token_ids, "stop.token_ids"))
        if not request.stop.ignore_eos:
            stop_ids |= self._tokenizer.eos_ids
        request_id = request.request_id or uuid.uuid4().hex
        served, leases = await self._lease(request, request_id)
        engine_request = Request(
            id=f"r{next(self._ids)}",  # the caller's own id may be in use by another request
            prompt_ids=prompt_ids,
            sampling=sampling,
            stop_token_ids=stop_ids,
            uses=tuple(
                SlotUse(lease.slot, lease.digest, adapter.weight) for lease, adapter in zip(leases, served, strict=True)
            ),
            arrival_s=arrival_s,
        )
        stream = self._streams.open(self._engine, engine_request, leases)
        # A chat's answer begins a text of its own; any other continues the prompt's, where a word may be open.
        continued = () if request.HasField("chat") else prompt_ids[-CONTEXT_TOKENS:]
        answer = Answer(self._tokenizer, strings, after=continued)
        try:
            admitted = await stream.admitted()
            self._metrics.admitted(len(prompt_ids), admitted.cached_tokens)
            yield pb.GenerateResponse(
                started=pb.Started(
                    request_id=request_id,
                    base_model=self._model.name,
                    base_model_digest=self._model.digest,
                    adapters=served,
                    registry_revision=self._revision(),
                    prompt_tokens=len(prompt_ids),
                    cached_tokens=admitted.cached_tokens,
                )
            )
            end: Finished | None = None
            first_token_s = 0.0
            async for batch in stream.batches():
                if isinstance(batch, Finished):
                    end = batch
                    break
                first_token_s = first_token_s or time.monotonic() - arrival_s
                piece = answer.push(batch)
                yield pb.GenerateResponse(chunk=messages.chunk(piece))
                if answer.stop_string:
                    break
            rest = answer.finish()
            if rest:
                yield pb.GenerateResponse(chunk=pb.TokenChunk(index=answer.num_tokens, text=rest))
            finished = messages.finished(answer, end, len(prompt_ids), arrival_s, first_token_s)
            yield pb.GenerateResponse(finished=finished)
            self._metrics.answered(answer.num_tokens, first_token_s, time.monotonic() - arrival_s)
        finally:
            if not stream.is_finished:
                self._engine.cancel(engine_request.id)

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[pb.TokenizeRequest, pb.TokenizeResponse]
    ) -> pb.TokenizeResponse:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt: expected text or chat, found neither", field="prompt")
        if kind == "text":
            return pb.TokenizeResponse(token_ids=await self._reader.encode(request.text), text=request.text)
        text = self._reader.render(request.chat)
        return pb.TokenizeResponse(token_ids=await self._reader.encode(text, is_rendered=True), text=text)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        ids = self._reader.check_ids(request.token_ids, "token_ids")
        text = self._tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens)
        return pb.DetokenizeResponse(text=text)

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
        )

    async def LoadAdapter(
        self,
        request: pb.LoadAdapterRequest,
        context: grpc.aio.ServicerContext[pb.LoadAdapterRequest, pb.LoadAdapterResponse],
    ) -> pb.LoadAdapterResponse:
        if request.tier not in (pb.TIER_UNSPECIFIED, pb.TIER_ARENA):
            raise NotImplementedYet("tiers other than ARENA are not part of this release", field="tier")
        version, lease = await self._desk.lease(Reference.parse(request.reference))
        lease.release()
        return pb.LoadAdapterResponse(adapter=messages.served(version, 1.0), size_bytes=lease.size_bytes)

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
        raise NotImplementedYet("PushAdapter is not part of this release")

    async def _lease(self, request: pb.GenerateRequest, request_id: str) -> tuple[list[pb.ServedAdapter], list[Lease]]:
        """Leases on every adapter of the request, or on none; the id chooses the sides of split aliases."""
        if len(request.adapters) > MAX_ADAPTERS:
            raise InvalidRequest(
                f"adapters: expected at most {MAX_ADAPTERS}, found {len(request.adapters)}", field="adapters"
            )
        served: list[pb.ServedAdapter] = []
        leases: list[Lease] = []
        try:
            for use in request.adapters:
                weight = use.weight if use.HasField("weight") else 1.0
                if not math.isfinite(weight):
                    raise InvalidRequest(f"adapters.weight: expected a finite number, found {weight}", field="adapters")
                version, lease = await self._desk.lease(
                    Reference.parse(use.reference),
                    request_key=request_id,
                    wait=request.adapter_loading != pb.ADAPTER_LOADING_REFUSE,
                )
                leases.append(lease)
                served.append(messages.served(version, weight))
            check_composition([(lease, one.weight) for lease, one in zip(leases, served, strict=True)])
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        return served, leases
