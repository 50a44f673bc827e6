"""One answer in the making, and a step's share of it. Knows tokens and block numbers; no tensors, no policy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from inference.engine import prefixes
from inference.engine.constraint import Walk
from inference.engine.request import Request, Score


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one answer: its request's prompt, then what was answered.

        tokens    p p p p p p p o o o        len(tokens)
        computed  ─────────► |               keys and values of these positions are in `blocks`

    A waiting sequence has no blocks and nothing computed. Preemption takes both away and keeps the tokens, so that
    the answer goes on exactly where it stopped once they are computed again. What is computed may be the work of
    another sequence that began with the same tokens on the same weights; such blocks are full and only read.

    A request for n answers begins as one sequence that stands for n rows. It computes the prompt but for its last token
    and then forks: each answer goes on by itself from there, and its first step computes that token. The block that
    they share and that is not full is copied by whoever writes to it.
    """

    request: Request
    number: int
    """Order of arrival of the request; the lower, the older."""
    answer: int = 0
    """Which answer of the request it is."""
    rows: int = 1
    """Answers that it stands for: those of its request until it forks, then 1."""
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    copied: int | None = None
    """The block that the step under way copies before it writes, and holds until then; see Chunk.copy."""
    is_announced: bool = False
    """Whether its owner knows that it was admitted."""
    started_s: float | None = None
    """When the first step that computed it was scheduled."""
    first_token_s: float | None = None
    cached_tokens: int = 0
    """Tokens of the prompt that were computed before this sequence came, at its first admission."""
    prompt_scores: list[Score] = field(default_factory=list)
    """Of the prompt's tokens from the second on, as far as the runner has computed them, if they were asked for."""
    is_scored: bool = False
    """Whether its owner has those."""
    is_mixed: bool = False
    """Whether other weights than the request's computed some of what is in `blocks`: then nobody else may find it."""
    walks: tuple[Walk, ...] = field(init=False)
    """Its own way through each constraint of the request; functions of its tokens, so preemption leaves them be."""
    _keys: list[prefixes.BlockKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        self.walks = tuple(constraint.begin() for constraint in self.request.constraints)

    def block_keys(self, count: int, *, block_size: int) -> list[prefixes.BlockKey]:
        """The keys of its first `count` blocks, whose tokens are all known."""
        assert count * block_size <= len(self.tokens), f"expected {count} full blocks in {len(self.tokens)} tokens"
        for index in range(len(self._keys), count):
            before = self._keys[-1] if self._keys else prefixes.root(self.request.adapter_key)
            self._keys.append(prefixes.extend(before, self.tokens[index * block_size : (index + 1) * block_size]))
        return self._keys[:count]

    def follow(self, name: str, *, slot: int, digest: str) -> None:
        """Goes on with these weights wherever its request follows the name."""
        uses = tuple(
            replace(use, slot=slot, digest=digest) if use.follows == name else use for use in self.request.uses
        )
        self.request = replace(self.request, uses=uses)
        self._keys.clear()
        self.is_mixed = self.computed > 0

    @property
    def known_keys(self) -> list[prefixes.BlockKey]:
        """The block keys that were asked for so far."""
        return self._keys

    def fork(self) -> list[Sequence]:
        """The other answers of its request, which hold nothing yet; from now on it stands for itself alone."""
        others = [
            Sequence(
                self.request,
                self.number,
                answer=answer,
                is_announced=True,
                is_scored=True,
                started_s=self.started_s,
                cached_tokens=self.cached_tokens,
                is_mixed=self.is_mixed,
                _keys=list(self._keys),
            )
            for answer in range(1, self.rows)
        ]
        self.rows = 1
        return others

    @property
    def age(self) -> tuple[int, int]:
        """Sorts the oldest first."""
        return self.number, self.answer

    @property
    def wants_scores(self) -> bool:
        """Whether its prompt is to be scored and its owner does not have the scores yet."""
        return self.request.sampling.prompt_logprobs is not None and not self.is_scored

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

    `samples` when it reaches the last known token, whose logits give the next one. `copy`: (from, to), a block whose
    contents must be copied before the step, as others go on reading it.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool
    copy: tuple[int, int] | None = None

    @property
    def num_scored(self) -> int:
        """Rows from its first on whose logits score the prompt's next token: of a request that asked, and once."""
        sequence = self.sequence
        if not sequence.wants_scores:
            return 0
        return max(0, min(self.start + self.length, len(sequence.request.prompt_ids) - 1) - self.start)

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.length]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for a chunk, its log-probability if asked for, and alternatives as in request.Token."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
