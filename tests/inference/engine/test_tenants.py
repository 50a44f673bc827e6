from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engine.tenants import (
    FIRST_GUESS,
    MAX_REMEMBERED,
    AnswerLengths,
    Rates,
    TenantPolicy,
    Tenants,
)
from inference.errors import TenantRateExceeded


@given(seed=st.integers(0, 2**32), rate=st.floats(0.1, 100), burst=st.integers(1, 500))
def test_a_tenant_takes_no_more_than_its_burst_a_request_and_its_rate(seed: int, rate: float, burst: int) -> None:
    rng = random.Random(seed)
    rates = Rates(Tenants({"t": TenantPolicy(tokens_per_s=rate, burst_tokens=burst)}))
    now_s, taken, largest = 0.0, 0, 0
    for _ in range(200):
        now_s += rng.random()
        tokens = rng.randint(1, 100)
        try:
            rates.check("t", now_s)
        except TenantRateExceeded as refused:
            now_s += 1.001 * (refused.retry_after_s or 0.0)
            rates.check("t", now_s)  # and not before
            continue
        rates.charge("t", tokens, now_s)
        taken, largest = taken + tokens, max(largest, tokens)
        assert taken <= burst + largest + rate * now_s + 1e-6


def test_tenants_without_a_rate_may_take_anything() -> None:
    rates = Rates(Tenants({"t": TenantPolicy(tokens_per_s=1.0)}))
    rates.charge("other", 10**9, 0.0)
    rates.check("other", 0.0)


def test_tenants_without_a_policy_of_their_own_have_that_of_the_rest() -> None:
    tenants = Tenants({"gold": TenantPolicy(weight=3.0)}, rest=TenantPolicy(weight=0.5, tokens_per_s=2.0))
    assert (tenants.weight_of("gold"), tenants.weight_of("anybody")) == (3.0, 0.5)
    rates = Rates(tenants)
    rates.charge("anybody", 20, 0.0)
    with pytest.raises(TenantRateExceeded):
        rates.check("anybody", 0.0)
    rates.check("somebody", 0.0)


def test_the_length_of_answers_is_learnt_and_never_above_what_was_asked_for() -> None:
    lengths = AnswerLengths()
    assert lengths.expected("t", 1000) == FIRST_GUESS
    assert lengths.expected("t", 5) == 5
    for _ in range(100):
        lengths.note("t", 700)
    assert lengths.expected("t", 1000) == 700
    assert lengths.expected("other", 1000) == FIRST_GUESS


def test_names_that_callers_choose_are_not_remembered_for_ever() -> None:
    lengths, rates = AnswerLengths(), Rates(Tenants(rest=TenantPolicy(tokens_per_s=1.0)))
    for number in range(MAX_REMEMBERED + 10):
        lengths.note(f"t{number}", 1)
        rates.charge(f"t{number}", 1, 0.0)
    assert len(lengths._means) == len(rates._buckets) == MAX_REMEMBERED
