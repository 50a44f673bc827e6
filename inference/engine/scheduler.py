"""What the next step computes. Pure policy over numbers: no tensors, no threads, no clock of its own.

    add ──► waiting ──admit──► running: prefill ──► decode ──► done
                ▲                           │          │
                └───────── preempt ─────────┴──────────┘   first of all waiting, tokens kept, blocks given back

The order of a step: every decoding sequence gets its one token, then prefills under way go on, oldest first, then new
sequences are admitted while the token budget, the rows and the blocks last. A sequence is admitted with the blocks of
all its known tokens, so only decoding needs more later; when none is free the newest sequence is preempted. The oldest
never is, and any request fits alone, so every request ends.

A request for several answers is admitted as one sequence that counts as many rows, forks once its prompt is computed,
and from then on its answers are sequences like any other.

A full block that was computed is published under a key of its weights and tokens (see prefixes), and a sequence that is
admitted takes the published blocks of its beginning instead of computing them; its last token it always computes.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from inference.engine.blocks import BlockPool
from inference.engine.fair_queue import FairQueue
from inference.engine.prefixes import AdapterKey, BlockKey
from inference.engine.request import Admitted, Event, Failed, Finished, FinishReason, PromptScored, Request, Token
from inference.engine.sequence import Chunk, Sampled, Sequence
from inference.errors import InferenceError, InvalidRequest, PromptTooLong

_BY_AGE = attrgetter("age")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a step and the queue may hold.

    max_context: tokens of one prompt and answer together. max_running: sequences in a step. max_running_alike: those of
    them on the same adapters. max_step_tokens: rows of a step, prefill and decode together. max_waiting,
    max_waiting_tokens: requests in the queue and tokens of their prompts, beyond which submission is refused; a prompt
    longer than that may wait alone.

    With max_running_alike below max_running no flood for one adapter can take every row: beside it alone, the first
    request for another is in the next step that has tokens and blocks left.
    """

    max_context: int
    max_running: int
    max_running_alike: int
    max_step_tokens: int
    max_waiting: int
    max_waiting_tokens: int


class Scheduler:
    """Owns every sequence and the block pool. One thread at a time may call it.

    `is_prefix_cached`: whether sequences may begin with blocks that others computed.
    """

    def __init__(self, limits: Limits, *, num_blocks: int, block_size: int, is_prefix_cached: bool = True) -> None:
        self.limits = limits
        self.is_prefix_cached = is_prefix_cached
        self.blocks = BlockPool(num_blocks=num_blocks, block_size=block_size)
        if limits.max_context > num_blocks * block_size:
            raise ValueError(
                f"a context of {limits.max_context} tokens does not fit {num_blocks} blocks of {block_size} positions"
            )
        if limits.max_step_tokens < limits.max_running:
            raise ValueError(
                f"max_step_tokens: expected at least max_running = {limits.max_running}, found {limits.max_step_tokens}"
            )
        self.num_preemptions = 0
        self._requests: dict[str, list[Sequence]] = {}  # those of their answers that have not ended
        self._running: list[Sequence] = []  # oldest first
        self._running_by_adapter: Counter[AdapterKey] = Counter()
        self._preempted: list[Sequence] = []  # oldest first
        self._queue = FairQueue()
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        """Rows of the answers under way."""
        return self._running_by_adapter.total()

    @property
    def num_waiting(self) -> int:
        return len(self._queue) + len(self._preempted)

    @property
    def num_waiting_tokens(self) -> int:
        """Of the prompts in the queue; preempted sequences have left it."""
        return self._queue.num_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def check_fits(self, request: Request) -> None:
        """Raises PromptTooLong or InvalidRequest if it could never run. Reads limits only, so any thread may ask."""
        rows = min(self.limits.max_running, self.limits.max_running_alike)
        if request.answers > rows:
            raise InvalidRequest(f"n: expected at most the {rows} rows of a step, found {request.answers}", field="n")
        if len(request.prompt_ids) >= self.limits.max_context:
            raise PromptTooLong(
                f"expected a prompt of at most {self.limits.max_context - 1} tokens, which leaves room for one token "
                f"in a context of {self.limits.max_context}; found {len(request.prompt_ids)}",
                field="prompt",
            )

    def add(self, request: Request) -> None:
        """Puts a request that fits into the queue."""
        assert request.id not in self._requests, f"request {request.id} is already here"
        sequence = Sequence(request, number=self._arrivals, rows=request.answers)
        self._arrivals += 1
        self._requests[request.id] = [sequence]
        self._queue.push(sequence)

    def schedule(self, now_s: float) -> list[Chunk]:
        """What the next step computes; empty when there is nothing to do.

        Decoding sequences come first, those of one adapter side by side. Hands out the blocks that the step fills;
        nothing else changes until `complete`, so a step that never ran can be scheduled again.
        """
        preemptions = self.num_preemptions
        self._fork_all()
        decodes = self._schedule_decodes()
        budget = self.limits.max_step_tokens - len(decodes)
        prefills = [sequence for sequence in self._running if sequence.remaining > 1]
        if self.num_preemptions == preemptions:
            prefills += self._admit(budget - sum(sequence.remaining for sequence in prefills), now_s)
        decodes.sort(key=lambda chunk: [use.slot for use in chunk.sequence.request.uses])
        return decodes + _divide(budget, prefills)

    def complete(self, chunks: list[Chunk], sampled: list[Sampled | InferenceError], now_s: float) -> list[Event]:
        """Takes in a step that ran; `sampled` has one entry for each chunk that samples, in order.

        An error for a chunk that could not be answered: its request fails with it, and its neighbours do not.
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
            self._end_copy(sequence)
            self._publish(sequence, chunk.start)
            if not sequence.is_announced:
                sequence.is_announced = True
                events.append(Admitted(sequence.request.id, sequence.cached_tokens))
            events += self._score_prompt(sequence)
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

    def request_ids(self) -> list[str]:
        """Every request that has not ended."""
        return list(self._requests)

    def check_integrity(self) -> None:
        """Asserts that every sequence is in one place, with exactly the blocks that it needs, and no block is lost."""
        waiting = [*self._preempted, *self._queue]
        assert len(self._queue) == len(list(self._queue)), "the queue miscounts itself"
        assert self._queue.num_tokens == sum(len(sequence.tokens) for sequence in self._queue), "it miscounts tokens"
        placed = [(one.request.id, one.answer) for one in [*self._running, *waiting]]
        known = [(id_, one.answer) for id_, answers in self._requests.items() for one in answers]
        assert sorted(placed) == sorted(known), "a sequence is in no place, or in two"
        assert all(self._requests.values()), "a request without answers is still here"
        for line in (self._running, self._preempted):
            assert line == sorted(line, key=_BY_AGE), "sequences are not in the order of their age"
        assert self.num_running <= self.limits.max_running, "more answers run than are allowed"
        alike: Counter[AdapterKey] = Counter()
        for sequence in self._running:
            alike[sequence.request.adapter_key] += sequence.rows
        assert all(n <= self.limits.max_running_alike for n in alike.values()), "an adapter has too many rows"
        assert alike == self._running_by_adapter, "the rows of an adapter are miscounted"
        for sequence in self._running:
            assert self.blocks.needed_for(len(sequence.tokens) - 1) <= len(sequence.blocks), "a block is missing"
            assert len(sequence.blocks) <= self.blocks.needed_for(len(sequence.tokens)), "a block is too many"
            assert 0 <= sequence.computed < len(sequence.tokens) <= self.limits.max_context, "it should have ended"
            full = sequence.computed // self.blocks.block_size
            for block, key in zip(sequence.blocks, self._keys(sequence, full), strict=False):
                assert self.blocks.key_of(block) in (None, key), "a block holds other tokens, or those of other weights"
            assert not any(map(self.blocks.key_of, sequence.blocks[full:])), "a block was published before it is full"
        for sequence in waiting:
            assert not sequence.blocks, "a waiting sequence holds blocks"
            assert sequence.computed == 0, "a waiting sequence has lost what it computed"
        self.blocks.check_integrity(_held(sequence) for sequence in self._running)

    def _fork_all(self) -> None:
        """Lets every answer go on by itself whose prompt is computed but for its last token."""
        for sequence in [one for one in self._running if one.rows > 1 and one.remaining == 1]:
            self._fork(sequence)

    def _fork(self, sequence: Sequence) -> None:
        shared = sequence.blocks[: self.blocks.needed_for(sequence.computed)]
        for other in sequence.fork():
            self.blocks.share(shared)
            other.blocks, other.computed = list(shared), sequence.computed
            self._requests[sequence.request.id].append(other)
            bisect.insort(self._running, other, key=_BY_AGE)

    def _schedule_decodes(self) -> list[Chunk]:
        chunks = []
        index = 0
        while index < len(self._running):  # which loses the newest, at its end, when blocks run out
            sequence = self._running[index]
            if sequence.remaining == 1 and self._grow(sequence):
                chunks.append(Chunk(sequence, sequence.computed, 1, samples=True, copy=_copy_of(sequence)))
            index += 1
        return chunks

    def _grow(self, sequence: Sequence) -> bool:
        """Gives a decoding sequence the block of its next position, as its own; False if it was itself the newest and
        had to go."""
        while True:
            missing = self.blocks.needed_for(len(sequence.tokens)) - len(sequence.blocks)
            last = sequence.blocks[-1] if sequence.blocks and not missing else None
            copies = sequence.copied is None and last is not None and self.blocks.is_shared(last)
            if missing + copies <= self.blocks.num_free:
                break
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if copies:
            sequence.copied = sequence.blocks.pop()  # held until the step has run, which a step that fails may not
        sequence.blocks += self.blocks.allocate(missing + copies)
        return True

    def _end_copy(self, sequence: Sequence) -> None:
        if sequence.copied is not None:
            self.blocks.release([sequence.copied])
            sequence.copied = None

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.computed = 0
        if not sequence.is_scored:
            sequence.prompt_scores.clear()
        bisect.insort(self._preempted, sequence, key=_BY_AGE)
        self.num_preemptions += 1

    def _admit(self, budget: int, now_s: float) -> list[Sequence]:
        """Lets sequences in while there is budget for at least one token of each; nobody's turn is skipped."""
        admitted: list[Sequence] = []
        while budget > 0:
            sequence = self._preempted[0] if self._preempted else self._queue.next(self._may_run)
            if sequence is None or self.num_running + sequence.rows > self.limits.max_running:
                break
            # Beside its own blocks, one for each other answer stays free: else it would soon be preempted again.
            cached = self._find_prefix(sequence)
            missing = self.blocks.needed_for(len(sequence.tokens)) - len(cached)
            spare = self.num_running + sequence.rows - 1 if self._running else 0
            if missing + spare > self.blocks.num_free - self.blocks.num_kept_of(cached):
                break
            if self._preempted:
                self._preempted.pop(0)
            else:
                self._queue.pop(sequence)
            self.blocks.share(cached)
            sequence.blocks = cached + self.blocks.allocate(missing)
            sequence.computed = len(cached) * self.blocks.block_size
            if sequence.started_s is None:
                sequence.started_s = now_s
                sequence.cached_tokens = sequence.computed
            bisect.insort(self._running, sequence, key=_BY_AGE)
            self._running_by_adapter[sequence.request.adapter_key] += sequence.rows
            if sequence.rows > 1 and sequence.remaining == 1:
                self._fork(sequence)
            admitted.append(sequence)
            budget -= sequence.remaining
        return admitted

    def _may_run(self, sequence: Sequence) -> bool:
        rows = self._running_by_adapter[sequence.request.adapter_key] + sequence.rows
        return rows <= self.limits.max_running_alike

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a waiting sequence; never its last token, whose logits are wanted, and none
        if those of its whole prompt are."""
        if sequence.request.sampling.prompt_logprobs is not None and not sequence.is_scored:
            return []
        return self.blocks.find(self._keys(sequence, (len(sequence.tokens) - 1) // self.blocks.block_size))

    def _publish(self, sequence: Sequence, start: int) -> None:
        """Lets others find the blocks that became full since the position `start`."""
        first, end = start // self.blocks.block_size, sequence.computed // self.blocks.block_size
        if end > first:
            for block, key in list(zip(sequence.blocks, self._keys(sequence, end), strict=False))[first:]:
                self.blocks.publish(block, key)

    def _keys(self, sequence: Sequence, count: int) -> list[BlockKey]:
        return sequence.block_keys(count, block_size=self.blocks.block_size) if self.is_prefix_cached else []

    def _score_prompt(self, sequence: Sequence) -> list[Event]:
        """The scores of its prompt, once, when all are there."""
        request = sequence.request
        if request.sampling.prompt_logprobs is None or sequence.is_scored:
            return []
        if sequence.computed < len(request.prompt_ids) - 1:
            return []
        sequence.is_scored = True
        return [PromptScored(request.id, tuple(sequence.prompt_scores))]

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
        answers = self._requests[sequence.request.id]
        answers.remove(sequence)
        if not answers:
            del self._requests[sequence.request.id]
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in self._preempted:
            self._preempted.remove(sequence)
        else:
            self._queue.remove(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Takes a running sequence out and gives its blocks back."""
        self._running.remove(sequence)
        self._running_by_adapter[sequence.request.adapter_key] -= sequence.rows
        if not self._running_by_adapter[sequence.request.adapter_key]:
            del self._running_by_adapter[sequence.request.adapter_key]
        self._end_copy(sequence)
        self.blocks.release(sequence.blocks)
        sequence.blocks = []


def _held(sequence: Sequence) -> list[int]:
    return sequence.blocks if sequence.copied is None else [*sequence.blocks, sequence.copied]


def _copy_of(sequence: Sequence) -> tuple[int, int] | None:
    return None if sequence.copied is None else (sequence.copied, sequence.blocks[-1])


def _divide(budget: int, prefills: list[Sequence]) -> list[Chunk]:
    """As much of each sequence in turn as the budget still allows."""
    chunks = []
    for sequence in prefills:
        length = min(sequence.remaining - (sequence.rows > 1), budget)  # the last token is left to each of its answers
        if length == 0:
            break
        chunks.append(Chunk(sequence, sequence.computed, length, samples=length == sequence.remaining))
        budget -= length
    return chunks
