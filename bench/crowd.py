"""Clients of an engine in this process that name adapters, as the service's requests do: leased, loaded if need be."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest, ManifestFile, digest_file
from inference.app import Core
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.lora.reading import AdapterFiles


@dataclass(slots=True)
class Answer:
    """One answer, and when its pieces came: perf_counter times, beside that of the request."""

    digest: str
    began: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.began

    def gaps_s(self, after: float = 0.0) -> list[float]:
        """Between one piece and the next, of those that came after a time."""
        return [second - first for first, second in pairwise(self.times) if first >= after]


class Crowd:
    """Asks one core. Prompts are ordinary token ids that differ from each other, so that no cache can answer."""

    def __init__(self, core: Core, *, prompt_tokens: int = 32) -> None:
        self._core = core
        self._prompt_tokens = prompt_tokens
        self._ids = itertools.count()

    def prompt(self, number: int) -> tuple[int, ...]:
        return tuple(1000 + (number * 7919 + i * 31) % 40000 for i in range(self._prompt_tokens))

    async def ask(
        self,
        files: AdapterFiles,
        *,
        max_tokens: int,
        prompt: tuple[int, ...] | None = None,
        until: float = 0.0,
        on_tokens: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """One answer, from before its adapter is leased; `until` a perf_counter time where that is not 0.

        `on_tokens` is told of every piece.
        """
        number, began = next(self._ids), time.perf_counter()
        lease = await self._core.adapters.acquire(files)
        request = Request(
            id=f"crowd-{number}",
            prompt_ids=prompt or self.prompt(number),
            sampling=SamplingParams(max_tokens=max_tokens),
            uses=(SlotUse(lease.slot, lease.digest),),
            arrival_s=time.monotonic(),
        )
        answer = Answer(lease.digest, began)
        stream = self._core.streams.open(self._core.engine, request, [lease])
        async for tokens in stream.batches():
            if not isinstance(tokens, list):
                break
            answer.times.append(now := time.perf_counter())
            answer.tokens += [token.token_id for token in tokens]
            if on_tokens is not None:
                on_tokens(answer)
            if until and now > until and not stream.is_finished:
                self._core.engine.cancel(request.id)
        return answer

    async def rush(self, picks: Sequence[AdapterFiles], *, streams: int, max_tokens: int) -> float:
        """Tokens/s of so many clients that share a list of what to ask for, one after the other."""
        left = iter(picks)

        async def client() -> int:
            return sum([len((await self.ask(files, max_tokens=max_tokens)).tokens) for files in left])

        began = time.perf_counter()
        tokens = sum(await asyncio.gather(*(client() for _ in range(streams))))
        return tokens / (time.perf_counter() - began)


def register(folder: Path, source: Path, *, count: int) -> list[AdapterFiles]:
    """So many adapters of the same weights and a configuration of their own each: other digests, one file on disk."""
    config = json.loads((source / CONFIG_FILE).read_text())
    size, digest = (source / WEIGHTS_FILE).stat().st_size, digest_file(source / WEIGHTS_FILE)
    registered = []
    for number in range(count):
        mine = folder / f"{number:05d}"
        mine.mkdir(parents=True, exist_ok=True)
        if not (mine / WEIGHTS_FILE).exists():
            os.link(source / WEIGHTS_FILE, mine / WEIGHTS_FILE)
        text = json.dumps({**config, "revision": f"{number:05d}"})
        (mine / CONFIG_FILE).write_text(text)
        files = (
            ManifestFile(CONFIG_FILE, len(text), digest_file(mine / CONFIG_FILE)),
            ManifestFile(WEIGHTS_FILE, size, digest),
        )
        registered.append(AdapterFiles(Manifest(files), mine))
    return registered
