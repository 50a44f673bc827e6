"""The engine's policy with a pretended model: its KV cache holds tokens, so every wrong position is found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from inference.engine.request import Admitted, Event, Failed, Finished, Request, SamplingParams, SlotUse, Token
from inference.engine.scheduler import Limits, Scheduler
from inference.engine.sequence import Chunk, Sampled
from inference.engine.tenants import Tenants
from inference.errors import InferenceError

VOCABULARY = 50


def next_token(adapter_key: object, tokens: Sequence[int]) -> int:
    """The pretended model: a function of the weights and of every token before."""
    digest = hashlib.blake2b(repr((adapter_key, tuple(tokens))).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


class TokenRunner:
    """Writes tokens where keys and values would be, and reads the whole context back through the blocks."""

    def __init__(self, *, block_size: int) -> None:
        self.block_size = block_size
        self.cache: dict[tuple[int, int], int] = {}
        self.steps: list[list[Chunk]] = []

    def run(self, chunks: list[Chunk]) -> list[Sampled | InferenceError]:
        for source, target in [chunk.copy for chunk in chunks if chunk.copy is not None]:
            for offset in range(self.block_size):
                self.cache[target, offset] = self.cache.get((source, offset), -1)
        for chunk in chunks:
            assert chunk.start == chunk.sequence.computed
            for position, token in enumerate(chunk.token_ids, start=chunk.start):
                self.cache[self._place(chunk, position)] = token
        sampled: list[Sampled | InferenceError] = []
        for chunk in chunks:
            end = chunk.start + chunk.length
            seen = [self.cache[self._place(chunk, position)] for position in range(end)]
            assert seen == chunk.sequence.tokens[:end], "a position of the cache belongs to somebody else"
            assert chunk.samples == (end == len(chunk.sequence.tokens))
            if chunk.samples:
                request, answer = chunk.sequence.request, chunk.sequence.answer
                sampled.append(Sampled(next_token((request.adapter_key, request.sampling.seed + answer), seen)))
        self.steps.append(chunks)
        return sampled

    @property
    def computed_tokens(self) -> int:
        return sum(chunk.length for chunks in self.steps for chunk in chunks)

    def _place(self, chunk: Chunk, position: int) -> tuple[int, int]:
        return chunk.sequence.blocks[position // self.block_size], position % self.block_size


class Simulation:
    """A scheduler and the pretended model, step by step, with a clock that counts steps."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_context: int = 64,
        max_running: int = 8,
        max_step_tokens: int = 32,
        max_waiting: int = 1000,
        max_waiting_tokens: int = 10_000,
        max_adapters: int | None = None,
        is_prefix_cached: bool = True,
        tenants: Tenants | None = None,
    ) -> None:
        limits = Limits(
            max_context,
            max_running,
            max_step_tokens,
            max_waiting,
            max_waiting_tokens,
            max_adapters,
        )
        self.scheduler = Scheduler(
            limits,
            num_blocks=num_blocks,
            block_size=block_size,
            is_prefix_cached=is_prefix_cached,
            tenants=tenants,
        )
        self.runner = TokenRunner(block_size=block_size)
        self.now_s = 0.0
        self.outputs: dict[str, list[int]] = {}  # of a request's first answer
        self.others: dict[tuple[str, int], list[int]] = {}  # of every other one
        self.ended_answers: dict[tuple[str, int], Finished] = {}
        self.cached: dict[str, int] = {}
        self.ends: dict[str, Finished | Failed] = {}
        self._ids = count()

    def request(
        self,
        prompt: Sequence[int] | int = 3,
        *,
        max_tokens: int = 4,
        adapter: str | None = None,
        weight: float = 1.0,
        stop: Sequence[int] = (),
        id: str = "",
        seed: int = 0,
        answers: int = 1,
        tenant: str | None = None,
        priority: int = 0,
    ) -> Request:
        """A request with its own id; a number as the prompt stands for so many tokens. Its tenant is its adapter."""
        number = next(self._ids)
        tokens = [(number + i) % VOCABULARY for i in range(prompt)] if isinstance(prompt, int) else prompt
        uses = () if adapter is None else (SlotUse(slot=len(adapter), digest=adapter, weight=weight),)
        params = SamplingParams(max_tokens, seed=seed)
        return Request(
            id or f"r{number}",
            tuple(tokens),
            params,
            frozenset(stop),
            uses,
            arrival_s=self.now_s,
            answers=answers,
            tenant=tenant if tenant is not None else adapter or "",
            priority=priority,
        )

    def submit(self, prompt: Sequence[int] | int = 3, **options: object) -> Request:
        request = self.request(prompt, **options)  # type: ignore[arg-type]  # the same keywords
        self.scheduler.check_fits(request)
        self.scheduler.add(request)
        return request

    def step(self) -> list[Chunk]:
        chunks = self.scheduler.schedule(self.now_s)
        self.scheduler.check_integrity()
        sampled = self.runner.run(chunks)
        self.now_s += 1.0
        self.take(self.scheduler.complete(chunks, sampled, self.now_s))
        self.scheduler.check_integrity()
        return chunks

    def cancel(self, request: Request) -> None:
        self.take(self.scheduler.cancel(request.id, self.now_s))
        self.scheduler.check_integrity()

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert event.request_id not in self.ends, "nothing follows the end of a request"
            if isinstance(event, Admitted):
                assert event.request_id not in self.cached, "a request is admitted once"
                self.cached[event.request_id] = event.cached_tokens
            elif isinstance(event, Token):
                assert event.request_id in self.cached, "nothing is answered before the request is admitted"
                assert (event.request_id, event.answer) not in self.ended_answers, (
                    "nothing follows the end of an answer"
                )
                outputs = self.answers(event.request_id, event.answer)
                assert event.index == len(outputs)
                outputs.append(event.token_id)
            elif isinstance(event, Finished | Failed):
                if isinstance(event, Finished):
                    self.ended_answers[event.request_id, event.answer] = event
                if isinstance(event, Failed) or event.is_last:
                    self.ends[event.request_id] = event

    def answers(self, request_id: str, answer: int) -> list[int]:
        """The tokens of one answer so far."""
        if answer == 0:
            return self.outputs.setdefault(request_id, [])
        return self.others.setdefault((request_id, answer), [])

    def run(self) -> None:
        while self.scheduler.has_work:
            assert self.step(), "work is left and nothing was scheduled"
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks

    def answer_alone(self, request: Request, answer: int = 0) -> list[int]:
        """What the pretended model answers with no batch, no chunks, no blocks and no preemption."""
        tokens, outputs = list(request.prompt_ids), list[int]()
        while len(outputs) < request.sampling.max_tokens and len(tokens) < self.scheduler.limits.max_context:
            outputs.append(next_token((request.adapter_key, request.sampling.seed + answer), tokens))
            tokens.append(outputs[-1])
            if outputs[-1] in request.stop_token_ids:
                break
        return outputs


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Simulation]:
    """Makes a Simulation."""
    return Simulation
