"""`registry db`: what the people who run a registry do with its database."""

from __future__ import annotations

import click

from registry.options import Session, global_options, with_session


@click.group()
@global_options(read_environment=False)
def db() -> None:
    """Look after the registry's database."""


@db.command()
@click.option("--keep-revisions", type=click.IntRange(0), metavar="N", help="Keep the newest N; default by the server.")
@click.option("--keep-days", type=click.FloatRange(0), metavar="DAYS", help="Keep those younger than this.")
@global_options(read_environment=False)
@click.pass_context
def compact(context: click.Context, keep_revisions: int | None, keep_days: float | None) -> None:
    """Remove old events now; a revision stays while either limit covers it.

    The registry does this by itself every hour. Watchers that ask for a removed event take a snapshot instead.
    """

    async def work(session: Session) -> None:
        keep_s = None if keep_days is None else keep_days * 86_400
        done = await session.client.upkeep.compact(keep_revisions=keep_revisions, keep_s=keep_s)
        if session.printer.writes_documents:
            session.printer.document(done)
        else:
            session.printer.line(
                f"removed {done.removed_events} events; those after revision {done.compacted_revision} "
                f"of {done.revision} are kept"
            )

    with_session(context, work)
