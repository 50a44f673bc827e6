"""What may be submitted: room in the queue for every tenant, and each tenant's rate. Policy without a clock.

The queue is bounded in requests and in the tokens of their prompts. No tenant may take all of it: one that waits with
GREED times what is still free is refused, so that a flood alone fills four fifths and leaves room for others (dynamic
thresholds of Choudhury and Hahne 1998). Paused requests take room too, as they are in memory all the same.
"""

from __future__ import annotations

from collections import Counter

from inference.engine.request import Request
from inference.engine.scheduler import Scheduler
from inference.engine.tenants import Rates
from inference.errors import QueueFull

GREED = 4  # of the free room: a tenant alone may fill GREED / (GREED + 1) of the queue
RETRY_AFTER_S = 1.0  # some answers will have ended by then, whatever the model


class Intake:
    """Reads the scheduler's numbers, which another thread may be changing; its own are its caller's to guard."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._rates = Rates(scheduler.tenants)
        self._requests: Counter[str] = Counter()  # by tenant, not with the scheduler yet
        self._tokens: Counter[str] = Counter()  # of their prompts

    @property
    def num_requests(self) -> int:
        """Taken and not handed to the scheduler yet."""
        return self._requests.total()

    def take(self, request: Request, now_s: float) -> None:
        """Takes a request in, to be handed to the scheduler. Raises QueueFull and TenantRateExceeded."""
        tenant, tokens = request.tenant, len(request.prompt_ids)
        self._check_room(tenant, tokens)
        self._rates.check(tenant, now_s)
        self._rates.charge(tenant, tokens, now_s)
        self._requests[tenant] += 1
        self._tokens[tenant] += tokens

    def hand_over(self, request: Request) -> None:
        """The scheduler has it. Until this is said it counts twice for a moment, but never not at all."""
        for counter, amount in ((self._requests, 1), (self._tokens, len(request.prompt_ids))):
            counter[request.tenant] -= amount
            if not counter[request.tenant]:
                del counter[request.tenant]

    def charge_answer(self, tenant: str, tokens: int, now_s: float) -> None:
        """Takes the tokens of an answer from the tenant's rate."""
        self._rates.charge(tenant, tokens, now_s)

    def _check_room(self, tenant: str, prompt_tokens: int) -> None:
        scheduler, limits = self._scheduler, self._scheduler.limits
        waiting = self.num_requests + scheduler.num_waiting + scheduler.num_paused
        own, own_tokens = scheduler.waiting_of(tenant)
        own, own_tokens = own + self._requests[tenant], own_tokens + self._tokens[tenant]
        if waiting >= limits.max_waiting:
            raise QueueFull(f"{waiting} requests are waiting and {limits.max_waiting} may", retry_after_s=RETRY_AFTER_S)
        if own >= GREED * (limits.max_waiting - waiting):
            raise QueueFull(
                f"{own} requests of the tenant {tenant!r} are waiting, and what is left of {limits.max_waiting} is "
                "kept for others",
                retry_after_s=RETRY_AFTER_S,
            )
        tokens = self._tokens.total() + scheduler.num_waiting_tokens
        if tokens and tokens + prompt_tokens > limits.max_waiting_tokens:
            raise QueueFull(
                f"prompts of {tokens} tokens are waiting, {limits.max_waiting_tokens} may, and this one has "
                f"{prompt_tokens}",
                retry_after_s=RETRY_AFTER_S,
            )
        if own_tokens and own_tokens + prompt_tokens > GREED * (limits.max_waiting_tokens - tokens):
            raise QueueFull(
                f"prompts of {own_tokens} tokens of the tenant {tenant!r} are waiting, this one has {prompt_tokens}, "
                f"and what is left of {limits.max_waiting_tokens} is kept for others",
                retry_after_s=RETRY_AFTER_S,
            )
