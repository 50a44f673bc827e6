"""Who may take how much of a worker: weights, limits and rates by tenant. Policy over numbers, without a clock.

A request's tenant is the one that it names, or the names of its adapters where it names none (never their versions, so
that a reload keeps its place); see inference/generation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from inference.errors import TenantRateExceeded

# Names are the callers' to choose, so what is remembered of them is bounded: the longest unheard of is forgotten.
MAX_REMEMBERED = 4096
FIRST_GUESS = 128  # tokens of an answer, before a tenant had one
SMOOTHING = 8  # answers, about, that the mean length remembers
BURST_S = 10.0  # of a rate that may be used at once when `burst_tokens` is not set


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What one tenant may take.

    weight: its share beside others that want more than there is. max_rows: its answers under way at once. tokens_per_s:
    prompts and answers together, in the long run; burst_tokens: how many of those at once. None means no limit.
    """

    weight: float = 1.0
    max_rows: int | None = None
    tokens_per_s: float | None = None
    burst_tokens: int | None = None

    @property
    def burst(self) -> float:
        """Tokens that its bucket holds when it is full."""
        if self.burst_tokens is not None:
            return float(self.burst_tokens)
        return BURST_S * (self.tokens_per_s or 0.0)


@dataclass(frozen=True, slots=True)
class Tenants:
    """The policy of every tenant: those that have one of their own, and the rest."""

    named: Mapping[str, TenantPolicy] = field(default_factory=lambda: MappingProxyType({}))
    rest: TenantPolicy = TenantPolicy()

    def of(self, tenant: str) -> TenantPolicy:
        return self.named.get(tenant, self.rest)

    def weight_of(self, tenant: str) -> float:
        return self.of(tenant).weight


class AnswerLengths:
    """How long a tenant's answers usually are: the cost of one that has not been given yet."""

    def __init__(self) -> None:
        self._means: OrderedDict[str, float] = OrderedDict()

    def expected(self, tenant: str, max_tokens: int) -> int:
        """Tokens of the tenant's next answer, at most `max_tokens`."""
        return min(max_tokens, max(1, round(self._means.get(tenant, FIRST_GUESS))))

    def note(self, tenant: str, tokens: int) -> None:
        """Takes the length of an answer into the tenant's mean."""
        mean = self._means.pop(tenant, float(FIRST_GUESS))
        self._means[tenant] = mean + (tokens - mean) / SMOOTHING
        if len(self._means) > MAX_REMEMBERED:
            self._means.popitem(last=False)


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_s: float


class Rates:
    """A bucket of tokens for each tenant with a rate. One thread at a time may call it.

        rate ──► bucket, at most `burst` ──► prompts, when they are submitted; answers, as they come

    A request is taken while the bucket is not empty, whatever it will cost: what it takes too much delays the next one.
    So a tenant takes at most burst + one request + rate · t in t seconds.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, tenant: str, now_s: float) -> None:
        """Raises TenantRateExceeded, with the time until the bucket is no longer empty."""
        policy = self._tenants.of(tenant)
        if policy.tokens_per_s is None:
            return
        bucket = self._bucket(tenant, policy, now_s)
        if bucket.tokens < 1:
            raise TenantRateExceeded(
                f"the tenant {tenant!r} has used the {policy.tokens_per_s:g} tokens a second that it may",
                retry_after_s=(1 - bucket.tokens) / policy.tokens_per_s,
            )

    def charge(self, tenant: str, tokens: int, now_s: float) -> None:
        """Takes tokens out of the tenant's bucket, more than there are if need be."""
        policy = self._tenants.of(tenant)
        if policy.tokens_per_s is not None:
            self._bucket(tenant, policy, now_s).tokens -= tokens

    def _bucket(self, tenant: str, policy: TenantPolicy, now_s: float) -> _Bucket:
        bucket = self._buckets.pop(tenant, None) or _Bucket(policy.burst, now_s)
        assert policy.tokens_per_s is not None
        bucket.tokens = min(policy.burst, bucket.tokens + policy.tokens_per_s * max(0.0, now_s - bucket.filled_s))
        bucket.filled_s = now_s
        self._buckets[tenant] = bucket
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        return bucket
