"""`registry list`, `show`, `resolve`, `watch` and `status`: everything that only looks."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from registry import completion
from registry.options import Session, global_options, with_session

if TYPE_CHECKING:
    from adapter.names import Reference
    from registry.client import RegistryClient
    from registry.resources import AdapterVersion

# Versions are checked before they are kept, so none is merely registered.
STATES = ("validated", "rejected", "retired")


@click.command("list")
@click.option(
    "--base", "base_model", default="", shell_complete=completion.base_models, help="Only adapters of this base model."
)
@global_options(read_environment=False)
@click.pass_context
def list_adapters(context: click.Context, base_model: str) -> None:
    """List adapters by name, with what their aliases point at."""

    async def work(session: Session) -> None:
        from registry.printing import adapter_row

        adapters = await session.client.list_adapters(base_model=base_model)
        if session.printer.writes_documents:
            session.printer.document({"adapters": adapters})
            return
        session.printer.table(
            ("NAME", "BASE MODEL", "LATEST", "ALIASES", "CREATED"),
            [adapter_row(adapter) for adapter in adapters],
            empty=f"no adapters{f' of {base_model}' if base_model else ''} yet; "
            f"`registry register PATH --name NAME --base {base_model or 'BASE'}` adds one",
        )

    with_session(context, work)


@click.command()
@click.argument("reference", metavar="NAME[:NUMBER|@ALIAS]", shell_complete=completion.references)
@click.option("--state", type=click.Choice(STATES), help="Of an adapter, only the versions in this state.")
@global_options(read_environment=False)
@click.pass_context
def show(context: click.Context, reference: str, state: str | None) -> None:
    """Show an adapter with its versions, or one version; retired and rejected ones too."""

    async def work(session: Session) -> None:
        from adapter.names import Reference
        from registry.printing import adapter_facts, version_facts, version_row

        parsed = Reference.parse(reference)
        if parsed.name is not None and "@" not in reference and parsed.number is None:
            adapter = await session.client.get_adapter(parsed.name)
            every = await session.client.list_versions(parsed.name)
            versions = [one for one in every if state in (None, one.state.value)]
            if session.printer.writes_documents:
                session.printer.document({"adapter": adapter, "versions": versions})
                return
            session.printer.facts(adapter_facts(adapter))
            session.printer.line("")
            session.printer.table(
                ("VERSION", "STATE", "ALIASES", "RANK", "TARGETS", "SIZE", "DIGEST", "CREATED"),
                [version_row(version) for version in versions],
                empty="no versions",
            )
            return
        version = await find_version(session.client, parsed)
        if session.printer.writes_documents:
            session.printer.document(version)
        else:
            session.printer.facts(version_facts(version))

    with_session(context, work)


async def find_version(client: RegistryClient, reference: Reference) -> AdapterVersion:
    """The version itself, retired or not, which resolving would refuse."""
    from registry.errors import AliasNotFound

    if reference.name is None:
        return (await client.resolve(str(reference))).version
    if reference.number is not None:
        return await client.get_version(reference.name, reference.number)
    adapter = await client.get_adapter(reference.name)
    alias = next((one for one in adapter.aliases if one.alias == reference.alias), None)
    if alias is None:
        raise AliasNotFound(f"{reference.name} has no alias {reference.alias}")
    return await client.get_version(reference.name, alias.targets[0].version)


@click.command()
@click.argument("reference", metavar="REF", shell_complete=completion.references)
@global_options(read_environment=False)
@click.pass_context
def resolve(context: click.Context, reference: str) -> None:
    """Say which version NAME, NAME@ALIAS, NAME:NUMBER or a digest means now."""

    async def work(session: Session) -> None:
        found = await session.client.resolve(reference)
        if session.printer.writes_documents:
            session.printer.document({"version": found.version, "revision": found.revision})
        else:
            session.printer.line(f"{found.version.adapter}:{found.version.number}  {found.version.digest}")

    with_session(context, work)


@click.command()
@click.option(
    "--after", type=click.IntRange(0), metavar="REVISION", help="Go on after this one; else a snapshot first."
)
@click.option(
    "--base",
    "base_model",
    default="",
    shell_complete=completion.base_models,
    help="Only what concerns this base model.",
)
@global_options(read_environment=False)
@click.pass_context
def watch(context: click.Context, after: int | None, base_model: str) -> None:
    """Follow every change until Ctrl-C; reconnects by itself. With -o json one message a line."""

    async def work(session: Session) -> None:
        from registry.printing import message_document, message_lines

        await session.client.status()  # A watch waits for its registry for ever; a person should hear of a wrong one.
        messages = session.client.watch(
            after_revision=after, base_model=base_model, on_connection=_ConnectionNotes().tell
        )
        async with aclosing(messages) as stream:
            async for message in stream:
                if session.printer.writes_documents:
                    session.printer.document_line(message_document(message))
                    continue
                for line in message_lines(message):
                    session.printer.line(line)

    with_session(context, work)


class _ConnectionNotes:
    """Says once that the connection was lost, however often connecting again fails."""

    def __init__(self) -> None:
        self._is_lost = False

    def tell(self, error: Exception | None) -> None:
        """`error` is why the connection was lost; None says that it is back."""
        if error is not None and not self._is_lost:
            click.echo(f"lost the registry, connecting again: {error}", err=True)
        if error is None and self._is_lost:
            click.echo("connected again", err=True)
        self._is_lost = error is not None


@click.command()
@global_options(read_environment=False)
@click.pass_context
def status(context: click.Context) -> None:
    """Show the store, its revision, and the workers with what they serve."""

    async def work(session: Session) -> None:
        from registry.printing import worker_row

        found, workers = await session.client.status(), await session.client.list_workers()
        if session.printer.writes_documents:
            session.printer.document({"status": found, "workers": workers})
            return
        session.printer.facts(
            [("store", found.store_id), ("revision", str(found.revision)), ("version", found.server_version)]
        )
        session.printer.line("")
        session.printer.table(
            ("WORKER", "STATE", "BASE MODEL", "REVISION", "ADDRESS", "ADAPTERS", "REPORTED"),
            [worker_row(worker) for worker in workers],
            empty="no workers have reported",
        )

    with_session(context, work)
