"""The worker's values as protobuf messages: one function for each message, and nothing else."""

from __future__ import annotations

import time

from google.protobuf.duration_pb2 import Duration

from inference.answer import Answer, Piece
from inference.catalog import Model, ModelState
from inference.engine.request import Finished, FinishReason, Token
from inference.resolver import Version
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
    )


def served(version: Version, weight: float) -> pb.ServedAdapter:
    return pb.ServedAdapter(adapter=version.adapter, version=version.number, digest=version.digest, weight=weight)


def chunk(piece: Piece) -> pb.TokenChunk:
    return pb.TokenChunk(
        index=piece.index,
        token_ids=[token.token_id for token in piece.tokens],
        text=piece.text,
        logprobs=[token_logprob(token, token.logprob) for token in piece.tokens if token.logprob is not None],
    )


def token_logprob(token: Token, value: float) -> pb.TokenLogprob:
    alternatives = [pb.AlternativeToken(token_id=id_, logprob=other) for id_, other in token.alternatives]
    return pb.TokenLogprob(token_id=token.token_id, logprob=value, alternatives=alternatives)


def finished(
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
            queued=duration(end.queued_s) if end else None,
            first_token=duration(first_token_s),
            total=duration(time.monotonic() - arrival_s),
        ),
    )


def duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
