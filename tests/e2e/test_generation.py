"""What a client can ask of Generate, through the real service on the real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = "The lighthouse keeper wrote down every ship that passed, the hour, the wind and the colour of its sails. " * 8


async def test_a_second_request_says_how_much_of_its_prompt_was_cached_and_answers_the_same(
    system: Any, e2e: Any
) -> None:
    async with system.stub() as stub:
        first = await e2e.generate(stub, e2e.ask(LONG, "pirate", logprobs=1))
        second = await e2e.generate(stub, e2e.ask(LONG, "pirate", logprobs=1))
        other = await e2e.generate(stub, e2e.ask(LONG, "json"))
        base = await e2e.generate(stub, e2e.ask(LONG))
    assert first.started.cached_tokens == other.started.cached_tokens == base.started.cached_tokens == 0
    assert 0 <= second.started.prompt_tokens - 1 - second.started.cached_tokens < 16
    assert second.token_ids == first.token_ids
    for one, again in zip(first.logprobs, second.logprobs, strict=True):
        assert again.logprob == pytest.approx(one.logprob, abs=1e-3)


async def test_a_promoted_version_never_finds_what_the_one_before_it_cached(
    system: Any, e2e: Any, adapters_dir: Path
) -> None:
    for name in ("sql", "classify"):  # which no other request has used
        await system.cli("register", str(adapters_dir / name), "--name", "cached", "--base", e2e.BASE)
    await system.cli("promote", "cached", "1", "--wait")
    async with system.stub() as stub:
        before = await e2e.generate(stub, e2e.ask(LONG, "cached"))
        await system.cli("promote", "cached", "2", "--wait")
        after = await e2e.generate(stub, e2e.ask(LONG, "cached"))
        assert (before.version, after.version) == (1, 2)
        assert after.started.cached_tokens == 0
        expected = await e2e.generate(stub, e2e.ask(LONG, "classify"))
    assert after.token_ids == expected.token_ids
