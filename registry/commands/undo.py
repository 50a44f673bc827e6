"""`registry rollback` and `unretire`: taking back what was done."""

from __future__ import annotations

import click

from registry import completion
from registry.commands.publish import VERSION
from registry.options import Session, global_options, with_session


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.option(
    "--alias",
    default="production",
    show_default=True,
    shell_complete=completion.aliases,
    help="The alias to move back.",
)
@click.option("--expect", type=click.IntRange(1), metavar="N", help="Only if it points at N now.")
@click.option("--message", default="", help="Why; kept in the alias's history.")
@click.option("--wait", is_flag=True, help="Wait until every live worker serves the version.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=120, show_default=True, metavar="SECONDS")
@global_options(read_environment=False)
@click.pass_context
def rollback(
    context: click.Context, *, name: str, alias: str, expect: int | None, message: str, wait: bool, timeout_s: float
) -> None:
    """Point an alias of the adapter NAME back at the version before, in one step. A canary split ends.

    Workers that still have the version switch at once.
    """

    async def work(session: Session) -> None:
        from registry.commands.moves import tell_moved

        moved = await session.client.rollback(name, alias=alias, expected_version=expect, message=message)
        await tell_moved(session, moved, dry_run=False, wait_s=timeout_s if wait else None)

    with_session(context, work)


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.argument("version", type=VERSION, shell_complete=completion.numbers)
@global_options(read_environment=False)
@click.pass_context
def unretire(context: click.Context, name: str, version: int) -> None:
    """Bring VERSION of the adapter NAME back: it can be resolved and promoted again."""

    async def work(session: Session) -> None:
        back = await session.client.unretire(name, version)
        if session.printer.writes_documents:
            session.printer.document(back)
        else:
            session.printer.line(f"{name}:{version} is {back.state.value} again")

    with_session(context, work)
