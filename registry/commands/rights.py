"""`registry token …`, `audit`, `protect` and `unprotect`: who may do what, and who did."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from registry import completion
from registry.options import Session, global_options, with_session

SCOPES = ("read", "register", "promote", "admin", "watch", "report")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _read_duration(_: click.Context, __: click.Parameter, found: str | None) -> timedelta | None:
    """`90d`, `12h`, `30m` or `45s`."""
    if found is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", found)
    if match is None:
        raise click.BadParameter(f"expected a duration such as 90d, 12h, 30m or 45s, found {found!r}")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


@click.group()
@global_options(read_environment=False)
def token() -> None:
    """Bearer tokens: who may do what.

    \b
    read      look at everything but the audit log and tokens, and fetch files
    register  add base models and versions
    promote   move aliases that are not protected, retire and bring back
    watch     follow the event stream
    report    say what a worker runs
    admin     all of these, protected aliases, tokens and the audit log

    A worker takes read, watch and report.
    """


@token.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="Repeatable.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME", help="Only this adapter; repeatable.")
@click.option("--alias", "aliases", multiple=True, metavar="ALIAS", help="Move only this alias; repeatable.")
@click.option(
    "--expires", callback=_read_duration, metavar="DURATION", help="End after 90d, 12h, 30m; never by default."
)
@global_options(read_environment=False)
@click.pass_context
def create(
    context: click.Context,
    *,
    name: str,
    scopes: tuple[str, ...],
    adapters: tuple[str, ...],
    aliases: tuple[str, ...],
    expires: timedelta | None,
) -> None:
    """Make a token for NAME. Its secret is written once and kept nowhere.

    A protected alias is moved only by a token that names it with --alias, and by admins.
    """

    async def work(session: Session) -> None:
        from registry.resources import Scope

        made = await session.client.admin.create_token(
            name,
            [Scope(one) for one in scopes],
            adapters=adapters,
            aliases=aliases,
            expire_time=None if expires is None else datetime.now(UTC) + expires,
        )
        if session.printer.writes_documents:
            session.printer.document({"token": made.token, "secret": made.secret})
            return
        click.echo(f"token {made.token.id} for {name}; its secret is shown only now:", err=True)
        session.printer.line(made.secret)

    with_session(context, work)


@token.command("list")
@global_options(read_environment=False)
@click.pass_context
def list_tokens(context: click.Context) -> None:
    """List tokens, newest first, without their secrets."""

    async def work(session: Session) -> None:
        from registry.views import token_row

        tokens = await session.client.admin.list_tokens()
        if session.printer.writes_documents:
            session.printer.document({"tokens": tokens})
            return
        rows = [token_row(one) for one in tokens]
        empty = "no tokens yet; `registry token create NAME --scope read` makes one"
        session.printer.table(("ID", "NAME", "SCOPES", "LIMITS", "STATE", "CREATED"), rows, empty=empty)

    with_session(context, work)


@token.command()
@click.argument("token_id", metavar="ID")
@click.option("--grace", callback=_read_duration, default="1h", show_default=True, metavar="DURATION")
@click.option("--expires", callback=_read_duration, metavar="DURATION", help="When the new one ends; never by default.")
@global_options(read_environment=False)
@click.pass_context
def rotate(context: click.Context, token_id: str, grace: timedelta, expires: timedelta | None) -> None:
    """Make another token with the rights of ID, which stays in force for --grace, so that nobody is locked out."""

    async def work(session: Session) -> None:
        from registry.views import token_state

        made = await session.client.admin.rotate_token(
            token_id,
            grace_s=grace.total_seconds(),
            expire_time=None if expires is None else datetime.now(UTC) + expires,
        )
        if session.printer.writes_documents:
            session.printer.document({"token": made.token, "secret": made.secret, "replaced": made.replaced})
            return
        click.echo(f"{token_id} is {token_state(made.replaced)}", err=True)
        click.echo(f"token {made.token.id} for {made.token.name}; its secret is shown only now:", err=True)
        session.printer.line(made.secret)

    with_session(context, work)


@token.command()
@click.argument("token_id", metavar="ID")
@global_options(read_environment=False)
@click.pass_context
def revoke(context: click.Context, token_id: str) -> None:
    """End the token ID at once, with every watch that it opened."""

    async def work(session: Session) -> None:
        revoked = await session.client.admin.revoke_token(token_id)
        if session.printer.writes_documents:
            session.printer.document(revoked)
        else:
            session.printer.line(f"revoked token {token_id} of {revoked.name}")

    with_session(context, work)


@click.command()
@click.option("--adapter", default="", metavar="NAME", help="Only what changed this adapter.")
@click.option("--actor", default="", metavar="NAME", help="Only what this caller did.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="The newest N.")
@global_options(read_environment=False)
@click.pass_context
def audit(context: click.Context, adapter: str, actor: str, limit: int) -> None:
    """Show who changed what, newest first. With -o json or yaml also the values before and after."""

    async def work(session: Session) -> None:
        from registry.views import audit_row

        entries = await session.client.admin.list_audit_entries(adapter=adapter, actor=actor, limit=limit)
        if session.printer.writes_documents:
            session.printer.document({"entries": entries})
            return
        headers = ("REVISION", "TIME (UTC)", "ACTOR", "ACTION", "RESOURCE", "REQUEST", "WHY")
        session.printer.table(headers, [audit_row(one) for one in entries], empty="nothing has changed yet")

    with_session(context, work)


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.option(
    "--alias", default="production", show_default=True, shell_complete=completion.aliases, help="The alias to protect."
)
@click.option("--message", default="", help="Why; kept in the audit log.")
@global_options(read_environment=False)
@click.pass_context
def protect(context: click.Context, name: str, alias: str, message: str) -> None:
    """Let only tokens that name the alias move it, and admins."""
    _set_protection(context, name, alias, protected=True, message=message)


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.option(
    "--alias",
    default="production",
    show_default=True,
    shell_complete=completion.aliases,
    help="The alias to protect no longer.",
)
@click.option("--message", default="", help="Why; kept in the audit log.")
@global_options(read_environment=False)
@click.pass_context
def unprotect(context: click.Context, name: str, alias: str, message: str) -> None:
    """Let everyone who may promote move the alias again."""
    _set_protection(context, name, alias, protected=False, message=message)


def _set_protection(context: click.Context, name: str, alias: str, *, protected: bool, message: str) -> None:
    async def work(session: Session) -> None:
        found = await session.client.admin.set_alias_protection(name, alias=alias, protected=protected, message=message)
        if session.printer.writes_documents:
            session.printer.document(found)
        else:
            session.printer.line(f"{name}@{alias} is {'' if found.protected else 'not '}protected")

    with_session(context, work)
