"""`registry diff`, `history`, `lineage` and `verify`: where things come from, and whether they are still whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from registry import completion
from registry.options import Session, global_options, with_session

if TYPE_CHECKING:
    from registry.client import RegistryClient
    from registry.resources import LineageKey


@click.command()
@click.argument("one", metavar="A", shell_complete=completion.references)
@click.argument("other", metavar="B", shell_complete=completion.references)
@global_options(read_environment=False)
@click.pass_context
def diff(context: click.Context, one: str, other: str) -> None:
    """Show in what two versions differ: NAME:NUMBER, NAME@ALIAS or a digest."""

    async def work(session: Session) -> None:
        from adapter.names import Reference
        from registry.commands.look import find_version
        from registry.views import differences

        versions = [await find_version(session.client, Reference.parse(name)) for name in (one, other)]
        found = differences(*versions)
        names = [f"{version.adapter}:{version.number}" for version in versions]
        if session.printer.writes_documents:
            changes = [{"fact": fact, "a": mine, "b": theirs} for fact, mine, theirs in found]
            session.printer.document({"a": names[0], "b": names[1], "differences": changes})
            return
        session.printer.table(("", *names), found, empty=f"{names[0]} and {names[1]} do not differ")

    with_session(context, work)


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.option(
    "--alias",
    default="production",
    show_default=True,
    shell_complete=completion.aliases,
    help="The alias whose history it is.",
)
@global_options(read_environment=False)
@click.pass_context
def history(context: click.Context, name: str, alias: str) -> None:
    """Show where an alias of the adapter NAME pointed, newest first; it is kept for ever."""

    async def work(session: Session) -> None:
        from registry.views import change_row

        changes = await session.client.list_alias_changes(name, alias=alias)
        if session.printer.writes_documents:
            session.printer.document({"changes": changes})
            return
        rows = [change_row(change) for change in changes]
        session.printer.table(("REVISION", "WHEN", "FROM", "TO", "BY", "WHY"), rows, empty="no changes")

    with_session(context, work)


@click.command()
@click.argument("reference", metavar="[REF]", default="", shell_complete=completion.references)
@click.option(
    "--base",
    "base_model",
    default="",
    shell_complete=completion.base_models,
    metavar="NAME",
    help="A base model instead of a version.",
)
@click.option("--descendants", is_flag=True, help="What was made from it, instead of what it was made from.")
@click.option("--depth", type=click.IntRange(1, 32), default=32, show_default=True, help="How many steps to go.")
@global_options(read_environment=False)
@click.pass_context
def lineage(context: click.Context, *, reference: str, base_model: str, descendants: bool, depth: int) -> None:
    """Draw what the version REF, or a base model, was made from."""
    if bool(reference) == bool(base_model):
        raise click.UsageError("expected a version such as sql:3, or --base NAME", context)

    async def work(session: Session) -> None:
        from registry.resources import LineageDirection
        from registry.views import tree_lines

        direction = LineageDirection.DESCENDANTS if descendants else LineageDirection.ANCESTORS
        start = await _start(session.client, reference, base_model)
        found = await session.client.lineage(start, direction, max_depth=depth)
        if session.printer.writes_documents:
            session.printer.document(found)
            return
        for line in tree_lines(found, direction):
            session.printer.line(line)

    with_session(context, work)


async def _start(client: RegistryClient, reference: str, base_model: str) -> LineageKey:
    from adapter.names import Reference
    from registry.commands.look import find_version
    from registry.resources import LineageKey, LineageKind

    if base_model:
        return LineageKey(LineageKind.BASE_MODEL, base_model)
    version = await find_version(client, Reference.parse(reference))
    return LineageKey(LineageKind.ADAPTER_VERSION, f"{version.adapter}:{version.number}")


@click.command()
@click.argument("reference", metavar="REF", shell_complete=completion.references)
@global_options(read_environment=False)
@click.pass_context
def verify(context: click.Context, reference: str) -> None:
    """Hash the stored files of the version REF again, and repeat the check that it passed when it was registered."""

    async def work(session: Session) -> None:
        from adapter.names import Reference
        from registry.commands.look import find_version
        from registry.errors import VersionDamaged

        version = await find_version(session.client, Reference.parse(reference))
        problems = await session.client.verify(version.adapter, version.number)
        name = f"{version.adapter}:{version.number}"
        if session.printer.writes_documents:
            session.printer.document({"version": name, "digest": version.digest, "problems": list(problems)})
        if problems:
            raise VersionDamaged(f"{name} is not what was registered", reasons=problems)
        if not session.printer.writes_documents:
            files = len(version.manifest.files)
            session.printer.line(f"{name} is intact: {files} files hashed, and it fits {version.base_model}")

    with_session(context, work)
