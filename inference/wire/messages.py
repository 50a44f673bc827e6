"""The worker's values as protobuf messages: one function for each message, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from inference.catalog import Model, ModelState
from inference.engine.request import Finished, FinishReason, Reloaded, Score, SlotUse
from inference.errors import InvalidRequest
from inference.resolver import Version
from inference.text.answer import Answer, Piece
from inference.tiers import Tier
from loraplex.inference.v1 import inference_service_pb2 as pb

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

TIERS = {Tier.DISK: pb.TIER_DISK, Tier.HOST: pb.TIER_HOST, Tier.ARENA: pb.TIER_ARENA}


def model(root: str, one: Model) -> pb.Model:
    return pb.Model(
        reference=one.reference,
        root=root,
        parent=one.parent,
        digest=one.digest,
        version=one.version,
        state=MODEL_STATES[one.state],
        failure=one.failure,
        size_bytes=one.size_bytes,
        rank=one.rank,
        pinned=one.is_pinned,
        tier=TIERS[one.tier] if one.tier is not None else pb.TIER_UNSPECIFIED,
    )


def tier(asked: int) -> Tier:
    """The tier that a request names. Raises InvalidRequest for one that this release does not know."""
    if asked == pb.TIER_UNSPECIFIED:
        return Tier.ARENA
    found = next((one for one, value in TIERS.items() if value == asked), None)
    if found is None:
        raise InvalidRequest(f"tier: expected ARENA, HOST or DISK, found {asked}", field="tier")
    return found


def served(version: Version, weight: float) -> pb.ServedAdapter:
    return pb.ServedAdapter(adapter=version.adapter, version=version.number, digest=version.digest, weight=weight)


def now_served(adapters: Sequence[pb.ServedAdapter], uses: Sequence[SlotUse]) -> list[pb.ServedAdapter]:
    """The adapters of a request with the weights that these uses of them, in the same order, say."""
    return [
        pb.ServedAdapter(adapter=one.adapter, version=one.version, digest=use.digest, weight=one.weight)
        for one, use in zip(adapters, uses, strict=True)
    ]


def reloaded(event: Reloaded, adapters: Sequence[pb.ServedAdapter]) -> pb.GenerateResponse:
    """`adapters` are those that the request began with."""
    now = now_served(adapters, event.uses)
    return pb.GenerateResponse(reloaded=pb.Reloaded(answer=event.answer, index=event.index, adapters=now))


def prompt(token_ids: Sequence[int], text: str, scores: Sequence[Score]) -> pb.GenerateResponse:
    """`scores` are those of every token but the first, or none."""
    logprobs = [token_logprob(token_id, score) for token_id, score in zip(token_ids[1:], scores, strict=False)]
    return pb.GenerateResponse(prompt=pb.Prompt(token_ids=token_ids, text=text, logprobs=logprobs))


def chunk(piece: Piece, answer: int, *, has_logprobs: bool) -> pb.GenerateResponse:
    logprobs = []
    if has_logprobs:
        for token in piece.tokens:
            assert token.logprob is not None, "expected the engine to score what was asked for"
            logprobs.append(token_logprob(token.token_id, Score(token.logprob, token.alternatives)))
    return pb.GenerateResponse(
        chunk=pb.TokenChunk(
            index=piece.index,
            token_ids=[token.token_id for token in piece.tokens],
            text=piece.text,
            logprobs=logprobs,
            answer=answer,
        )
    )


def rest(text: str, index: int, answer: int) -> pb.GenerateResponse:
    """Text that was held back; `index` counts all tokens of the answer."""
    return pb.GenerateResponse(chunk=pb.TokenChunk(index=index, text=text, answer=answer))


def token_logprob(token_id: int, score: Score) -> pb.TokenLogprob:
    alternatives = [pb.AlternativeToken(token_id=other, logprob=logprob) for other, logprob in score.alternatives]
    return pb.TokenLogprob(token_id=token_id, logprob=score.logprob, alternatives=alternatives)


def finished(
    answer: Answer, end: Finished | None, *, number: int, prompt_tokens: int, first_token_s: float, total_s: float
) -> pb.GenerateResponse:
    """`end` is None when a stop string was found before the engine knew."""
    if answer.stop_string:
        reason = pb.FINISH_REASON_STOP_STRING
    else:
        assert end is not None, "expected the engine to end an answer that no stop string ended"
        reason = FINISH_REASONS[end.reason]
    return pb.GenerateResponse(
        finished=pb.Finished(
            reason=reason,
            stop_string=answer.stop_string,
            prompt_tokens=prompt_tokens,
            output_tokens=answer.num_tokens,
            timings=pb.Timings(
                queued=duration(end.queued_s) if end else None,
                first_token=duration(first_token_s),
                total=duration(total_s),
            ),
            answer=number,
        )
    )


def of_answer(number: int, message: pb.GenerateResponse) -> pb.GenerateResponse:
    """A message about an answer as one about answer `number`."""
    renamed = pb.GenerateResponse()
    renamed.CopyFrom(message)
    if renamed.HasField("chunk"):
        renamed.chunk.answer = number
    elif renamed.HasField("reloaded"):
        renamed.reloaded.answer = number
    else:
        renamed.finished.answer = number
    return renamed


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
