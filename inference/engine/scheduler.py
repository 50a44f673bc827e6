"""What the next step computes. Pure policy over numbers: no tensors, no threads, no clock of its own.

    add ──► waiting ──admit──► running: prefill ──► decode ──► done
                ▲                           │          │
                └───────── preempt ─────────┴──────────┘   first of all waiting, tokens kept, blocks given back

The order of a step: every decoding sequence gets its one token, then prefills under way go on, oldest first, then new
sequences are admitted while the token budget, the rows and the blocks last. A sequence is admitted with the blocks of
all its known tokens, so only decoding needs more later; when none is free the newest sequence is preempted. The oldest
never is, and any request fits alone, so every request ends.

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
from inference.engine.request import Admitted, Event, Failed, Finished, FinishReason, Request, Token
from inference.engine.sequence import Chunk, Sampled, Sequence
from inference.errors import EngineFailed, InferenceError, PromptTooLong

_BY_AGE = attrgetter("number")


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
        self._sequences: dict[str, Sequence] = {}
        self._running: list[Sequence] = []  # oldest first
        self._running_by_adapter: Counter[AdapterKey] = Counter()
        self._preempted: list[Sequence] = []  # oldest first
        self._queue = FairQueue()
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._queue) + len(self._preempted)

    @property
    def num_waiting_tokens(self) -> int:
        """Of the prompts in the queue; preempted sequences have left it."""
        return self._queue.num_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def check_fits(self, request: Request) -> None:
        """Raises PromptTooLong if the request could never run. Reads limits only, so any thread may ask."""
        if len(request.prompt_ids) >= self.limits.max_context:
            raise PromptTooLong(
                f"expected a prompt of at most {self.limits.max_context - 1} tokens, which leaves room for one token "
                f"in a context of {self.limits.max_context}; found {len(request.prompt_ids)}",
                field="prompt",
            )

    def add(self, request: Request) -> None:
        """Puts a request that fits into the queue."""
        assert request.id not in self._sequences, f"request {request.id} is already here"
        sequence = Sequence(request, number=self._arrivals)
        self._arrivals += 1
        self._sequences[request.id] = sequence
        self._queue.push(sequence)

    def schedule(self, now_s: float) -> list[Chunk]:
        """What the next step computes; empty when there is nothing to do.

        Decoding sequences come first, those of one adapter side by side. Hands out the blocks that the step fills;
        nothing else changes until `complete`, so a step that never ran can be scheduled again.
        """
        preemptions = self.num_preemptions
        decodes = self._schedule_decodes()
        budget = self.limits.max_step_tokens - len(decodes)
        prefills = [sequence for sequence in self._running if sequence.remaining > 1]
        if self.num_preemptions == preemptions:
            prefills += self._admit(budget - sum(sequence.remaining for sequence in prefills), now_s)
        decodes.sort(key=lambda chunk: [use.slot for use in chunk.sequence.request.uses])
        return decodes + _divide(budget, prefills)

    def complete(self, chunks: list[Chunk], sampled: list[Sampled | None], now_s: float) -> list[Event]:
        """Takes in a step that ran; `sampled` has one entry for each chunk that samples, in order.

        None for a chunk whose logits are not numbers: its request fails, and its neighbours do not.
        """
        tokens = iter(sampled)
        events: list[Event] = []
        for chunk in chunks:
            sequence = chunk.sequence
            token = next(tokens) if chunk.samples else None
            if chunk.samples and token is None:
                events += self.fail([sequence.request.id], EngineFailed("the logits are not finite numbers"))
                continue
            sequence.computed += chunk.length
            self._publish(sequence, chunk.start)
            if not sequence.is_announced:
                sequence.is_announced = True
                events.append(Admitted(sequence.request.id, sequence.cached_tokens))
            if token is not None:
                events += self._append(sequence, token, now_s)
        return events

    def cancel(self, request_id: str, now_s: float) -> list[Event]:
        """Ends a request; nothing if it is not here, because it may just have ended by itself."""
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else [self._finish(sequence, FinishReason.CANCELLED, now_s)]

    def fail(self, request_ids: Iterable[str], error: InferenceError) -> list[Event]:
        """Ends requests with an error."""
        failed = [self._sequences[request_id] for request_id in request_ids]
        for sequence in failed:
            self._remove(sequence)
        return [Failed(sequence.request.id, error) for sequence in failed]

    def request_ids(self) -> list[str]:
        """Every request that has not ended."""
        return list(self._sequences)

    def check_integrity(self) -> None:
        """Asserts that every sequence is in one place, with exactly the blocks that it needs, and no block is lost."""
        waiting = [*self._preempted, *self._queue]
        assert len(self._queue) == len(list(self._queue)), "the queue miscounts itself"
        assert self._queue.num_tokens == sum(len(sequence.tokens) for sequence in self._queue), "it miscounts tokens"
        placed = [sequence.request.id for sequence in [*self._running, *waiting]]
        assert sorted(placed) == sorted(self._sequences), "a sequence is in no place, or in two"
        for line in (self._running, self._preempted):
            assert line == sorted(line, key=_BY_AGE), "sequences are not in the order of their age"
        assert len(self._running) <= self.limits.max_running, "more sequences run than are allowed"
        alike = Counter(sequence.request.adapter_key for sequence in self._running)
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
        self.blocks.check_integrity(sequence.blocks for sequence in self._running)

    def _schedule_decodes(self) -> list[Chunk]:
        chunks = []
        for sequence in list(self._running):
            if sequence.remaining > 1:
                continue
            # Victims are the newest, so they come after `sequence`, are not in `chunks`, and leave no block behind.
            if sequence.blocks and self._grow(sequence):
                chunks.append(Chunk(sequence, sequence.computed, 1, samples=True))
        return chunks

    def _grow(self, sequence: Sequence) -> bool:
        """Gives a decoding sequence the block of its next position; False if it was itself the newest and had to go."""
        missing = self.blocks.needed_for(len(sequence.tokens)) - len(sequence.blocks)
        while self.blocks.num_free < missing:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += self.blocks.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.computed = 0
        bisect.insort(self._preempted, sequence, key=_BY_AGE)
        self.num_preemptions += 1

    def _admit(self, budget: int, now_s: float) -> list[Sequence]:
        """Lets sequences in while there is budget for at least one token of each; nobody's turn is skipped."""
        admitted: list[Sequence] = []
        while budget > 0 and len(self._running) < self.limits.max_running:
            sequence = self._preempted[0] if self._preempted else self._queue.next(self._may_run)
            if sequence is None:
                break
            # Beside its own blocks, one for each running sequence stays free: else it would soon be preempted again.
            cached = self._find_prefix(sequence)
            missing = self.blocks.needed_for(len(sequence.tokens)) - len(cached)
            if missing + len(self._running) > self.blocks.num_free - self.blocks.num_kept_of(cached):
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
            self._running_by_adapter[sequence.request.adapter_key] += 1
            admitted.append(sequence)
            budget -= sequence.remaining
        return admitted

    def _may_run(self, adapter_key: AdapterKey) -> bool:
        return self._running_by_adapter[adapter_key] < self.limits.max_running_alike

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a waiting sequence; never its last token, whose logits are wanted."""
        return self.blocks.find(self._keys(sequence, (len(sequence.tokens) - 1) // self.blocks.block_size))

    def _publish(self, sequence: Sequence, start: int) -> None:
        """Lets others find the blocks that became full since the position `start`."""
        first, end = start // self.blocks.block_size, sequence.computed // self.blocks.block_size
        if end > first:
            for block, key in list(zip(sequence.blocks, self._keys(sequence, end), strict=False))[first:]:
                self.blocks.publish(block, key)

    def _keys(self, sequence: Sequence, count: int) -> list[BlockKey]:
        return sequence.block_keys(count, block_size=self.blocks.block_size) if self.is_prefix_cached else []

    def _append(self, sequence: Sequence, sampled: Sampled, now_s: float) -> list[Event]:
        request = sequence.request
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        index = sequence.num_outputs
        sequence.tokens.append(sampled.token_id)
        token = Token(request.id, index, sampled.token_id, sampled.logprob, sampled.alternatives)
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
        )

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.id]
        if sequence.blocks:
            self._leave(sequence)
        elif sequence in self._preempted:
            self._preempted.remove(sequence)
        else:
            self._queue.remove(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Takes a running sequence out and gives its blocks back."""
        self._running.remove(sequence)
        self._running_by_adapter[sequence.request.adapter_key] -= 1
        if not self._running_by_adapter[sequence.request.adapter_key]:
            del self._running_by_adapter[sequence.request.adapter_key]
        self.blocks.release(sequence.blocks)
        sequence.blocks = []


def _divide(budget: int, prefills: list[Sequence]) -> list[Chunk]:
    """As much of each sequence in turn as the budget still allows."""
    chunks = []
    for sequence in prefills:
        length = min(sequence.remaining, budget)
        if length == 0:
            break
        chunks.append(Chunk(sequence, sequence.computed, length, samples=length == sequence.remaining))
        budget -= length
    return chunks
