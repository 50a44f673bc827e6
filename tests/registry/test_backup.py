"""A registry's database to a file and back, and the check that it holds together; on real Postgres."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine

from registry import migrate
from registry.backup import back_up, restore
from registry.checkup import find_faults
from registry.client import RegistryClient
from registry.errors import BackupFailed, DatabaseInUse, RegistryError
from registry.resources import Scope, SnapshotEnd, SnapshotItem, Worker
from registry.store.database import connection_string, parse_url
from rpc.channel import connect


@pytest.fixture
async def filled(registry_server: Any, base_model: str, new_adapter: Callable[..., Any]) -> Any:
    """sql:1 promoted, sql:2 a canary, a token and a worker."""
    client = registry_server.client
    for seed in (1, 2):
        await client.register(new_adapter(seed), adapter="sql", base_model=base_model)
    await client.promote("sql", 1)
    await client.promote("sql", 2, canary_weight=1000)
    await client.admin.create_token("ci", [Scope.READ])
    await client.report_worker(Worker("w1", "", "base", "", 1, ()), lease_s=60)
    return registry_server


def execute(url: str, statement: str) -> None:
    with psycopg.connect(connection_string(url), autocommit=True) as connection:
        connection.execute(statement)


def rows(state: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: found for name, found in state.items() if name != "registry_head"}


async def test_a_restored_database_is_what_it_was_as_another_store(
    filled, empty_database_url, serve_here, settings, tmp_path
) -> None:
    file = tmp_path / "registry.backup"
    before, status = await filled.state(), await filled.client.status()
    assert await asyncio.to_thread(back_up, filled.settings.database_url, file) == file.stat().st_size
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("*.partial")) == []
    await asyncio.to_thread(restore, empty_database_url, file)
    async with serve_here(dataclasses.replace(settings, database_url=empty_database_url)) as restored:
        assert rows(await restored.state()) == rows(before)
        now = await restored.client.status()
        assert now.revision == status.revision
        assert now.store_id != status.store_id
        assert await restored.client.list_workers() == []
        assert (await restored.client.promote("sql", 2)).revision == status.revision + 1
        # Who resumes at the old store gets a snapshot instead.
        resumed = restored.client.watch(after_revision=status.revision, store_id=status.store_id)
        assert isinstance(await anext(resumed), SnapshotItem)


async def test_a_running_registry_goes_on_from_an_older_state_and_its_watchers_take_a_snapshot(
    filled, tmp_path
) -> None:
    file = tmp_path / "older.backup"
    client, url = filled.client, filled.settings.database_url
    old = await client.status()
    await asyncio.to_thread(back_up, url, file)
    for number in (1, 2, 1, 2):
        await client.promote("sql", number)
    watch = client.watch()
    async for message in watch:
        if isinstance(message, SnapshotEnd):
            assert message.revision == old.revision + 4
            break
    with pytest.raises(DatabaseInUse):
        await asyncio.to_thread(restore, url, file)
    await asyncio.to_thread(restore, url, file, replace=True)
    async with asyncio.timeout(30):
        async for message in watch:
            if isinstance(message, SnapshotEnd):
                break
    assert message.revision == old.revision
    assert message.store_id not in ("", old.store_id)
    assert (await client.resolve("sql")).version.number == 1


def downgrade(url: str, revision: str) -> None:
    """Makes the schema that of an older release, as far as its migrations can go back."""
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        config = migrate.make_config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


@pytest.mark.parametrize("revision", [migrate.known_revisions()[-1], migrate.known_revisions()[1]])
async def test_a_backup_of_an_older_release_is_restored_and_then_migrated(
    filled, copy_of_database, empty_database_url, serve_here, settings, tmp_path, revision
) -> None:
    file, older = tmp_path / "older.backup", copy_of_database(filled.settings.database_url)
    await asyncio.to_thread(downgrade, older, revision)
    await asyncio.to_thread(back_up, older, file)
    # Over nothing, and over a newer schema with data.
    for number, url in enumerate((empty_database_url, filled.settings.database_url)):
        await asyncio.to_thread(restore, url, file, replace=number == 1)
        await asyncio.to_thread(migrate.upgrade, url)
        assert await asyncio.to_thread(find_faults, url) == []
    async with serve_here(dataclasses.replace(settings, database_url=empty_database_url)) as restored:
        adapter = await restored.client.get_adapter("sql")
        assert [(one.version, one.weight) for one in adapter.aliases[0].targets] == [(1, 9000), (2, 1000)]
        assert (await restored.client.promote("sql", 2)).changed


async def test_a_backup_of_a_newer_release_is_refused_and_changes_nothing(filled, copy_of_database, tmp_path) -> None:
    file, newer = tmp_path / "newer.backup", copy_of_database(filled.settings.database_url)
    execute(newer, "UPDATE alembic_version SET version_num = '9999_later'")
    await asyncio.to_thread(back_up, newer, file)
    before = await filled.state()
    with pytest.raises(BackupFailed, match="a newer release made the backup, with the schema 9999_later"):
        await asyncio.to_thread(restore, filled.settings.database_url, file, replace=True)
    assert await filled.state() == before


async def test_a_file_that_is_damaged_changes_nothing(filled, tmp_path) -> None:
    file = tmp_path / "registry.backup"
    url = filled.settings.database_url
    await asyncio.to_thread(back_up, url, file)
    before = await filled.state()
    whole = file.read_bytes()
    for damaged in (b"", b"not a backup", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(BackupFailed):
            await asyncio.to_thread(restore, url, file, replace=True)
        assert await filled.state() == before


async def test_a_server_that_is_away_leaves_no_half_written_file(tmp_path) -> None:
    file = tmp_path / "registry.backup"
    file.write_bytes(b"the one before")
    with pytest.raises(BackupFailed):
        await asyncio.to_thread(back_up, "postgresql://postgres@127.0.0.1:1/postgres", file)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"registry.backup": b"the one before"}
    with pytest.raises(RegistryError):
        await asyncio.to_thread(restore, "postgresql://postgres@127.0.0.1:1/postgres", file)


async def test_a_database_in_use_holds_together(filled) -> None:
    await filled.client.admin.set_alias_protection("sql", protected=True)
    await filled.client.rollback("sql")
    await filled.client.retire("sql", 2)
    assert await asyncio.to_thread(find_faults, filled.settings.database_url) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DELETE FROM audit_entries WHERE revision = 2", "a revision has no audit entry, the first is: 2"),
        ("UPDATE registry_head SET revision = 3", "an event has a revision that the head has not reached"),
        ("UPDATE alias_targets SET weight = 10 WHERE version = 2", "do not sum to 10000: sql@production"),
        ("DELETE FROM alias_targets", "do not sum to 10000: sql@production"),
        ("UPDATE alias_changes SET after = '[]'", "history does not end where it points: sql@production"),
        ("UPDATE adapters SET latest_version = 3", "have gaps: sql"),
        ("DELETE FROM registry_head", "the head row is missing"),
        ("ALTER TABLE tokens ADD COLUMN secret text", "the schema differs"),
        ("UPDATE alembic_version SET version_num = '0001'", "`registry db upgrade`"),
        ("DELETE FROM alembic_version", "found none; `registry db upgrade`"),
    ],
)
async def test_each_kind_of_damage_is_found(filled, damage, words) -> None:
    execute(filled.settings.database_url, damage)
    faults = await asyncio.to_thread(find_faults, filled.settings.database_url)
    assert any(words in fault for fault in faults), faults


async def test_the_commands_work_on_a_server_and_say_what_to_do(filled, registry, empty_database_url, tmp_path) -> None:
    file, url = tmp_path / "registry.backup", filled.settings.database_url

    async def db(*words: object, database: str = url) -> Any:
        return await registry("db", *words, DATABASE_URL=database)

    assert (await db("check")).out == "the database holds together\n"
    wrote = await db("backup", file, "-o", "json")
    assert wrote.document == {"file": str(file), "size_bytes": file.stat().st_size}
    refused = await db("restore", file)
    assert (refused.code, "hint: restore into an empty database" in refused.err) == (4, True)
    unknown = await db("check", database=empty_database_url)
    assert (unknown.code, "`registry db upgrade`" in unknown.err) == (8, True)
    assert (await db("upgrade", database=empty_database_url)).code == 0
    assert (await db("restore", file, database=empty_database_url)).code == 0
    assert (await db("check", database=empty_database_url)).code == 0
    away = await db("check", database="postgresql://postgres@127.0.0.1:1/postgres")
    assert (away.code, away.out) == (5, "")


@pytest.mark.parametrize("words", [("check",), ("backup", "file")])
async def test_nothing_is_made_to_be_checked_or_backed_up(registry, tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = await registry("db", *words, "--data-dir", tmp_path / "mistyped")
    assert (ran.code, ran.out) == (2, "")
    assert "found no database in" in ran.err
    assert list(tmp_path.glob("mistyped*")) == []


async def test_the_commands_borrow_the_server_of_a_registry_or_start_it(
    registry_process, registry, tmp_path: Path
) -> None:
    file = tmp_path / "registry.backup"
    registry_process.start()
    data_dir = registry_process.data_dir

    async def db(*words: object) -> Any:
        return await registry("db", *words, "--data-dir", data_dir, USER=os.environ.get("USER", ""))

    async with RegistryClient(connect(registry_process.address)) as client:
        made = await client.admin.create_token("ci", [Scope.READ])
        assert (await db("backup", file)).code == 0
        assert (await db("check")).code == 0
        first = await client.status()
    assert registry_process.end(signal.SIGTERM) == 0
    assert (await db("check")).code == 0
    again = await db("restore", file, "--replace")
    assert (again.code, again.out) == (0, f"restored {file} as a new store\n")
    registry_process.start()
    async with RegistryClient(connect(registry_process.address)) as client:
        now = await client.status()
        assert (now.revision, now.store_id != first.store_id) == (first.revision, True)
        assert await client.admin.list_tokens() == [made.token]
