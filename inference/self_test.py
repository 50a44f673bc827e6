"""Tries an adapter on its own probes before anyone is served by it: see adapter.probe for what they say.

    loaded beside ──► each probe: an ordinary greedy request on the new slot, at the lowest priority ──► served
                                          └── another answer than expected ──► AdapterLoadFailed, and never served

Each version is tried once for as long as the process remembers. What failed is refused again without a trial: the files
are immutable and greedy answers repeat.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections import OrderedDict
from pathlib import Path

from adapter.errors import AdapterRefused
from adapter.manifest import PROBE_FILE
from adapter.probe import Probe, parse_probes
from inference.engine.engine import Engine
from inference.engine.request import MAX_PRIORITY, Request, SamplingParams, SlotUse, Token
from inference.errors import AdapterLoadFailed, InvalidRequest, QueueFull
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles
from inference.resolver import Version
from inference.resolver.flights import Flights
from inference.streams import Stream, Streams
from inference.text.vocabularies import Vocabularies

MAX_REMEMBERED = 10_000
TENANT = "self-test"

log = logging.getLogger(__name__)


class SelfTest:
    """Knows which versions passed. `vocab_size` is the base model's."""

    def __init__(
        self, engine: Engine, streams: Streams, adapters: Adapters, vocabularies: Vocabularies, *, vocab_size: int
    ) -> None:
        self._engine = engine
        self._streams = streams
        self._adapters = adapters
        self._vocabularies = vocabularies
        self._vocab_size = vocab_size
        self._outcomes: OrderedDict[str, AdapterLoadFailed | None] = OrderedDict()
        self._trying: Flights[None] = Flights()
        self._ids = itertools.count()

    def has_passed(self, version: Version) -> bool:
        """Whether nothing is left to try. Raises AdapterLoadFailed for a version that failed before."""
        if version.manifest.file(PROBE_FILE) is None:
            return True
        if version.digest not in self._outcomes:
            return False
        self._outcomes.move_to_end(version.digest)
        if (failure := self._outcomes[version.digest]) is not None:
            raise AdapterLoadFailed(str(failure), reasons=failure.reasons)
        return True

    async def run(self, version: Version, folder: Path) -> None:
        """Tries a version that is in memory; its files lie in the folder. Many who wait share one trial.

        Raises AdapterLoadFailed with what was expected and what was found.
        """
        if not self.has_passed(version):
            await self._trying.share(version.digest, lambda: self._try(version, folder))

    async def _try(self, version: Version, folder: Path) -> None:
        try:
            probes = await asyncio.to_thread(_read, version, folder)
            reasons: list[str] = []
            for number, probe in enumerate(probes):
                found = await self._answer(version, folder, probe)
                reasons += [f"probe {number}: {reason}" for reason in compare(probe, found)]
            if reasons:
                raise AdapterLoadFailed(f"{version.name} failed its self-test: {reasons[0]}", reasons=tuple(reasons))
        except AdapterLoadFailed as failure:
            self._remember(version, failure)
            self._adapters.retire(version.digest)
            raise
        self._remember(version, None)
        log.info("%s (%s) answers its %d probes as expected", version.name, version.digest, len(probes))

    async def _answer(self, version: Version, folder: Path, probe: Probe) -> list[Token]:
        """What the version answers, as many tokens as the probe compares. Raises AdapterLoadFailed."""
        tokenizer = await self._vocabularies.of([version]) or self._vocabularies.base
        prompt_ids = probe.token_ids or tuple(tokenizer.encode(probe.prompt))
        if not prompt_ids:
            raise AdapterLoadFailed(f"{version.name}: {PROBE_FILE}: expected prompts with tokens, found one without")
        request_id = f"self-test-{next(self._ids)}"
        stream = await self._submit(version, folder, request_id, prompt_ids, probe)
        try:
            await stream.admitted()
            tokens: list[Token] = []
            async for batch in stream.batches():
                if isinstance(batch, list):
                    tokens += batch
            return tokens
        finally:
            if not stream.is_finished:
                self._engine.cancel(request_id)

    async def _submit(
        self, version: Version, folder: Path, request_id: str, prompt_ids: tuple[int, ...], probe: Probe
    ) -> Stream:
        while True:
            lease = await self._adapters.acquire(AdapterFiles(version.manifest, folder))
            vocab_size = lease.vocab_size or self._vocab_size
            if max((*prompt_ids, *probe.expected_token_ids)) >= vocab_size:
                lease.release()
                raise AdapterLoadFailed(f"{version.name}: {PROBE_FILE}: expected ids below {vocab_size}")
            request = Request(
                id=request_id,
                prompt_ids=prompt_ids,
                sampling=SamplingParams(max_tokens=probe.leading, logprobs=0 if probe.logprobs else None),
                uses=(SlotUse(lease.slot, lease.digest),),
                arrival_s=time.monotonic(),
                tenant=TENANT,
                priority=-MAX_PRIORITY,
            )
            try:
                return self._streams.open(self._engine, request, [lease])
            except InvalidRequest as error:  # longer than the context
                raise AdapterLoadFailed(f"{version.name}: {PROBE_FILE}: {error}") from error
            except QueueFull as error:  # those who wait are not kept from it by a trial
                await asyncio.sleep(error.retry_after_s or 1.0)

    def _remember(self, version: Version, outcome: AdapterLoadFailed | None) -> None:
        self._outcomes[version.digest] = outcome
        while len(self._outcomes) > MAX_REMEMBERED:
            self._outcomes.popitem(last=False)


def compare(probe: Probe, found: list[Token]) -> list[str]:
    """What of an answer is not as expected: the first other token, or the log-probabilities that are too far off."""
    expected = list(probe.expected_token_ids[: probe.leading])
    actual = [token.token_id for token in found]
    if actual != expected:
        return [f"expected the tokens {expected}, found {actual}"]
    return [
        f"token {place}: expected a log-probability of {logprob:.4f} ± {probe.tolerance:g}, found {token.logprob:.4f}"
        for place, (logprob, token) in enumerate(zip(probe.logprobs, found, strict=False))
        if token.logprob is None or abs(token.logprob - logprob) > probe.tolerance
    ]


def _read(version: Version, folder: Path) -> tuple[Probe, ...]:
    """The probes of the manifest. Raises AdapterLoadFailed when the folder holds others."""
    expected = version.manifest.file(PROBE_FILE)
    assert expected is not None, f"expected probes in {version.name}"
    try:
        raw = (folder / PROBE_FILE).read_bytes()
        if (found := f"sha256:{hashlib.sha256(raw).hexdigest()}") != expected.digest:
            raise AdapterLoadFailed(f"{version.name}: {PROBE_FILE}: expected {expected.digest}, found {found}")
        return parse_probes(raw)
    except OSError as error:
        raise AdapterLoadFailed(f"{version.name}: {PROBE_FILE}: {error.strerror or error}") from error
    except AdapterRefused as refused:
        raise AdapterLoadFailed(str(refused), reasons=refused.reasons) from refused
