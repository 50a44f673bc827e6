"""What a shell is offered for a line that is not finished."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from click.shell_completion import ShellComplete

from registry import completion
from registry.cli import cli

OFFERED = {
    "show s": ["sql", "style"],
    "resolve sql@": ["sql@canary", "sql@production"],
    "resolve sql@c": ["sql@canary"],
    "diff sql:1 sql:": ["sql:2", "sql:1"],
    "promote sql ": ["2", "1"],
    "promote sql 2 --alias ca": ["canary"],
    "rollback sql --alias ": ["canary", "production"],
    "list --base ": ["base"],
    "show nothing@": [],
}


def complete(server: str, line: str) -> list[str]:
    """Completes the last word of `registry LINE`."""
    *words, incomplete = ["--server", server, *line.split(" ")]
    return [one.value for one in ShellComplete(cli, {}, "registry", "_").get_completions(words, incomplete)]


async def test_names_come_from_the_registry(
    registry_server: Any, client: Any, base_model: str, new_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completion, "PATIENCE_S", 60.0)
    for adapter, seed in (("sql", 1), ("sql", 2), ("style", 3)):
        await client.register(new_adapter(seed), adapter=adapter, base_model=base_model)
    await client.promote("sql", 1)
    await client.promote("sql", 2, alias="canary")
    found = {line: await asyncio.to_thread(complete, registry_server.address, line) for line in OFFERED}
    assert found == OFFERED


def test_without_a_registry_nothing_is_offered() -> None:
    assert complete("127.0.0.1:1", "show s") == []
