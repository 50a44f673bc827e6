"""One Generate call: joins the request's text, its adapters and the engine.

The life of a call:

    check and tokenize ─► lease every adapter (may load) ─► submit ─► (queue) ─► Started ─► TokenChunk* ─► Finished

Whatever ends the call early (a cancel, a deadline, a stop string) cancels the request in the engine, which frees its
row and blocks at the next step and gives the leases back.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable

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
from inference.streams import Streams
from inference.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_ADAPTERS = 8  # of one request; each adds its own arithmetic to every row
CONTEXT_TOKENS = 16  # of the prompt, enough to know an open word and an open character


class Generation:
    """Answers Generate calls on one model."""

    def __init__(
        self,
        *,
        model: ModelIdentity,
        tokenizer: Tokenizer,
        reader: RequestReader,
        desk: AdapterDesk,
        engine: Engine,
        streams: Streams,
        metrics: Metrics,
        revision: Callable[[], int],
    ) -> None:
        """`revision` is the registry's that this worker has reconciled to, 0 without a registry."""
        self._model = model
        self._tokenizer = tokenizer
        self._reader = reader
        self._desk = desk
        self._engine = engine
        self._streams = streams
        self._metrics = metrics
        self._revision = revision
        self._ids = itertools.count()

    async def run(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Every message of the call. Raises InferenceError; closing it early frees what the request holds."""
        arrival_s = time.monotonic()
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
