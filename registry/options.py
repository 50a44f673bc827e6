"""Options that every command shares, and what they stand for: a client and a printer. Knows no command.

They are accepted before and after the subcommand; the one nearest to the end of the line wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from registry.client import RegistryClient
    from registry.printing import Printer

DEFAULT_SERVER = "127.0.0.1:7100"

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    client: RegistryClient
    printer: Printer


def with_session(context: click.Context, work: Callable[[Session], Awaitable[None]]) -> None:
    """Connects, runs the command's work on an event loop and closes the connection."""
    from registry.client import RegistryClient
    from registry.errors import RegistryError
    from registry.printing import Printer
    from rpc.channel import connect
    from rpc.security import ClientSecurity

    settings = context.ensure_object(dict)
    printer = Printer(as_json=settings.get("output") == "json")
    server = settings.get("server", DEFAULT_SERVER)
    security = ClientSecurity(ca=settings.get("ca"), token=settings.get("token", ""))

    async def session() -> None:
        async with RegistryClient(connect(server, security=security)) as client:
            await work(Session(client, printer))

    try:
        asyncio.run(session())
    except RegistryError as error:
        if error.code != "UNAVAILABLE":
            raise
        # gRPC's own words name the address three times and end with what matters.
        why = str(error).rpartition(": ")[2] if str(error).startswith("failed to connect") else str(error)
        raise type(error)(f"the registry at {server} is unavailable: {why}") from error


def global_options(*, read_environment: bool) -> Callable[[FunctionT], FunctionT]:
    """Adds --server, --token, --ca and --output; only the outermost command reads the environment."""

    def option(*names: str, variable: str | None = None, **attributes: Any) -> Callable[[FunctionT], FunctionT]:
        shown = f"  [{variable}]" if variable else ""
        attributes["help"] += shown
        envvar = variable if read_environment else None
        return click.option(*names, envvar=envvar, callback=_remember, expose_value=False, **attributes)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    options = (
        option("--server", metavar="HOST:PORT", variable="LORAPLEX_REGISTRY", help="The registry's address."),
        option("--token", metavar="SECRET", variable="LORAPLEX_REGISTRY_TOKEN", help="Bearer token."),
        option("--ca", metavar="FILE", type=file, variable="LORAPLEX_REGISTRY_CA", help="CA of its TLS certificate."),
        option("-o", "--output", type=click.Choice(["table", "json"]), help="Form of the output; table by default."),
    )

    def decorate(function: FunctionT) -> FunctionT:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    settings = context.ensure_object(dict)
    if value is not None and parameter.name is not None:
        settings[parameter.name] = value
