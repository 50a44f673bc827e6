"""One answer in the making, and a step's share of it. Knows tokens and block numbers; no tensors, no policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference.engine import prefixes
from inference.engine.request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one request: its prompt, then what was answered.

        tokens    p p p p p p p o o o        len(tokens)
        computed  ─────────► |               keys and values of these positions are in `blocks`

    A waiting sequence has no blocks and nothing computed. Preemption takes both away and keeps the tokens, so that
    the answer goes on exactly where it stopped once they are computed again. What is computed may be the work of
    another sequence that began with the same tokens on the same weights; such blocks are full and only read.
    """

    request: Request
    number: int
    """Order of arrival; the lower, the older."""
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    is_announced: bool = False
    """Whether its owner knows that it was admitted."""
    started_s: float | None = None
    """When the first step that computed it was scheduled."""
    first_token_s: float | None = None
    cached_tokens: int = 0
    """Tokens of the prompt that were computed before this sequence came, at its first admission."""
    _keys: list[prefixes.BlockKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)

    def block_keys(self, count: int, *, block_size: int) -> list[prefixes.BlockKey]:
        """The keys of its first `count` blocks, whose tokens are all known."""
        assert count * block_size <= len(self.tokens), f"expected {count} full blocks in {len(self.tokens)} tokens"
        for index in range(len(self._keys), count):
            before = self._keys[-1] if self._keys else prefixes.root(self.request.adapter_key)
            self._keys.append(prefixes.extend(before, self.tokens[index * block_size : (index + 1) * block_size]))
        return self._keys[:count]

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
