"""`registry db upgrade`, `check`, `backup` and `restore`: what is done to the database itself, past the registry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from registry.options import make_printer

if TYPE_CHECKING:
    from registry.settings import Settings

T = TypeVar("T")


def _database_options(function: Callable[..., None]) -> Callable[..., None]:
    """--database-url and --data-dir, as of `registry serve`."""
    url = click.option("--database-url", metavar="URL", help="The Postgres server.  [DATABASE_URL]")
    folder = click.option(
        "--data-dir", metavar="DIR", help="Where the registry's own Postgres lives.  [LORAPLEX_REGISTRY_DATA_DIR]"
    )
    form = click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), help="As of `registry`.")
    return url(folder(form(click.pass_context(function))))


def _settings(context: click.Context, given: dict[str, str | None]) -> Settings:
    from registry.config import combine_settings

    flags = {name: given[name] or "" for name in ("database_url", "data_dir") if given[name] is not None}
    return combine_settings(context.ensure_object(dict).get("serve", {}), os.environ, flags)


def _expect_database(context: click.Context, given: dict[str, str | None]) -> None:
    """Raises InvalidRequest for a data directory that has no database, which would be made."""
    from registry.embedded import EmbeddedPostgres
    from registry.errors import InvalidRequest

    settings = _settings(context, given)
    if not settings.database_url and not EmbeddedPostgres(settings.data_dir / "postgres").is_made:
        raise InvalidRequest(
            f"data_dir: expected a registry's data directory, found no database in {settings.data_dir}"
        )


def _with_database(context: click.Context, given: dict[str, str | None], work: Callable[[str], T]) -> T:
    """Runs the work with the URL of the database; the registry's own server is started for it, if it does not run."""
    from registry.embedded import EmbeddedPostgres

    settings = _settings(context, given)

    async def borrow() -> T:
        async with EmbeddedPostgres(settings.data_dir / "postgres").borrowed() as url:
            return await asyncio.to_thread(work, url)

    return work(settings.database_url) if settings.database_url else asyncio.run(borrow())


@click.command()
@_database_options
def upgrade(context: click.Context, /, **given: str | None) -> None:
    """Bring the database to the schema of this release. `registry serve` does this by itself."""

    def work(url: str) -> None:
        from registry import migrate

        migrate.upgrade(url)

    _with_database(context, given, work)
    make_printer(context, given["output"]).outcome("the schema is that of this release", {"upgraded": True})


@click.command()
@_database_options
def check(context: click.Context, /, **given: str | None) -> None:
    """Check that the schema is that of this release and that the rows hold together. It changes nothing."""

    def work(url: str) -> list[str]:
        from registry.checkup import find_faults

        return find_faults(url)

    from registry.errors import DatabaseFaulty

    _expect_database(context, given)
    faults = _with_database(context, given, work)
    if faults:
        raise DatabaseFaulty(
            f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'} in the database", reasons=tuple(faults)
        )
    make_printer(context, given["output"]).outcome("the database holds together", {"faults": []})


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_database_options
def backup(context: click.Context, /, *, file: Path, **given: str | None) -> None:
    """Write one state of the database to FILE, while the registry runs or not.

    The files of adapters are not in it: copy the blobs folder of the data directory, or your bucket, afterwards.
    """

    def work(url: str) -> int:
        from registry.backup import back_up

        return back_up(url, file)

    _expect_database(context, given)
    num_bytes = _with_database(context, given, work)
    document = {"file": str(file), "size_bytes": num_bytes}
    make_printer(context, given["output"]).outcome(f"wrote {file}, {num_bytes} bytes", document)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Although the database has a registry, which is lost.")
@_database_options
def restore(context: click.Context, /, *, file: Path, replace: bool, **given: str | None) -> None:
    """Make the database what it was when FILE was written, in one transaction.

    It gets a new store_id, so that workers and other watchers take a snapshot instead of resuming. Tokens that were
    revoked since the backup are in force again: look at `registry token list`.
    """

    def work(url: str) -> None:
        from registry import backup as backups
        from registry import migrate

        backups.restore(url, file, replace=replace)
        migrate.upgrade(url)

    _with_database(context, given, work)
    make_printer(context, given["output"]).outcome(f"restored {file} as a new store", {"restored": str(file)})
