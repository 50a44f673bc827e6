"""One answer in the making, and a step's share of it. Knows tokens and block numbers; no tensors, no policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference.engine.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one request: its prompt, then what was answered.

        tokens    p p p p p p p o o o        len(tokens)
        computed  ─────────► |               keys and values of these positions are in `blocks`

    A waiting sequence has no blocks and nothing computed. Preemption takes both away and keeps the tokens, so that
    the answer goes on exactly where it stopped once they are computed again.
    """

    request: Request
    number: int
    """Order of arrival; the lower, the older."""
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    started_s: float | None = None
    """When the first step that computed it was scheduled."""
    first_token_s: float | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Known tokens that are still to be computed: 1 while decoding, more in prefill."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a step computes of one sequence: `length` tokens from position `start`.

    `samples` when it reaches the last known token, whose logits give the next one.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.length]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for a chunk, its log-probability if asked for, and alternatives as in request.Token."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
