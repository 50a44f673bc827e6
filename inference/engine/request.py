"""What the engine is asked and what it answers, as values. Knows no tensors, no text and no adapter names.

The life of a request, as the events that its owner sees:

    submit ──► (waiting) ──► Admitted ──► PromptScored? ──► Token* ──► Finished     STOP, LENGTH or CANCELLED
                     └───────────┴──────────────┴──────────────┴─────► Failed       an error of inference/errors.py

A request for several answers gets the Tokens and one Finished of each, mixed; the last Finished says so. Failed ends
all of them at once. A request that is cancelled while it waits is Finished without having been Admitted.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from inference.engine.constraint import Constraint
from inference.errors import InferenceError, InvalidRequest

MAX_ANSWERS = 16
MAX_PRIORITY = 100
MAX_TENANT_CHARS = 128


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and how many. Raises InvalidRequest, with the field, on what can never work.

    temperature 0 is greedy; top_k 0, min_p 0 and typical_p 1 keep every token. `logprobs` is the number of
    alternatives wanted beside the chosen token's log-probability; None asks for neither. Penalties and bias are those
    of inference/adjustment.py. No stop token is chosen among the first `min_tokens`.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    seed: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _expect(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        _expect(0.0 <= self.temperature < float("inf"), "temperature", "finite and at least 0", self.temperature)
        _expect(0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]", self.top_p)
        _expect(self.top_k >= 0, "top_k", "at least 0", self.top_k)
        _expect(0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]", self.min_p)
        _expect(0.0 < self.typical_p <= 1.0, "typical_p", "in (0, 1]", self.typical_p)
        # Wider than anything useful, and narrow enough that no finite logit overflows.
        _expect(0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "in [0.01, 100]", self.repetition_penalty)
        _expect(-100 <= self.presence_penalty <= 100, "presence_penalty", "in [-100, 100]", self.presence_penalty)
        _expect(-100 <= self.frequency_penalty <= 100, "frequency_penalty", "in [-100, 100]", self.frequency_penalty)
        _expect(len(self.logit_bias) <= 1024, "logit_bias", "at most 1024 ids", len(self.logit_bias))
        for token_id, bias in self.logit_bias:
            _expect(-100 <= bias <= 100, "logit_bias", "numbers in [-100, 100]", f"{bias} for {token_id}")
        _expect(0 <= self.min_tokens <= self.max_tokens, "min_tokens", f"at most {self.max_tokens}", self.min_tokens)
        _expect(0 <= self.seed < 2**64, "seed", "an unsigned 64-bit number", self.seed)
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            _expect(asked is None or 0 <= asked <= 20, name, "in [0, 20]", asked)

    @property
    def adjusts_logits(self) -> bool:
        """Whether tokens are chosen from other logits than the model's."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_tokens
        )


@dataclass(frozen=True, slots=True)
class SlotUse:
    """One adapter of a request: the slot its owner holds a lease on, whose weights these must be, and how strong.

    follows: a name of the owner's under which it may give the request other weights, see Scheduler.reload; empty for
    these weights only.
    """

    slot: int
    digest: str
    weight: float = 1.0
    follows: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what to do with it. `uses` is empty for the base model alone.

    Whoever submits it holds the leases of its slots until its last event. `arrival_s` is time.monotonic().

    answers: how many to give. Each is what a request of its own with the seed plus its number would get; the prompt is
    computed once for all. tenant: whose share of the worker it takes. priority: the higher goes first among waiting
    requests of its tenant; see engine/fair_queue. constraints: what each of the answers obeys, all at once.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    uses: tuple[SlotUse, ...] = ()
    arrival_s: float = 0.0
    answers: int = 1
    tenant: str = ""
    priority: int = 0
    constraints: tuple[Constraint, ...] = ()
    adapter_key: tuple[tuple[str, float], ...] = field(init=False)
    """Identity of the weights that answer: equal keys mean equal weights. Always the digests, never the slots."""

    def __post_init__(self) -> None:
        _expect(len(self.prompt_ids) > 0, "prompt", "at least one token", "none")
        _expect(1 <= self.answers <= MAX_ANSWERS, "n", f"in [1, {MAX_ANSWERS}]", self.answers)
        _expect(-MAX_PRIORITY <= self.priority <= MAX_PRIORITY, "priority", "in [-100, 100]", self.priority)
        _expect(len(self.tenant) <= MAX_TENANT_CHARS, "tenant", "at most 128 characters", len(self.tenant))
        object.__setattr__(self, "adapter_key", tuple((use.digest, use.weight) for use in self.uses))


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """The last token is one of the request's stop tokens."""
    LENGTH = "length"
    """max_tokens, or the end of the context."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first step that computed the request has run; `cached_tokens` of its prompt needed no computing."""

    request_id: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a token was: its natural log-probability before temperature, and (token id, log-probability) of the
    most likely tokens, best first, as many as asked for."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The scores of every prompt token but the first, for a request that asked; before its first Token."""

    request_id: str
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of an answer; `index` counts from 0. Log-probabilities are natural, before temperature."""

    request_id: str
    index: int
    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the most likely tokens, best first, as many as asked for."""
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The tokens of an answer from `index` on are computed with `uses`; those before were with others.

    Before Admitted it is about all of them.
    """

    request_id: str
    index: int
    uses: tuple[SlotUse, ...]
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer. Times count from the request's arrival; one that was never reached is the total.

    `is_last` when it ends the request too: no other answer of it is left, and nothing follows.
    """

    request_id: str
    reason: FinishReason
    output_tokens: int
    queued_s: float
    first_token_s: float
    total_s: float
    answer: int = 0
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a request, of all its answers that have not ended; nothing of it follows."""

    request_id: str
    error: InferenceError


Event = Admitted | PromptScored | Token | Reloaded | Finished | Failed


def _expect(holds: bool, field_name: str, expected: str, actual: object) -> None:
    if not holds:
        raise InvalidRequest(f"{field_name}: expected {expected}, found {actual}", field=field_name)
