"""`registry gc`: the stored files that no version needs."""

from __future__ import annotations

import click

from registry.options import Session, global_options, with_session


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be removed and remove nothing.")
@click.option(
    "--grace-hours", type=click.FloatRange(0), default=24, show_default=True, help="Keep what was used since."
)
@global_options(read_environment=False)
@click.pass_context
def gc(context: click.Context, dry_run: bool, grace_hours: float) -> None:
    """Remove stored files that no version needs, and that nobody uploaded or asked for lately.

    Retired versions keep their files. Uploads and registrations may go on meanwhile.
    """

    async def work(session: Session) -> None:
        from registry.printing import size

        found = await session.client.upkeep.collect(grace_s=grace_hours * 3600, validate_only=dry_run)
        if session.printer.writes_documents:
            session.printer.document(found)
            return
        if dry_run:
            for digest in found.digests:
                session.printer.line(digest)
        what = "would remove" if dry_run else "removed"
        session.printer.line(f"{what} {found.count} files, {size(found.size_bytes)}")

    with_session(context, work)
