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
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from adapter.names import Reference
from inference.adapters import AdapterDesk
from inference.answer import Answer, Piece
from inference.catalog import Catalog, Model, ModelState
from inference.engine.engine import Engine
from inference.engine.request import Finished, FinishReason, Request, SamplingParams, SlotUse, Token
from inference.errors import Draining, InvalidRequest, NotImplementedYet, PromptTooLong
from inference.lora.loader import Adapters, Lease, check_composition
from inference.metrics import Metrics
from inference.resolver import Version
from inference.streams import Streams
from inference.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

MAX_ADAPTERS = 8  # of one request; each adds its own arithmetic to every row
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
CONTEXT_TOKENS = 16  # of the prompt, enough to know an open word and an open character
# Longer text is tokenized on another thread, so that it does not hold up the streams of others.
INLINE_CHARS = 8192
MAX_PAGE_SIZE = 1000
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}

MODEL_STATES = {
    ModelState.KNOWN: pb.MODEL_STATE_KNOWN,
    ModelState.LOADING: pb.MODEL_STATE_LOADING,
    ModelState.READY: pb.MODEL_STATE_READY,
    ModelState.FAILED: pb.MODEL_STATE_FAILED,
}


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The base model as answers name it; `max_context` in tokens."""

    name: str
    digest: str
    vocab_size: int
    max_context: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What does not change while a worker runs."""

    worker_id: str
    device: str
    dtype: str


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
        prompt_ids = await self._prompt_ids(request)
        sampling = self._sampling(request, len(prompt_ids))
        stop_strings = _stop_strings(request.stop.strings)
        stop_ids = frozenset(self._check_ids(request.stop.token_ids, "stop.token_ids"))
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
        answer = Answer(self._tokenizer, stop_strings, after=continued)
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
                yield pb.GenerateResponse(chunk=_chunk(piece))
                if answer.stop_string:
                    break
            rest = answer.finish()
            if rest:
                yield pb.GenerateResponse(chunk=pb.TokenChunk(index=answer.num_tokens, text=rest))
            yield pb.GenerateResponse(finished=_finished(answer, end, len(prompt_ids), arrival_s, first_token_s))
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
            return pb.TokenizeResponse(token_ids=await self._encode(request.text), text=request.text)
        text = self._render(request.chat)
        return pb.TokenizeResponse(token_ids=await self._encode(text, is_rendered=True), text=text)

    async def Detokenize(
        self,
        request: pb.DetokenizeRequest,
        context: grpc.aio.ServicerContext[pb.DetokenizeRequest, pb.DetokenizeResponse],
    ) -> pb.DetokenizeResponse:
        ids = self._check_ids(request.token_ids, "token_ids")
        text = self._tokenizer.decode(ids, skip_special_tokens=request.skip_special_tokens)
        return pb.DetokenizeResponse(text=text)

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        models = [self._to_model(model) for model in self._catalog.models()]
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
        version, lease = await self._desk.lease(Reference.parse(request.reference))
        lease.release()
        return pb.LoadAdapterResponse(adapter=_served(version, 1.0), size_bytes=lease.size_bytes)

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
        return pb.UnloadAdapterResponse(adapter=_served(version, 1.0))

    async def PinAdapter(
        self,
        request: pb.PinAdapterRequest,
        context: grpc.aio.ServicerContext[pb.PinAdapterRequest, pb.PinAdapterResponse],
    ) -> pb.PinAdapterResponse:
        version, lease = await self._desk.lease(Reference.parse(request.reference))
        self._adapters.pin(version.digest)
        lease.release()
        return pb.PinAdapterResponse(adapter=_served(version, 1.0))

    async def UnpinAdapter(
        self,
        request: pb.UnpinAdapterRequest,
        context: grpc.aio.ServicerContext[pb.UnpinAdapterRequest, pb.UnpinAdapterResponse],
    ) -> pb.UnpinAdapterResponse:
        version = await self._desk.resolve(Reference.parse(request.reference))
        self._adapters.unpin(version.digest)
        return pb.UnpinAdapterResponse(adapter=_served(version, 1.0))

    async def PushAdapter(
        self,
        request_iterator: AsyncIterator[pb.PushAdapterRequest],
        context: grpc.aio.ServicerContext[pb.PushAdapterRequest, pb.PushAdapterResponse],
    ) -> pb.PushAdapterResponse:
        raise NotImplementedYet("PushAdapter is not part of this release")

    # translation

    def _to_model(self, model: Model) -> pb.Model:
        return pb.Model(
            reference=model.reference,
            root=self._model.name,
            parent=model.parent,
            digest=model.digest,
            version=model.version,
            state=MODEL_STATES[model.state],
            failure=model.failure,
            size_bytes=model.size_bytes,
            rank=model.rank,
            pinned=model.is_pinned,
        )

    async def _prompt_ids(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt: expected text, token_ids or chat, found none", field="prompt")
        if kind == "token_ids":
            ids = self._check_ids(request.token_ids.ids, "token_ids")
        else:
            is_chat = kind == "chat"
            text = self._render(request.chat) if is_chat else request.text
            ids = await self._encode(text, is_rendered=is_chat)
        if not ids:
            raise InvalidRequest("prompt: expected at least one token, found an empty prompt", field="prompt")
        if len(ids) >= self._model.max_context:
            raise PromptTooLong(
                f"prompt: expected fewer than {self._model.max_context} tokens, so that one can be answered; "
                f"found {len(ids)}",
                field="prompt",
            )
        return tuple(ids)

    def _render(self, chat: pb.Chat) -> str:
        if not chat.messages:
            raise InvalidRequest("chat.messages: expected at least one message, found none", field="chat.messages")
        if not any(message.content for message in chat.messages):
            raise InvalidRequest("chat.messages: expected content, found empty messages only", field="chat.messages")
        return self._tokenizer.render_chat(
            [{"role": message.role, "content": message.content} for message in chat.messages],
            tools=[MessageToDict(tool) for tool in chat.tools] or None,
            continue_final_message=chat.continue_final_message,
        )

    async def _encode(self, text: str, *, is_rendered: bool = False) -> list[int]:
        encode = self._tokenizer.encode_rendered if is_rendered else self._tokenizer.encode
        return encode(text) if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode, text)

    def _check_ids(self, ids: Collection[int], field: str) -> list[int]:
        largest = max(ids, default=0)
        if largest >= self._model.vocab_size:
            raise InvalidRequest(f"{field}: expected ids below {self._model.vocab_size}, found {largest}", field=field)
        return list(ids)

    def _sampling(self, request: pb.GenerateRequest, prompt_tokens: int) -> SamplingParams:
        sampling, stop = request.sampling, request.stop
        self._check_ids(sampling.logit_bias.keys(), "sampling.logit_bias")
        if request.priority:
            raise NotImplementedYet("priority is not part of this release", field="priority")
        room = self._model.max_context - prompt_tokens
        return SamplingParams(
            max_tokens=min(stop.max_tokens, room) if stop.HasField("max_tokens") else room,
            temperature=sampling.temperature if sampling.HasField("temperature") else 0.0,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p if sampling.HasField("typical_p") else 1.0,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=tuple(sorted(sampling.logit_bias.items())),
            min_tokens=stop.min_tokens,
            seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
            logprobs=request.logprobs if request.HasField("logprobs") else None,
        )

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
                served.append(_served(version, weight))
            check_composition([(lease, one.weight) for lease, one in zip(leases, served, strict=True)])
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        return served, leases


def _stop_strings(strings: Sequence[str]) -> list[str]:
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop.strings: expected at most {MAX_STOP_STRINGS}, found {len(strings)}", field="stop.strings"
        )
    if any(not 0 < len(string) <= MAX_STOP_CHARS for string in strings):
        raise InvalidRequest(
            f"stop.strings: expected 1 to {MAX_STOP_CHARS} characters in each, found one outside", field="stop.strings"
        )
    return list(strings)


def _served(version: Version, weight: float) -> pb.ServedAdapter:
    return pb.ServedAdapter(adapter=version.adapter, version=version.number, digest=version.digest, weight=weight)


def _chunk(piece: Piece) -> pb.TokenChunk:
    return pb.TokenChunk(
        index=piece.index,
        token_ids=[token.token_id for token in piece.tokens],
        text=piece.text,
        logprobs=[_logprob(token, token.logprob) for token in piece.tokens if token.logprob is not None],
    )


def _logprob(token: Token, logprob: float) -> pb.TokenLogprob:
    alternatives = [pb.AlternativeToken(token_id=id_, logprob=value) for id_, value in token.alternatives]
    return pb.TokenLogprob(token_id=token.token_id, logprob=logprob, alternatives=alternatives)


def _finished(
    answer: Answer, end: Finished | None, prompt_tokens: int, arrival_s: float, first_token_s: float
) -> pb.Finished:
    """`end` is None when a stop string was found before the engine knew."""
    if answer.stop_string:
        reason = pb.FINISH_REASON_STOP_STRING
    else:
        assert end is not None, "expected the engine to end an answer that no stop string ended"
        reason = FINISH_REASONS[end.reason]
    return pb.Finished(
        reason=reason,
        stop_string=answer.stop_string,
        prompt_tokens=prompt_tokens,
        output_tokens=answer.num_tokens,
        timings=pb.Timings(
            queued=_duration(end.queued_s) if end else None,
            first_token=_duration(first_token_s),
            total=_duration(time.monotonic() - arrival_s),
        ),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
