"""The embedded Postgres: as the user who runs the tests, root included, in folders of every kind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from registry import embedded, launcher
from registry.embedded import EmbeddedPostgres
from registry.errors import DataDirInUse, PostgresFailed


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    try:
        yield postgres
    finally:
        await postgres.stop()


def ask(postgres: EmbeddedPostgres, statement: str) -> str:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return str(cursor.fetchone()[0]) if cursor.description else ""


async def test_what_was_committed_is_there_after_a_restart(tmp_path):
    async with running(tmp_path) as postgres:
        ask(postgres, "CREATE TABLE t AS SELECT 7 AS x")
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT x FROM t") == "7"
        assert ask(postgres, "SHOW fsync") == "on"
        assert ask(postgres, "SHOW listen_addresses") == ""


@pytest.mark.parametrize("name", ["with space, comma's and ümläut", "x" * 120])
async def test_any_folder_will_do(tmp_path, name):
    async with running(tmp_path / name / "deep" / "er") as postgres:
        assert ask(postgres, "SELECT 1") == "1"
        assert Path(ask(postgres, "SHOW data_directory")) == tmp_path / name / "deep" / "er" / "cluster"


async def test_a_folder_has_one_registry_at_a_time(tmp_path):
    async with running(tmp_path) as postgres:
        with pytest.raises(DataDirInUse, match=str(os.getpid())):
            await EmbeddedPostgres(tmp_path).start()
        assert ask(postgres, "SELECT 1") == "1"
    async with running(tmp_path):
        pass


async def test_a_server_that_is_killed_is_started_again_with_everything_that_was_committed(tmp_path):
    async with running(tmp_path) as postgres:
        supervision = asyncio.create_task(postgres.supervise())
        ask(postgres, "CREATE TABLE t AS SELECT 7 AS x")
        killed = postgres.pid
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    assert ask(postgres, "SELECT x FROM t") == "7"
                    break
                except psycopg.OperationalError:
                    await asyncio.sleep(embedded.POLL_S)
        assert postgres.pid != killed
        supervision.cancel()


async def test_a_server_that_an_earlier_registry_left_is_ended_and_its_data_kept(tmp_path):
    async with running(tmp_path) as postgres:
        ask(postgres, "CREATE TABLE t AS SELECT 7 AS x")
    cluster = tmp_path / "cluster"
    owner = cluster.stat()
    uid, gid = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else (0, 0)
    # Started by this process and not by an EmbeddedPostgres, it is to the next one what a killed one leaves.
    orphan = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), str(uid), str(gid)),
            *(embedded.find_program("postgres"), "-D", str(cluster), "-k", str(cluster), "-c", "listen_addresses="),
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    async with asyncio.timeout(20):
        while "ready" not in (read(cluster / "postmaster.pid")):
            await asyncio.sleep(embedded.POLL_S)
    reaped = asyncio.create_task(asyncio.to_thread(orphan.wait))
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT x FROM t") == "7"
        assert await reaped == 0, "a fast shutdown, not a kill"
        assert postgres.pid != orphan.pid


async def test_a_lock_file_that_names_another_process_does_not_keep_it_from_starting(tmp_path):
    async with running(tmp_path):
        left = read(tmp_path / "cluster" / "postmaster.pid").splitlines()
    # After a reboot the number may belong to anyone; Postgres alone would refuse while that process lives.
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "cluster" / "postmaster.pid").write_text("\n".join([str(other.pid), *left[1:]]) + "\n")
        async with running(tmp_path) as postgres:
            assert ask(postgres, "SELECT 1") == "1"
        assert other.poll() is None
        other.communicate(b"\n")


async def test_a_data_directory_that_was_not_finished_is_made_anew(tmp_path):
    (tmp_path / "cluster.new" / "half").mkdir(parents=True)
    async with running(tmp_path) as postgres:
        assert ask(postgres, "SELECT 1") == "1"
    assert not (tmp_path / "cluster.new").exists()


async def test_a_server_that_cannot_start_says_why_and_lets_go_of_the_folder(tmp_path):
    async with running(tmp_path):
        pass
    (tmp_path / "cluster" / "postgresql.conf").write_text("nonsense = 1\n")
    for _ in range(2):
        with pytest.raises(PostgresFailed, match="nonsense"):
            await EmbeddedPostgres(tmp_path).start()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
