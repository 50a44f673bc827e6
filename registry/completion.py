"""What the shell may complete: names of adapters, aliases, base models and numbers of versions, asked of the registry.

A completion that takes long or fails offers nothing, and says nothing. Bash takes `@` and `:` for the ends of words, so
there only names complete; zsh and fish go on behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from registry.options import open_client

if TYPE_CHECKING:
    from registry.client import RegistryClient
    from registry.resources import Adapter

# A shell that hangs longer than this is a nuisance.
PATIENCE_S = 2.0


def adapters(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of adapters."""
    return _ask(context, lambda client: _names(client, incomplete))


def aliases(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Aliases of the adapter that the line names."""

    async def ask(client: RegistryClient) -> list[str]:
        return _starting(incomplete, _aliases(await client.get_adapter(_named(context))))

    return _ask(context, ask)


def numbers(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Numbers of the versions of the adapter that the line names, the newest first."""

    async def ask(client: RegistryClient) -> list[str]:
        return _starting(incomplete, _numbers(await client.get_adapter(_named(context))))

    return _ask(context, ask)


def references(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of adapters, and behind one its aliases or the numbers of its versions."""

    async def ask(client: RegistryClient) -> list[str]:
        for separator, choices in (("@", _aliases), (":", _numbers)):
            name, found, _rest = incomplete.partition(separator)
            if found:
                adapter = await client.get_adapter(name)
                return _starting(incomplete, [f"{name}{separator}{one}" for one in choices(adapter)])
        return await _names(client, incomplete)

    return _ask(context, ask)


def base_models(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of base models."""

    async def ask(client: RegistryClient) -> list[str]:
        return _starting(incomplete, [one.name for one in await client.list_base_models()])

    return _ask(context, ask)


def _named(context: click.Context) -> str:
    """The line's first argument; click leaves it among the rest while an option after it has no value."""
    return context.params.get("name") or next((one for one in context.args if not one.startswith("-")), "")


async def _names(client: RegistryClient, incomplete: str) -> list[str]:
    return [one.name for one in await client.list_adapters(name_prefix=incomplete)]


def _aliases(adapter: Adapter) -> list[str]:
    return [one.alias for one in adapter.aliases]


def _numbers(adapter: Adapter) -> list[str]:
    return [str(number) for number in range(adapter.latest_version, 0, -1)]


def _starting(incomplete: str, found: list[str]) -> list[str]:
    return [one for one in found if one.startswith(incomplete)]


def _ask(context: click.Context, ask: Callable[[RegistryClient], Awaitable[list[str]]]) -> list[str]:
    from rpc.errors import DomainError

    async def session() -> list[str]:
        async with asyncio.timeout(PATIENCE_S), open_client(context) as client:
            return await ask(client)

    try:
        return asyncio.run(session())
    except (DomainError, TimeoutError, click.ClickException):
        return []
