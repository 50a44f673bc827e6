"""From the logits of a step to the next tokens, and to the scores of prompts: what each sequence asks of `sampling`.

logits of the rows that a batch asked for ─┬─ rows of a prompt to be scored ──► Sequence.prompt_scores
                                           └─ a last row of each chunk that samples ──► one Sampled each, or an error
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from inference.adjustment import Adjustment
from inference.engine.sequence import Chunk, Sampled
from inference.engine.sequence import Sequence as Answer
from inference.errors import InferenceError
from inference.sampling import RowSampling, sample, score


def choose(logits: Tensor, chunks: Sequence[Chunk]) -> list[Sampled | InferenceError]:
    """One entry for each chunk that samples, in order: its token, or why it has none.

    Shapes: logits float32 [rows, V], the rows of each chunk in turn: `num_scored`, and one more if it samples.
    Mutates: the prompt scores of the chunks' sequences.
    """
    if any(chunk.num_scored for chunk in chunks):
        logits = _score_prompts(logits, chunks)
    rows: dict[int, RowSampling] = {}
    errors: dict[int, InferenceError] = {}
    for index, chunk in enumerate(chunk for chunk in chunks if chunk.samples):
        try:
            rows[index] = _row(chunk.sequence)
        except InferenceError as error:
            errors[index] = error
    if not errors:
        return sample(logits, list(rows.values()))
    chosen = dict(zip(rows, sample(logits[list(rows)], list(rows.values())), strict=True))
    return [errors[index] if index in errors else chosen[index] for index in range(len(rows) + len(errors))]


def _score_prompts(logits: Tensor, chunks: Sequence[Chunk]) -> Tensor:
    """Notes the scores, and returns the logits of the other rows."""
    place, others = 0, []
    for chunk in chunks:
        sequence, count = chunk.sequence, chunk.num_scored
        if count:
            following = sequence.tokens[chunk.start + 1 : chunk.start + 1 + count]
            most = min(sequence.request.sampling.prompt_logprobs or 0, logits.shape[1])
            del sequence.prompt_scores[chunk.start :]  # of a step that did not come to its end
            sequence.prompt_scores += score(logits[place : place + count], following, [most] * count)
            place += count
        if chunk.samples:
            others.append(place)
            place += 1
    return logits[others]


def _row(sequence: Answer) -> RowSampling:
    params = sequence.request.sampling
    is_adjusted = params.adjusts_logits or sequence.walks
    return RowSampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        typical_p=params.typical_p,
        seed=(params.seed + sequence.answer) % 2**64,
        position=sequence.num_outputs,
        logprobs=params.logprobs,
        adjustment=_adjustment(sequence) if is_adjusted else None,
    )


def _adjustment(sequence: Answer) -> Adjustment:
    request, params = sequence.request, sequence.request.sampling
    output_ids = sequence.tokens[len(request.prompt_ids) :]
    return Adjustment(
        prompt_ids=request.prompt_ids,
        output_ids=output_ids,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias=params.logit_bias,
        allowed=[walk.allowed(output_ids) for walk in sequence.walks],
        delayed=request.stop_token_ids if sequence.num_outputs < params.min_tokens else (),
    )
