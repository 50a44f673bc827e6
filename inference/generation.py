"""One Generate call: joins the request's text, its adapters and the engine.

The life of a call:

    lease every adapter (may load) ─► check and tokenize ─► submit ─► (queue) ─► Started ─► TokenChunk* ─► Finished

The adapters come first, because one with a vocabulary of its own decides what the prompt's text means.
Whatever ends the call early (a cancel, a deadline, a stop string) cancels the request in the engine, which frees its
row and blocks at the next step and gives the leases back.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

from adapter.names import Reference
from inference import messages
from inference.adapters import AdapterDesk
from inference.answer import Answer
from inference.engine.engine import Engine
from inference.engine.request import Finished, Request, SlotUse
from inference.errors import InvalidRequest
from inference.identity import ModelIdentity
from inference.lora.loader import Lease, check_composition
from inference.metrics import Metrics
from inference.requests import RequestReader, stop_strings
from inference.resolver import Version
from inference.streams import Streams
from inference.vocabularies import Vocabularies
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_ADAPTERS = 8  # of one request; each adds its own arithmetic to every row
CONTEXT_TOKENS = 16  # of the prompt, enough to know an open word and an open character


class Generation:
    """Answers Generate calls on one model."""

    def __init__(
        self,
        *,
        model: ModelIdentity,
        reader: RequestReader,
        vocabularies: Vocabularies,
        desk: AdapterDesk,
        engine: Engine,
        streams: Streams,
        metrics: Metrics,
        revision: Callable[[], int],
    ) -> None:
        """`revision` is the registry's that this worker has reconciled to, 0 without a registry."""
        self._model = model
        self._reader = reader
        self._vocabularies = vocabularies
        self._desk = desk
        self._engine = engine
        self._streams = streams
        self._metrics = metrics
        self._revision = revision
        self._ids = itertools.count()

    async def run(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Every message of the call. Raises InferenceError; closing it early frees what the request holds."""
        arrival_s = time.monotonic()
        request_id = request.request_id or uuid.uuid4().hex
        strings = stop_strings(request.stop.strings)
        served, leases, reader = await self._lease(request, request_id)
        try:
            prompt_ids = await reader.prompt_ids(request)
            stop_ids = frozenset(reader.check_ids(request.stop.token_ids, "stop.token_ids"))
            if not request.stop.ignore_eos:
                stop_ids |= reader.tokenizer.eos_ids
            engine_request = Request(
                id=f"r{next(self._ids)}",  # the caller's own id may be in use by another request
                prompt_ids=prompt_ids,
                sampling=reader.sampling(request, len(prompt_ids)),
                stop_token_ids=stop_ids,
                uses=tuple(
                    SlotUse(lease.slot, lease.digest, adapter.weight)
                    for lease, adapter in zip(leases, served, strict=True)
                ),
                arrival_s=arrival_s,
            )
        except BaseException:
            _release(leases)
            raise
        stream = self._streams.open(self._engine, engine_request, leases)
        # A chat's answer begins a text of its own; any other continues the prompt's, where a word may be open.
        continued = () if request.HasField("chat") else prompt_ids[-CONTEXT_TOKENS:]
        answer = Answer(reader.tokenizer, strings, after=continued)
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

    async def _lease(
        self, request: pb.GenerateRequest, request_id: str
    ) -> tuple[list[pb.ServedAdapter], list[Lease], RequestReader]:
        """Leases on every adapter of the request, or on none; the id chooses the sides of split aliases.

        And who reads a request for them: with their tokenizer and their vocabulary.
        """
        if len(request.adapters) > MAX_ADAPTERS:
            raise InvalidRequest(
                f"adapters: expected at most {MAX_ADAPTERS}, found {len(request.adapters)}", field="adapters"
            )
        served: list[pb.ServedAdapter] = []
        leases: list[Lease] = []
        versions: list[Version] = []
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
                versions.append(version)
                served.append(messages.served(version, weight))
            check_composition([(lease, one.weight) for lease, one in zip(leases, served, strict=True)])
            reader = await self._reader_for(request, versions, leases) if versions else self._reader
        except BaseException:
            _release(leases)
            raise
        return served, leases, reader

    async def _reader_for(
        self, request: pb.GenerateRequest, versions: Sequence[Version], leases: Sequence[Lease]
    ) -> RequestReader:
        tokenizer = await self._vocabularies.of(versions)
        vocab_size = next((lease.vocab_size for lease in leases if lease.vocab_size is not None), None)
        if tokenizer is None and vocab_size is not None and not request.HasField("token_ids"):
            raise InvalidRequest(
                f"adapters: expected the tokenizer of {versions[0].name} beside its weights, as it has a vocabulary of "
                f"{vocab_size} tokens of its own; found none, so send token ids",
                field="adapters",
            )
        return self._reader.of(tokenizer or self._reader.tokenizer, vocab_size=vocab_size)


def _release(leases: Iterable[Lease]) -> None:
    for lease in leases:
        lease.release()
