"""Makes the probes of an adapter: asks it, on a worker's core without its doors, and writes down what it answers.

An expected answer ends its leading part before the first token whose rival was nearly as likely: another precision, or
another order of summing, could choose the rival.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapter.manifest import PROBE_FILE
from adapter.probe import parse_probes
from inference.app import Core, open_core
from inference.engine.request import Request, SamplingParams, SlotUse, Token
from inference.errors import AdapterLoadFailed, InvalidRequest
from inference.lora.reading import AdapterFiles
from inference.resolver.intake import read_manifest
from inference.settings import Settings

# In natural logarithms: the best token is then at least 1.6 times as likely as the second.
NEAR_TIE = 0.5


async def write_probes(settings: Settings, folder: Path, prompts: Sequence[str], *, num_tokens: int) -> list[str]:
    """Writes the folder's probe.json. Returns one line for each prompt: what it was answered.

    Raises AdapterLoadFailed, and InvalidRequest for a prompt whose very first token has a rival.
    """
    path = folder / PROBE_FILE
    path.unlink(missing_ok=True)  # the probes of other weights say nothing about these
    async with open_core(settings) as core:
        manifest = read_manifest(folder)
        answers = [await _answer(core, AdapterFiles(manifest, folder), prompt, num_tokens) for prompt in prompts]
        document = {"probes": [_probe(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]}
        raw = json.dumps(document, indent=1).encode()
        parse_probes(raw)
        path.write_bytes(raw)
        return [core.tokenizer.decode([token.token_id for token in answer]) for answer in answers]


async def _answer(core: Core, files: AdapterFiles, prompt: str, num_tokens: int) -> list[Token]:
    lease = await core.adapters.acquire(files)
    if lease.vocab_size is not None:
        lease.release()
        raise AdapterLoadFailed("expected an adapter of the base model's words, found one with words of its own")
    request = Request(
        id=f"probe-{prompt}",
        prompt_ids=tuple(core.tokenizer.encode(prompt)),
        sampling=SamplingParams(num_tokens, logprobs=2),
        uses=(SlotUse(lease.slot, lease.digest),),
        arrival_s=time.monotonic(),
    )
    stream = core.streams.open(core.engine, request, [lease])
    await stream.admitted()
    return [token async for batch in stream.batches() if isinstance(batch, list) for token in batch]


def _probe(prompt: str, answer: Sequence[Token]) -> dict[str, Any]:
    leading = 0
    for token in answer:
        (_, best), (_, second) = token.alternatives
        if best - second < NEAR_TIE:
            break
        leading += 1
    if not leading:
        raise InvalidRequest(f"{prompt!r}: expected a first token that is clear, found two that are nearly as likely")
    return {
        "prompt": prompt,
        "expected_token_ids": [token.token_id for token in answer],
        "leading": leading,
        "logprobs": [round(token.logprob or 0.0, 4) for token in answer],
    }


def probing_settings(model: Path, dtype: str) -> Settings:
    """Of a core that answers one request at a time."""
    return Settings(model=model, dtype=dtype, max_batch=1, kv_memory=128 * 2**20)
