"""What a request changes about a row's logits before a token is chosen. Knows one row; no requests and no batch.

    logits ─► repetition ─► frequency and presence ─► bias ─► allowed ─► delayed tokens ─► the choice (see sampling)

Rows that change nothing never come here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Adjustment:
    """The settings of a checked SamplingParams and the tokens that they count; the defaults change nothing."""

    prompt_ids: Sequence[int] = ()
    output_ids: Sequence[int] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Sequence[tuple[int, float]] = ()
    """(token id, what is added), each id once."""
    allowed: Sequence[Tensor] = ()
    """The tokens that may be chosen: those that are True in every one of these, bool of any length; none beyond it."""
    delayed: Collection[int] = ()
    """Tokens that are chosen only if no other is left."""


def adjust(logits: Tensor, adjustment: Adjustment) -> Tensor:
    """The logits to choose from.

    Semantics: with l a logit and n how often the answer holds its token,
    l / r if l > 0 else l * r, for the repetition penalty r of tokens in the prompt or the answer;
    then l - n * frequency - [n > 0] * presence; then l + bias; then -inf if not allowed; then -inf if delayed, unless
    no other token is left. All are -inf if none is allowed.
    Shapes: logits float32 [V], and the same returned. Mutates: nothing.
    Source: Keskar et al. 2019 (CTRL) for repetition; the OpenAI API's reference for frequency and presence.
    """
    adjusted = logits.clone()
    if adjustment.repetition_penalty != 1.0:
        seen = list({*adjustment.prompt_ids, *adjustment.output_ids})
        values, penalty = adjusted[seen], adjustment.repetition_penalty
        adjusted[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if adjustment.output_ids and (adjustment.frequency_penalty or adjustment.presence_penalty):
        counts = Counter(adjustment.output_ids)
        amounts = [n * adjustment.frequency_penalty + adjustment.presence_penalty for n in counts.values()]
        adjusted[list(counts)] -= torch.tensor(amounts, device=logits.device)
    if adjustment.bias:
        ids = [token_id for token_id, _ in adjustment.bias]
        adjusted[ids] += torch.tensor([bias for _, bias in adjustment.bias], device=logits.device)
    for allowed in adjustment.allowed:
        # A neighbour's adapter may make the logits wider than this row's vocabulary.
        known = allowed[: len(adjusted)].to(logits.device)
        adjusted[: len(known)].masked_fill_(~known, -torch.inf)
        adjusted[len(known) :] = -torch.inf
    if adjustment.delayed:
        delayed = list(adjustment.delayed)
        kept = adjusted[delayed]
        adjusted[delayed] = -torch.inf
        if adjusted.max() == -torch.inf:
            adjusted[delayed] = kept
    return adjusted
