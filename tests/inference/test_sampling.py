"""Tokens are drawn from the distribution that the parameters define, by the row alone."""

from __future__ import annotations

import math

import pytest
import torch

from inference.errors import EngineFailed
from inference.sampling import NUCLEUS_STEPS, RowSampling, sample, uniform

VOCAB = 12


def random_logits(rows, vocab=VOCAB, seed=0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def kept_by_definition(logits, row):
    """Token ids and probabilities by the plain definition: sort, cut, renormalize, one filter after the other."""
    scaled = [value / row.temperature for value in logits.tolist()]
    ranked = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    if row.top_k:
        ranked = ranked[: row.top_k]
    weights = [math.exp(scaled[token] - scaled[ranked[0]]) for token in ranked]
    total, kept, before = sum(weights), [], 0.0
    for token, weight in zip(ranked, weights, strict=True):
        if before / total < row.top_p:
            kept.append((token, weight))
        before += weight
    kept = [(token, weight) for token, weight in kept if weight >= row.min_p * kept[0][1]]
    total = sum(weight for _, weight in kept)
    if row.typical_p < 1.0:
        entropy = -sum(weight / total * math.log(weight / total) for _, weight in kept)
        ranked = sorted(kept, key=lambda one: (abs(-math.log(one[1] / total) - entropy), one[0]))
        kept, before = [], 0.0
        for token, weight in ranked:
            if before / total < row.typical_p:
                kept.append((token, weight))
            before += weight
        total = sum(weight for _, weight in kept)
    return {token: weight / total for token, weight in kept}


FILTERS = {
    "none": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.2},
    "typical-p": {"typical_p": 0.5},
    "all": {"temperature": 1.5, "top_k": 7, "top_p": 0.85, "min_p": 0.05},
    "all and typical-p": {"temperature": 1.5, "top_k": 9, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.6},
    "top-k of more than there are": {"top_k": 500},
    "top-p of almost nothing": {"top_p": 1e-9},
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution_that_the_filters_leave(name):
    draws, logits = 4000, random_logits(1, seed=len(name))
    settings = {"temperature": 1.0} | FILTERS[name]
    rows = [RowSampling(**settings, seed=seed) for seed in range(draws)]
    counts = torch.bincount(torch.tensor([s.token_id for s in sample(logits.expand(draws, -1), rows)]), minlength=VOCAB)
    expected = kept_by_definition(logits[0], rows[0])
    for token, count in enumerate(counts.tolist()):
        probability = expected.get(token, 0.0)
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(count - draws * probability) <= 4.5 * deviation, (
            f"token {token}: {count} of {draws * probability:.1f}"
        )


@pytest.mark.parametrize(("temperature", "steps"), [(0.25, 1), (1.5, 2), (1e-3, 1), (50.0, 2)])
def test_the_nucleus_is_the_same_however_many_tokens_were_looked_at(temperature, steps):
    logits, draws = random_logits(1, vocab=20_000), 300
    rows = [RowSampling(temperature=temperature, top_p=0.6, seed=seed) for seed in range(draws)]
    kept = kept_by_definition(logits[0], rows[0])
    probabilities = (logits[0] / temperature).softmax(-1)
    sums = [float(probabilities[probabilities >= least].sum()) for least in NUCLEUS_STEPS]
    assert next(step for step, total in enumerate(sums, start=1) if total >= 0.6) == steps
    assert {s.token_id for s in sample(logits.expand(draws, -1), rows)} <= kept.keys()


def test_of_equal_logits_the_lowest_ids_are_kept():
    logits = torch.zeros(1, VOCAB)
    for settings, expected in (
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, set(range(VOCAB))),
    ):
        rows = [RowSampling(temperature=1.0, **settings, seed=seed) for seed in range(300)]
        assert {s.token_id for s in sample(logits.expand(300, -1), rows)} == expected


def test_greedy_takes_the_largest_logit_and_the_lowest_id_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 3.0, 3.0, 1.0]])
    assert [s.token_id for s in sample(logits, [RowSampling(), RowSampling(top_p=0.1, seed=4)])] == [1, 0]


def test_a_temperature_near_zero_is_greedy_without_overflow():
    logits = random_logits(1) * 100
    rows = [RowSampling(temperature=1e-7, seed=seed) for seed in range(50)]
    assert {s.token_id for s in sample(logits.expand(50, -1), rows)} == {int(logits.argmax())}


def test_the_same_seed_and_position_draw_the_same_token_whatever_else_is_in_the_batch():
    logits = random_logits(1)
    row = RowSampling(temperature=1.0, top_p=0.9, seed=11, position=3)
    [alone] = sample(logits, [row])
    for others in range(1, 6):
        neighbours = [RowSampling(temperature=0.5 * i, seed=i, position=i, logprobs=i) for i in range(others)]
        batch = torch.cat([random_logits(others, seed=others), logits])
        assert sample(batch, [*neighbours, row])[-1] == alone


def test_other_seeds_and_other_positions_draw_other_numbers():
    drawn = {uniform(seed, position) for seed in range(100) for position in range(100)}
    assert len(drawn) == 100 * 100
    assert all(0.0 <= number < 1.0 for number in drawn)
    assert uniform(2**64 - 1, 0) != uniform(0, 0)


@pytest.mark.parametrize("axis", ["seed", "position"])
def test_drawn_numbers_are_uniform_and_neighbours_do_not_resemble_each_other(axis):
    count = 20_000
    numbers = torch.tensor(
        [uniform(i, 5) if axis == "seed" else uniform(5, i) for i in range(count)], dtype=torch.float64
    )
    histogram = torch.histc(numbers, bins=20, min=0, max=1)
    chi_square = ((histogram - count / 20) ** 2 / (count / 20)).sum()
    assert chi_square < 43.8  # 19 degrees of freedom exceed it once in a thousand
    assert abs(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]) < 0.03


def test_log_probabilities_are_those_before_temperature_with_the_most_likely_tokens():
    logits = random_logits(3)
    expected = logits.log_softmax(-1)
    rows = [RowSampling(logprobs=2), RowSampling(temperature=2.0, top_k=2, seed=1, logprobs=0), RowSampling()]
    first, second, third = sample(logits, rows)
    assert first.logprob == pytest.approx(float(expected[0, first.token_id]), abs=1e-6)
    best = expected[0].topk(2)
    assert [token for token, _ in first.alternatives] == best.indices.tolist()
    assert [value for _, value in first.alternatives] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert second.logprob == pytest.approx(float(expected[1, second.token_id]), abs=1e-6)
    assert second.alternatives == ()
    assert (third.logprob, third.alternatives) == (None, ())


def test_more_alternatives_than_tokens_are_all_the_tokens():
    [sampled] = sample(random_logits(1, vocab=4), [RowSampling(logprobs=20)])
    assert len(sampled.alternatives) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_distribution_has_no_token_and_leaves_its_neighbours_alone(bad, temperature):
    logits = random_logits(3)
    rows = [RowSampling(temperature=temperature, seed=3, logprobs=1)] * 3
    expected = sample(logits, rows)
    logits[1, 7] = bad
    first, failed, third = sample(logits, rows)
    assert [first, third] == [expected[0], expected[2]]
    assert isinstance(failed, EngineFailed)


def test_a_row_may_rule_tokens_out_with_minus_infinity():
    logits = random_logits(1)
    logits[0, 4:] = -math.inf
    rows = [RowSampling(temperature=1.0, top_p=0.99, seed=seed, logprobs=1) for seed in range(100)]
    assert {s.token_id for s in sample(logits.expand(100, -1), rows)} <= {0, 1, 2, 3}


def test_no_rows_give_no_tokens():
    assert sample(torch.empty(0, VOCAB), []) == []
