"""A registry's database to a file and back, by the programs that come with Postgres. It knows processes, no resource.

    backup    pg_dump ──> FILE.partial ──> FILE           one state of the database, while the registry runs
    restore   FILE ──> pg_restore ──┐
              a new store_id ───────┴──> psql             one transaction: all of it or nothing, and never the old id

The database is the registry's own, and all of it is in the file. Files of adapters are no part of it: they are named by
their digests and never change, so copying their folder after the backup is enough.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg

from registry import migrate
from registry.embedded import find_program
from registry.errors import BackupFailed, DatabaseInUse
from registry.models import Table
from registry.store.database import CHANNEL, connection_string, parse_url, translate

# Tables that came after the backup would be in the way of the migrations that make them.
PROLOGUE = "".join(f"DROP TABLE IF EXISTS public.{name} CASCADE;\n" for name in Table.metadata.tables)
# What a backup never has, and a restored database must not take over: a new store, with no worker heard of yet.
NEW_STORE = "\n".join(
    (
        "UPDATE public.registry_head SET store_id = pg_catalog.gen_random_uuid()::text;",
        "DELETE FROM public.workers;",
        f"NOTIFY {CHANNEL};",
        "",
    )
)


def back_up(url: str, file: Path) -> int:
    """Writes one state of the database; blocking. Returns the file's size. Raises BackupFailed."""
    partial = file.with_name(file.name + ".partial")
    # The hashes of tokens are nobody else's business.
    os.close(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    command = [find_program("pg_dump"), "--format=custom", "--no-owner", "--no-privileges", f"--file={partial}"]
    try:
        _run([*command, *_target(url)], url)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file.stat().st_size


def restore(url: str, file: Path, *, replace: bool = False) -> None:
    """Makes the database what it was at the backup, under a new store_id; blocking.

    It has the schema of the release that made the backup, for `migrate.upgrade` to go on from.

    Raises DatabaseInUse when there is a registry's data and not `replace`, and BackupFailed; then nothing was changed.
    """
    if not replace:
        _check_unused(url)
    script = [
        find_program("pg_restore"),
        "--clean",
        "--if-exists",
        "--no-owner",
        "--no-privileges",
        "--file=-",
        str(file),
    ]
    run = [find_program("psql"), "--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file=-"]
    with (
        subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader,
        subprocess.Popen(
            [*run, *_target(url)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(url),
        ) as writer,
    ):
        assert reader.stdout is not None
        assert reader.stderr is not None
        assert writer.stdin is not None
        assert writer.stderr is not None
        try:
            writer.stdin.write(PROLOGUE.encode())
            shutil.copyfileobj(reader.stdout, writer.stdin)
            if reader.wait() != 0:
                raise BackupFailed(f"{file} cannot be read: {_last_words(reader.stderr.read())}")
            writer.stdin.write((_refuse_newer() + NEW_STORE).encode())
            writer.stdin.close()
        except BrokenPipeError:
            reader.kill()  # psql has ended, and says below why
        except BaseException:
            writer.kill()  # before it sees the end of its input, which would commit half of the file
            raise
        finally:
            with suppress(BrokenPipeError):
                writer.stdin.close()
        said = writer.stderr.read()
        if writer.wait() != 0:
            raise BackupFailed(f"the database was not restored: {_last_words(said)}")


def _refuse_newer() -> str:
    """Ends the transaction with an error when the schema is none that this release can migrate."""
    return f"""
        DO $$
        DECLARE newer text;
        BEGIN
            SELECT version_num INTO newer FROM public.alembic_version
                WHERE version_num <> ALL ('{{{",".join(migrate.known_revisions())}}}');
            IF FOUND THEN
                RAISE 'a newer release made the backup, with the schema %', newer;
            END IF;
        END $$;
        """  # noqa: S608 - the names of our own migrations


def _check_unused(url: str) -> None:
    try:
        with psycopg.connect(connection_string(url), connect_timeout=5) as connection:
            found = connection.execute("SELECT pg_catalog.to_regclass('public.registry_head')").fetchone()
            if found is None or found[0] is None:
                return
            head = connection.execute("SELECT revision FROM public.registry_head").fetchone()
    except psycopg.Error as error:
        raise translate(error) from error
    if head is not None and head[0] > 0:
        raise DatabaseInUse(f"the database has a registry at revision {head[0]}", metadata={"revision": str(head[0])})


def _run(command: list[str], url: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, env=_environment(url))
    if done.returncode != 0:
        raise BackupFailed(f"{Path(command[0]).name} failed: {_last_words(done.stderr)}")


def _target(url: str) -> list[str]:
    """The database, without its password: everyone may read a command line."""
    return [f"--dbname={parse_url(connection_string(url)).set(drivername='postgresql', password=None)}"]


def _environment(url: str) -> dict[str, str]:
    password = parse_url(url).password
    return {**os.environ, "LC_ALL": "C", **({"PGPASSWORD": password} if password else {})}


def _last_words(said: bytes) -> str:
    return " | ".join(said.decode(errors="replace").strip().splitlines()[-3:]) or "it said nothing"
