"""Penalties, bias and bans are those of their plain definition, and touch the rows that ask for them alone."""

from __future__ import annotations

import math
import random

import pytest
import torch

from inference.adjustment import Adjustment, adjust
from inference.engine.sequence import Sampled
from inference.errors import AnswerStuck
from inference.sampling import RowSampling, sample

VOCAB = 12


def random_logits(seed):
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def adjusted_by_definition(logits, adjustment):
    """One token at a time, in Python's own numbers."""
    found = []
    for token, logit in enumerate(logits.tolist()):
        value = logit
        if token in adjustment.prompt_ids or token in adjustment.output_ids:
            penalty = adjustment.repetition_penalty
            value = value / penalty if value > 0 else value * penalty
        count = list(adjustment.output_ids).count(token)
        value -= count * adjustment.frequency_penalty + (adjustment.presence_penalty if count else 0.0)
        value += dict(adjustment.bias).get(token, 0.0)
        is_allowed = all(token < len(mask) and mask[token] for mask in adjustment.allowed)
        found.append(value if is_allowed else -math.inf)
    others = [value for token, value in enumerate(found) if token not in adjustment.delayed]
    if max(others, default=-math.inf) > -math.inf:
        found = [-math.inf if token in adjustment.delayed else value for token, value in enumerate(found)]
    return found


def only(*token_ids):
    """The mask that allows these."""
    return torch.isin(torch.arange(VOCAB), torch.tensor(token_ids))


SETTINGS = {
    "repetition": {"repetition_penalty": 1.7},
    "encouraged repetition": {"repetition_penalty": 0.5},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.7},
    "negative frequency": {"frequency_penalty": -0.7},
    "bias": {"bias": ((3, 2.5), (0, -100.0))},
    "allowed": {"allowed": (only(1, 5, 7),)},
    "allowed twice": {"allowed": (only(1, 5, 7), only(0, 5, 7, 9))},
    "allowed among the first": {"allowed": (only(1, 5)[:6],)},
    "allowed among more": {"allowed": (torch.cat([only(1, 5), torch.tensor([True, True])]),)},
    "delayed": {"delayed": frozenset({1, 5})},
    "delayed beside others that are allowed": {"allowed": (only(1, 3),), "delayed": frozenset({1, 5})},
    "delayed where no other is allowed": {"allowed": (only(1),), "delayed": frozenset({1, 5})},
    "all": {
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.3,
        "bias": ((7, 4.0),),
        "allowed": (~only(4),),
        "delayed": frozenset({2}),
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("num_outputs", [0, 1, 9])
def test_adjusted_logits_are_those_of_the_definition(name, num_outputs):
    rng = random.Random(name)
    prompt = [rng.randrange(VOCAB) for _ in range(5)]
    outputs = [rng.randrange(VOCAB) for _ in range(num_outputs)]
    logits = random_logits(num_outputs)
    before = logits.clone()
    adjustment = Adjustment(prompt, outputs, **SETTINGS[name])
    assert adjust(logits, adjustment).tolist() == pytest.approx(adjusted_by_definition(logits, adjustment), abs=1e-5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_adjusted_row_draws_the_same_whatever_its_neighbours_and_they_as_without_it(temperature):
    logits = torch.stack([random_logits(seed) for seed in range(4)])
    plain = [RowSampling(temperature=temperature, seed=seed, logprobs=2) for seed in range(4)]
    adjustment = Adjustment([1, 2], [3, 3, 4], frequency_penalty=2.0, bias=((9, 3.0),))
    changed = RowSampling(temperature=temperature, seed=2, logprobs=2, adjustment=adjustment)
    [alone] = sample(logits[2:3], [changed])
    found = sample(logits, [*plain[:2], changed, plain[3]])
    expected = sample(logits, plain)
    assert found[2] == alone
    assert [found[row] for row in (0, 1, 3)] == [expected[row] for row in (0, 1, 3)]


def test_the_choice_is_made_from_adjusted_logits_and_the_model_s_own_are_reported():
    logits = torch.tensor([[4.0, 3.0, 2.0]])
    [chosen] = sample(logits, [RowSampling(logprobs=1, adjustment=Adjustment(bias=((2, 5.0),)))])
    assert chosen.token_id == 2
    assert chosen.logprob == pytest.approx(float(logits.log_softmax(-1)[0, 2]))
    assert chosen.alternatives[0][0] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_of_which_no_token_is_allowed_is_stuck_and_its_neighbour_is_not(temperature):
    logits = torch.stack([random_logits(0), random_logits(1)])
    rows = [
        RowSampling(temperature=temperature, adjustment=Adjustment(allowed=(only(1), only(2)), delayed=[1])),
        RowSampling(temperature=temperature),
    ]
    stuck, chosen = sample(logits, rows)
    assert isinstance(stuck, AnswerStuck)
    assert isinstance(chosen, Sampled)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_drawn(temperature):
    logits = random_logits(3)
    allowed = only(*torch.topk(logits, 2, largest=False).indices.tolist())
    rows = [
        RowSampling(temperature=temperature, seed=seed, adjustment=Adjustment(allowed=(allowed,)))
        for seed in range(200)
    ]
    drawn = {sampled.token_id for sampled in sample(logits.expand(200, -1), rows)}
    assert drawn <= set(torch.nonzero(allowed).flatten().tolist())
