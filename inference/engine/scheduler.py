"""What the next step computes. Pure policy over numbers: no tensors, no threads, no clock of its own.

    add ──► queue ──admit──► running: prefill ──► decode ──► done
              ▲                │          │          │
              ├──── preempt ───┴──────────┴──────────┤   tokens kept, blocks given back
              └──── resume ◄── paused ◄──── pause ───┘   tokens kept, blocks too while nobody needs them

The order of a step: sequences whose turn it is are admitted while the rows and the blocks last, every decoding sequence
gets its one token, and prefills share the rest of the token budget. A request for several answers is admitted as one
sequence that counts as many rows, forks once its prompt is computed, and from then on its answers are sequences like
any other.

Turns go by tenant (see fair_queue), a step's prefill tokens are divided among tenants by weight, oldest first within
one, and a tenant with fewer rows than its fair share takes them from those with more: their newest sequences are
preempted. So a flood by one tenant delays another's first token by at most a step and its own prompt at its share.

A sequence is admitted with the blocks of all its known tokens, so only decoding needs more later. When none is free,
paused sequences lose theirs, and then the newest running one is preempted. The oldest never is, and any request fits
alone, so every request ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from inference.engine.admission import Admission
from inference.engine.blocks import BlockPool
from inference.engine.places import Places
from inference.engine.request import (
    Admitted,
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptScored,
    Reloaded,
    Request,
    Token,
)
from inference.engine.running import RowLimits
from inference.engine.sequence import Chunk, Sampled, Sequence
from inference.engine.shares import divide
from inference.engine.tenants import AnswerLengths, Tenants
from inference.errors import InferenceError, InvalidRequest, PromptTooLong

# Of prompts, in a step: each has the logits of the whole vocabulary, 300 MB for one of 150 000 tokens.
MAX_SCORED_ROWS = 512


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a step and the queue may hold.

    max_context: tokens of one prompt and answer together. max_running: sequences in a step. max_step_tokens: rows of a
    step, prefill and decode together. max_waiting, max_waiting_tokens: requests in the queue and tokens of their
    prompts, beyond which submission is refused; a prompt longer than that may wait alone. max_adapters: distinct
    adapters in a step; None for any number.
    """

    max_context: int
    max_running: int
    max_step_tokens: int
    max_waiting: int
    max_waiting_tokens: int
    max_adapters: int | None = None


class Scheduler:
    """Owns every sequence and the block pool. One thread at a time may call it.

    `is_prefix_cached`: whether sequences may begin with blocks that others computed.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        num_blocks: int,
        block_size: int,
        is_prefix_cached: bool = True,
        tenants: Tenants | None = None,
    ) -> None:
        self.limits = limits
        self.tenants = tenants or Tenants()
        self.blocks = BlockPool(num_blocks=num_blocks, block_size=block_size)
        if limits.max_context > num_blocks * block_size:
            raise ValueError(
                f"a context of {limits.max_context} tokens does not fit {num_blocks} blocks of {block_size} positions"
            )
        if limits.max_step_tokens < limits.max_running:
            raise ValueError(
                f"max_step_tokens: expected at least max_running = {limits.max_running}, found {limits.max_step_tokens}"
            )
        self._requests: dict[str, list[Sequence]] = {}  # those of their answers that have not ended
        rows = RowLimits(limits.max_running, limits.max_adapters)
        self._places = Places(self.blocks, rows, self.tenants, is_prefix_cached=is_prefix_cached)
        self._running, self._queue, self._tables = self._places.running, self._places.queue, self._places.tables
        self._admission = Admission(
            self._places, self.tenants, max_rows=limits.max_running, max_tokens=limits.max_step_tokens
        )
        self._paused: dict[str, list[Sequence]] = {}  # by request
        self._lengths = AnswerLengths()
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        """Rows of the answers under way."""
        return self._running.num_rows

    @property
    def num_preemptions(self) -> int:
        """Times that a sequence lost its blocks."""
        return self._places.num_preemptions

    @property
    def num_paused(self) -> int:
        """Requests, each with all its answers."""
        return len(self._paused)

    @property
    def num_waiting(self) -> int:
        """In the queue, preempted sequences too."""
        return len(self._queue)

    @property
    def num_waiting_tokens(self) -> int:
        """Known tokens of what is in the queue."""
        return self._queue.num_tokens

    def waiting_of(self, tenant: str) -> tuple[int, int]:
        """How many sequences of a tenant are in the queue, and with how many known tokens."""
        return self._queue.waiting_of(tenant)

    @property
    def has_work(self) -> bool:
        """Whether there is something to compute: paused requests alone are not."""
        return bool(self._running) or bool(self._queue)

    def check_fits(self, request: Request) -> None:
        """Raises PromptTooLong or InvalidRequest if it could never run. Reads limits only, so any thread may ask."""
        limits, most = self.limits, self.tenants.of(request.tenant).max_rows
        rows = limits.max_running if most is None else min(limits.max_running, most)
        if request.answers > rows:
            raise InvalidRequest(f"n: expected at most the {rows} rows of a step, found {request.answers}", field="n")
        adapters = {use.digest for use in request.uses}
        if limits.max_adapters is not None and len(adapters) > limits.max_adapters:
            raise InvalidRequest(
                f"adapters: expected at most the {limits.max_adapters} of a step, found {len(adapters)}",
                field="adapters",
            )
        if len(request.prompt_ids) >= self.limits.max_context:
            raise PromptTooLong(
                f"expected a prompt of at most {self.limits.max_context - 1} tokens, which leaves room for one token "
                f"in a context of {self.limits.max_context}; found {len(request.prompt_ids)}",
                field="prompt",
            )

    def add(self, request: Request) -> None:
        """Puts a request that fits into the queue, at the cost of what is not cached yet and of an usual answer."""
        assert request.id not in self._requests, f"request {request.id} is already here"
        sequence = Sequence(request, number=self._arrivals, rows=request.answers)
        self._arrivals += 1
        self._requests[request.id] = [sequence]
        prompt = len(request.prompt_ids) - len(self._tables.cached(sequence)) * self.blocks.block_size
        answer = self._lengths.expected(request.tenant, request.sampling.max_tokens)
        self._queue.push(sequence, cost=prompt + request.answers * answer)

    def schedule(self, now_s: float) -> list[Chunk]:
        """What the next step computes; empty when there is nothing to do.

        Decoding sequences come first, those of one adapter side by side. Hands out rows and blocks, and nothing else
        changes until `complete`, so a step that never ran can be scheduled again.
        """
        self._fork_all()
        self._admission.admit(now_s)
        self._fork_all()
        decodes = self._schedule_decodes()
        decodes.sort(key=lambda chunk: [use.slot for use in chunk.sequence.request.uses])
        return decodes + self._schedule_prefills(self.limits.max_step_tokens - len(decodes))

    def complete(self, chunks: list[Chunk], sampled: list[Sampled | InferenceError], now_s: float) -> list[Event]:
        """Takes in a step that ran; `sampled` has one entry for each chunk that samples, in order.

        An error for a chunk that has no next token: its request fails, and its neighbours do not.
        """
        tokens = iter(sampled)
        events: list[Event] = []
        for chunk in chunks:
            sequence = chunk.sequence
            token = next(tokens) if chunk.samples else None
            if sequence.request.id not in self._requests:
                continue  # another answer of it failed in this very step
            if isinstance(token, InferenceError):
                events += self.fail([sequence.request.id], token)
                continue
            sequence.computed += chunk.length
            self._tables.complete(sequence, chunk.start)
            if not sequence.is_announced:
                sequence.is_announced = True
                events.append(Admitted(sequence.request.id, sequence.cached_tokens))
            events += _score_prompt(sequence)
            if token is not None:
                events += self._append(sequence, token, now_s)
        return events

    def cancel(self, request_id: str, now_s: float, *, answer: int | None = None) -> list[Event]:
        """Ends a request, or one answer of it that has had a token; nothing if it is not here: it may just have ended.

        A request that has not forked yet is Finished once, for all its answers.
        """
        sequences = list(self._requests.get(request_id, []))
        if answer is not None:
            sequences = [sequence for sequence in sequences if sequence.answer == answer and sequence.rows == 1]
        return [self._finish(sequence, FinishReason.CANCELLED, now_s) for sequence in sequences]

    def fail(self, request_ids: Iterable[str], error: InferenceError) -> list[Event]:
        """Ends requests, each with all its answers, with an error."""
        failed = list(dict.fromkeys(request_ids))
        for request_id in failed:
            for sequence in list(self._requests[request_id]):
                self._remove(sequence)
        return [Failed(request_id, error) for request_id in failed]

    def pause(self, request_id: str) -> None:
        """Takes a request's rows and turns until `resume`; it keeps its blocks until others need them."""
        if request_id not in self._requests or request_id in self._paused:
            return
        for sequence in self._requests[request_id]:
            if sequence in self._running:
                self._places.park(sequence)
            else:
                self._queue.remove(sequence)
        self._paused[request_id] = list(self._requests[request_id])

    def resume(self, request_id: str) -> None:
        """Lets a paused request go on when it is its turn."""
        for sequence in self._paused.pop(request_id, []):
            self._queue.push(sequence, cost=0)

    def reload(self, name: str, *, slot: int, digest: str) -> list[Event]:
        """Lets every request that follows a name go on with other weights from the next step on.

        What the old ones computed of it stays its own, to be computed again only after a preemption. A request whose
        owner does not know yet that it was admitted begins anew.
        """
        moved = [
            sequence
            for answers in self._requests.values()
            for sequence in answers
            if any(use.follows == name for use in sequence.request.uses)
        ]
        running = [sequence for sequence in self._running if sequence in moved]
        for sequence in running:
            self._places.park(sequence)
        for sequence in moved:
            if not sequence.is_announced:
                self._places.begin_anew(sequence)
            sequence.follow(name, slot=slot, digest=digest)
        for sequence in running:
            # A step has a place for so many adapters, and some of the others may keep the old weights.
            if sequence.blocks and self._running.has_rows_for(sequence):
                self._places.unpark(sequence)
            else:
                self._queue.push(sequence, cost=0)
        return [
            Reloaded(sequence.request.id, sequence.num_outputs, sequence.request.uses, answer=sequence.answer + other)
            for sequence in moved
            for other in range(sequence.rows)
        ]

    def not_begun(self) -> list[str]:
        """Requests that no step has computed anything of."""
        return [id_ for id_, answers in self._requests.items() if answers[0].started_s is None]

    def check_integrity(self) -> None:
        """Asserts that every sequence is in one place, with exactly the blocks that it needs, and no block is lost."""
        paused = [sequence for sequences in self._paused.values() for sequence in sequences]
        everywhere = [*self._running, *self._queue, *paused]
        placed = [(one.request.id, one.answer) for one in everywhere]
        known = [(id_, one.answer) for id_, answers in self._requests.items() for one in answers]
        assert sorted(placed) == sorted(known), "a sequence is in no place, or in two"
        assert all(self._requests.values()), "a request without answers is still here"
        for sequence in everywhere:
            assert 0 <= sequence.computed < len(sequence.tokens) <= self.limits.max_context, "it should have ended"
        self._places.check_integrity(paused)

    def _fork_all(self) -> None:
        """Lets every answer go on by itself whose prompt is computed but for its last token."""
        for sequence in [one for one in self._running if one.rows > 1 and one.remaining == 1]:
            self._running.remove(sequence)
            others = self._tables.fork(sequence)
            self._requests[sequence.request.id] += others
            for one in [sequence, *others]:
                self._running.add(one)

    def _schedule_decodes(self) -> list[Chunk]:
        chunks = []
        index = 0
        while index < len(self._running):  # which loses the newest, at its end, when blocks run out
            sequence = self._running[index]
            if sequence.remaining == 1 and self._places.grow(sequence):
                copy = None if sequence.copied is None else (sequence.copied, sequence.blocks[-1])
                chunks.append(Chunk(sequence, sequence.computed, 1, samples=True, copy=copy))
            index += 1
        return chunks

    def _schedule_prefills(self, budget: int) -> list[Chunk]:
        """The budget, divided among tenants by weight; within one, as much of each sequence in turn as is left."""
        prefills = [sequence for sequence in self._running if sequence.remaining > 1]
        wanted: Counter[str] = Counter()
        for sequence in prefills:
            wanted[sequence.request.tenant] += _prefill_length(sequence)
        left = divide(budget, wanted, self.tenants.weight_of)
        chunks = []
        scored_left = MAX_SCORED_ROWS
        for sequence in prefills:
            length = min(_prefill_length(sequence), left[sequence.request.tenant])
            if sequence.wants_scores:
                length = min(length, scored_left)
                scored_left -= length
            if length:
                left[sequence.request.tenant] -= length
                chunks.append(Chunk(sequence, sequence.computed, length, samples=length == sequence.remaining))
        return chunks

    def _append(self, sequence: Sequence, sampled: Sampled, now_s: float) -> list[Event]:
        request = sequence.request
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        index = sequence.num_outputs
        sequence.tokens.append(sampled.token_id)
        token = Token(
            request.id, index, sampled.token_id, sampled.logprob, sampled.alternatives, answer=sequence.answer
        )
        if sampled.token_id in request.stop_token_ids:
            return [token, self._finish(sequence, FinishReason.STOP, now_s)]
        if sequence.num_outputs == request.sampling.max_tokens or len(sequence.tokens) == self.limits.max_context:
            return [token, self._finish(sequence, FinishReason.LENGTH, now_s)]
        return [token]

    def _finish(self, sequence: Sequence, reason: FinishReason, now_s: float) -> Finished:
        self._remove(sequence)
        if sequence.num_outputs:
            self._lengths.note(sequence.request.tenant, sequence.num_outputs)
        arrival_s = sequence.request.arrival_s
        started_s = now_s if sequence.started_s is None else sequence.started_s
        first_token_s = now_s if sequence.first_token_s is None else sequence.first_token_s
        return Finished(
            sequence.request.id,
            reason,
            output_tokens=sequence.num_outputs,
            queued_s=started_s - arrival_s,
            first_token_s=first_token_s - arrival_s,
            total_s=now_s - arrival_s,
            answer=sequence.answer,
            is_last=sequence.request.id not in self._requests,
        )

    def _remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, with its blocks."""
        id_ = sequence.request.id
        if sequence in self._running:
            self._running.remove(sequence)
        elif id_ in self._paused:
            _take_out(self._paused, id_, sequence)
        else:
            self._queue.remove(sequence)
        _take_out(self._requests, id_, sequence)
        self._places.leave(sequence)


def _take_out(sequences: dict[str, list[Sequence]], request_id: str, sequence: Sequence) -> None:
    sequences[request_id].remove(sequence)
    if not sequences[request_id]:
        del sequences[request_id]


def _prefill_length(sequence: Sequence) -> int:
    """Tokens that a prefill still computes; the last one is left to each of several answers."""
    return sequence.remaining - (sequence.rows > 1)


def _score_prompt(sequence: Sequence) -> list[Event]:
    """The scores of its prompt, once, when all are there."""
    request = sequence.request
    if request.sampling.prompt_logprobs is None or sequence.is_scored:
        return []
    if sequence.computed < len(request.prompt_ids) - 1:
        return []
    sequence.is_scored = True
    return [PromptScored(request.id, tuple(sequence.prompt_scores))]
