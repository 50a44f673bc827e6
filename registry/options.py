"""Options that every command shares, and what they stand for: a client and a printer. Knows no command.

They are accepted before and after the subcommand; the one nearest to the end of the line wins. A flag is stronger than
the environment, and that than the configuration file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from registry.client import RegistryClient
    from registry.printing import Printer

DEFAULT_SERVER = "127.0.0.1:7100"
FORMS = ("table", "json", "yaml")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    client: RegistryClient
    printer: Printer


def with_session(context: click.Context, work: Callable[[Session], Awaitable[None]]) -> None:
    """Connects, runs the command's work on an event loop and closes the connection."""
    from registry.errors import RegistryError

    printer = make_printer(context)
    server = context.ensure_object(dict).get("server", DEFAULT_SERVER)

    async def session() -> None:
        async with open_client(context) as client:
            await work(Session(client, printer))

    try:
        asyncio.run(session())
    except RegistryError as error:
        if error.code != "UNAVAILABLE":
            raise
        # gRPC's own words name the address three times and end with what matters.
        why = str(error).rpartition(": ")[2] if str(error).startswith("failed to connect") else str(error)
        raise type(error)(f"the registry at {server} is unavailable: {why}") from error


def open_client(context: click.Context) -> RegistryClient:
    """Of the registry that the options name. Only within an event loop."""
    from registry.client import RegistryClient
    from rpc.channel import connect
    from rpc.security import ClientSecurity

    settings = context.ensure_object(dict)
    paths = {name: Path(settings[name]).expanduser() for name in ("ca", "cert", "key") if name in settings}
    security = ClientSecurity(**paths, token=settings.get("token", ""))
    return RegistryClient(connect(settings.get("server", DEFAULT_SERVER), security=security))


def make_printer(context: click.Context, form: str | None = None) -> Printer:
    """Writes in the form given, else in the one that was asked for."""
    from registry.printing import Printer

    return Printer(form or context.ensure_object(dict).get("output", "table"))


def global_options(*, read_environment: bool) -> Callable[[FunctionT], FunctionT]:
    """Adds the options below; only the outermost command reads the environment, and the file behind it."""

    def option(*names: str, variable: str | None = None, **attributes: Any) -> Callable[[FunctionT], FunctionT]:
        shown = f"  [{variable}]" if variable else ""
        attributes["help"] += shown
        envvar = variable if read_environment else None
        return click.option(*names, envvar=envvar, callback=_remember, expose_value=False, **attributes)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    options: tuple[Callable[[Any], Any], ...] = (
        option("--server", metavar="HOST:PORT", variable="LORAPLEX_REGISTRY", help="The registry's address."),
        option("--token", metavar="SECRET", variable="LORAPLEX_REGISTRY_TOKEN", help="Bearer token."),
        option("--ca", metavar="FILE", type=file, variable="LORAPLEX_REGISTRY_CA", help="CA of its TLS certificate."),
        option("--cert", metavar="FILE", type=file, variable="LORAPLEX_REGISTRY_CERT", help="Client certificate."),
        option("--key", metavar="FILE", type=file, variable="LORAPLEX_REGISTRY_KEY", help="Its key."),
        option("-o", "--output", type=click.Choice(FORMS), help="Form of the output; table by default."),
    )
    if read_environment:
        # Eager, so that what the file says is there before the environment and the flags say otherwise.
        config = click.option(
            "--config",
            metavar="FILE",
            type=file,
            envvar="LORAPLEX_REGISTRY_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            help="Defaults for all of these; ~/.config/loraplex/registry.toml.  [LORAPLEX_REGISTRY_CONFIG]",
        )
        options = (config, *options)

    def decorate(function: FunctionT) -> FunctionT:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def _read_config(context: click.Context, _: click.Parameter, given: Path | None) -> None:
    config_home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = given or Path(config_home).expanduser() / "loraplex" / "registry.toml"
    if given is None and not path.exists():
        return
    from registry.config import read_config

    found = read_config(path, options={"server", "token", "ca", "cert", "key", "output"})
    if found.options.get("output", "table") not in FORMS:
        raise click.BadParameter(f"{path}: output: expected one of {', '.join(FORMS)}")
    context.ensure_object(dict).update(found.options, serve=found.serve)


def _remember(context: click.Context, parameter: click.Parameter, value: object) -> None:
    settings = context.ensure_object(dict)
    if value is not None and parameter.name is not None:
        settings[parameter.name] = value
