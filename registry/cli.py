"""The `registry` command: serve, and everything a person or a script asks of a registry.

Everything heavy is imported by the command that needs it, so that
`registry --help` is quick.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import NoReturn

import click

from registry import exits
from registry.commands.base import base
from registry.commands.blobs import gc
from registry.commands.database import backup, check, restore, upgrade
from registry.commands.db import db
from registry.commands.inspect import diff, history, lineage, verify
from registry.commands.look import list_adapters, resolve, show, status, watch
from registry.commands.publish import promote, register, retire
from registry.commands.rights import audit, protect, token, unprotect
from registry.commands.signing import policy, sign
from registry.commands.undo import rollback, unretire
from registry.options import global_options


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    return exits.run(cli, arguments, name="registry")


# `\b` keeps click from filling a paragraph.
EPILOG = f"""\b
Exit codes:
{exits.describe()}

\b
Completion, for bash; zsh and fish have a *_source of their own:
  eval "$(_REGISTRY_COMPLETE=bash_source registry)"
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=EPILOG)
@global_options(read_environment=True)
@click.version_option(package_name="loraplex")
def cli() -> None:
    """Keeps LoRA adapters: versions, aliases, and who serves what.

    \b
    registry base add smollm2 ./SmolLM2-135M-Instruct
    registry register ./my-adapter --name sql --base smollm2
    registry promote sql 1 --wait
    """


@cli.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; loopback unless callers prove who they are.")
@click.option("--data-dir", metavar="DIR", help="Where files and the registry's own Postgres live.")
@click.option("--database-url", metavar="URL", help="A Postgres server to use instead of its own.  [DATABASE_URL]")
@click.option("--tls-cert", metavar="FILE", help="TLS certificate.")
@click.option("--tls-key", metavar="FILE", help="Its key.")
@click.option("--client-ca", metavar="FILE", help="CA of client certificates, which callers must then show.")
@click.option("--token-file", metavar="FILE", help="Lines of `NAME SHA256-IN-HEX`, one per bearer token.")
@click.option("--client-scopes", metavar="FILE", help="Lines of `SUBJECT SCOPE,…`: what the certificates open.")
@click.option("--drain-s", metavar="SECONDS", help="How long running calls may take to finish at the end.")
@click.pass_context
def serve(context: click.Context, /, **given: str | None) -> None:
    """Run a registry until SIGTERM or Ctrl-C.

    With neither --token-file nor --client-ca everyone may do everything, and it listens on loopback only. Whoever is in
    the token file is an admin, and makes the tokens of everyone else with `registry token create`.

    Each option is also an environment variable, LORAPLEX_REGISTRY_LISTEN and so on, and a key under [serve] in the
    configuration file.
    """
    from registry import app
    from registry.config import combine_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    flags = {name: value for name, value in given.items() if value is not None}
    asyncio.run(app.run(combine_settings(context.ensure_object(dict).get("serve", {}), os.environ, flags)))


for _command in (
    audit,
    base,
    db,
    diff,
    gc,
    history,
    lineage,
    list_adapters,
    policy,
    promote,
    protect,
    register,
    resolve,
    retire,
    rollback,
    show,
    sign,
    status,
    token,
    unprotect,
    unretire,
    verify,
    watch,
):
    cli.add_command(_command)
for _command in (backup, check, restore, upgrade):
    db.add_command(_command)
