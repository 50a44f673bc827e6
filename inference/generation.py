"""One Generate call: joins the request's text, its adapters and the engine.

The life of a call:

    lease every adapter (may load) ─► check and tokenize ─► submit ─► (queue) ─► Started ─► Prompt, if asked for
                                                            of each answer:  TokenChunk* ─► Finished ◄─┘

The adapters come first, because one with a vocabulary of its own decides what the prompt's text means.
Answers are told as they come, mixed, or, where the best of several were asked for, when all of them have ended.
Whatever ends the call early (a cancel, a deadline) cancels the request in the engine, which frees its rows and blocks
at the next step and gives the leases back; a stop string does so for its answer.
"""

from __future__ import annotations

import itertools
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from adapter.names import Reference
from inference.adapters import AdapterDesk
from inference.engine.engine import Engine
from inference.engine.request import MAX_TENANT_CHARS, Finished, Reloaded, Request, SlotUse, Token
from inference.errors import InvalidRequest
from inference.identity import ModelIdentity
from inference.lora.lease import Lease, check_composition
from inference.metrics import Metrics
from inference.resolver import Version
from inference.streams import Stream, Streams
from inference.text.answer import Answer
from inference.text.vocabularies import Vocabularies
from inference.wire import messages
from inference.wire.requests import Asked, RequestReader
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_ADAPTERS = 8  # of one request; each adds its own arithmetic to every row


@dataclass(slots=True)
class _Told:
    """An answer and what was told of it."""

    answer: Answer
    first_token_s: float = 0.0
    has_ended: bool = False
    held: list[pb.GenerateResponse] = field(default_factory=list)
    """What waits until it is known whether the answer is among the best."""


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
        served, leases, reader = await self._lease(request, request_id)
        try:
            asked = await reader.read(request)
        except BaseException:
            _release(leases)
            raise
        engine_request = Request(
            id=f"r{next(self._ids)}",  # the caller's own id may be in use by another request
            prompt_ids=asked.prompt_ids,
            sampling=asked.sampling,
            stop_token_ids=asked.stop_ids,
            uses=tuple(
                SlotUse(lease.slot, lease.digest, adapter.weight, follows=lease.follows)
                for lease, adapter in zip(leases, served, strict=True)
            ),
            arrival_s=arrival_s,
            answers=asked.candidates,
            tenant=asked.tenant or _line(served),
            priority=asked.priority,
            constraints=asked.constraints,
        )
        stream = self._streams.open(self._engine, engine_request, leases)
        try:
            admitted = await stream.admitted()
            self._metrics.admitted(len(asked.prompt_ids), admitted.cached_tokens)
            yield pb.GenerateResponse(
                started=pb.Started(
                    request_id=request_id,
                    base_model=self._model.name,
                    base_model_digest=self._model.digest,
                    adapters=messages.now_served(served, stream.uses),
                    registry_revision=self._revision(),
                    prompt_tokens=len(asked.prompt_ids),
                    cached_tokens=admitted.cached_tokens,
                )
            )
            async for message in self._tell(reader, asked, stream, served, request=engine_request):
                yield message
        finally:
            if not stream.is_finished:
                self._engine.cancel(engine_request.id)

    async def _tell(
        self,
        reader: RequestReader,
        asked: Asked,
        stream: Stream,
        served: Sequence[pb.ServedAdapter],
        *,
        request: Request,
    ) -> AsyncIterator[pb.GenerateResponse]:
        """The prompt if it was asked for, and every answer up to its Finished."""
        has_scores = asked.sampling.prompt_logprobs is not None
        if asked.has_echo and not has_scores:
            yield _prompt(reader, asked, stream)
        answers = [_Told(Answer(reader.decoder(asked), asked.stop_strings)) for _ in range(asked.candidates)]
        async for batch in stream.batches():
            if has_scores and not isinstance(batch, Reloaded):  # which may come while the prompt is computed
                has_scores = False
                yield _prompt(reader, asked, stream)
            for number, news in _by_answer(batch):
                told = answers[number]
                if told.has_ended:  # by a stop string, before the engine knew
                    continue
                for message in self._news(asked, told, news, served, number=number, arrival_s=request.arrival_s):
                    if asked.is_ranked:
                        told.held.append(message)
                    else:
                        yield message
                if told.has_ended and not isinstance(news, Finished):
                    self._engine.cancel(request.id, number)
            if all(told.has_ended for told in answers):
                break
        for rank, told in enumerate(_best(answers)[: asked.answers] if asked.is_ranked else ()):
            for message in told.held:
                yield messages.of_answer(rank, message)

    def _news(
        self,
        asked: Asked,
        told: _Told,
        news: Sequence[Token] | Reloaded | Finished,
        served: Sequence[pb.ServedAdapter],
        *,
        number: int,
        arrival_s: float,
    ) -> list[pb.GenerateResponse]:
        """What the next tokens of an answer, other weights for it, or its end give to tell."""
        if isinstance(news, Reloaded):
            return [messages.reloaded(news, served)]
        answer, found = told.answer, []
        if not isinstance(news, Finished):
            told.first_token_s = told.first_token_s or time.monotonic() - arrival_s
            piece = answer.push(news)
            found.append(messages.chunk(piece, number, has_logprobs=asked.has_logprobs))
            if not answer.stop_string:
                return found
        elif rest := answer.finish():
            found.append(messages.rest(rest, answer.num_tokens, number))
        told.has_ended = True
        total_s = time.monotonic() - arrival_s
        self._metrics.answered(answer.num_tokens, told.first_token_s, total_s)
        end = news if isinstance(news, Finished) else None
        found.append(
            messages.finished(
                answer,
                end,
                number=number,
                prompt_tokens=len(asked.prompt_ids),
                first_token_s=told.first_token_s,
                total_s=total_s,
            )
        )
        return found

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
        weights = [use.weight if use.HasField("weight") else 1.0 for use in request.adapters]
        if strange := [weight for weight in weights if not math.isfinite(weight)]:
            raise InvalidRequest(f"adapters.weight: expected a finite number, found {strange[0]}", field="adapters")
        leased = await self._desk.lease_all(
            [Reference.parse(use.reference) for use in request.adapters],
            request_key=request_id,
            wait=request.adapter_loading != pb.ADAPTER_LOADING_REFUSE,
        )
        versions, leases = [version for version, _ in leased], [lease for _, lease in leased]
        served = [messages.served(version, weight) for version, weight in zip(versions, weights, strict=True)]
        try:
            check_composition(list(zip(leases, weights, strict=True)))
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


def _prompt(reader: RequestReader, asked: Asked, stream: Stream) -> pb.GenerateResponse:
    text = reader.prompt_text(asked) if asked.has_echo else ""
    return messages.prompt(asked.prompt_ids, text, stream.prompt_scores)


def _line(served: Sequence[pb.ServedAdapter]) -> str:
    """The tenant of a request that names none: its adapters, whatever their versions."""
    return "+".join(sorted(one.adapter or one.digest for one in served))[:MAX_TENANT_CHARS]


def _release(leases: Iterable[Lease]) -> None:
    for lease in leases:
        lease.release()


def _by_answer(
    batch: list[Token] | Reloaded | Finished,
) -> list[tuple[int, Sequence[Token] | Reloaded | Finished]]:
    """What is new of each answer, by its number."""
    if isinstance(batch, Reloaded | Finished):
        return [(batch.answer, batch)]
    tokens: dict[int, list[Token]] = {}
    for token in batch:
        tokens.setdefault(token.answer, []).append(token)
    return list(tokens.items())


def _best(answers: Sequence[_Told]) -> list[_Told]:
    """The likeliest first, by the mean log-probability of their tokens; of equals the lower number."""
    return sorted(answers, key=lambda told: -told.answer.mean_logprob)
