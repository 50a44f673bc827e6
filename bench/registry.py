"""The registry's latencies and size, over real gRPC and on its own Postgres. Reported, never asserted.

    small, large   100 and 10 000 adapters with 10 versions each, in two registries that are asked in turn: list a
                   page, resolve, snapshot, and their query plans
    watchers       one promotion told to 1 000 watches of one process
    promotion      from the call to the first token by the new version, through a worker (`--worker`)

The clients run on the same machine, so what they cost is in every number.

    python -m bench.registry [--rounds N] [--watchers N] [--worker]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table
from sqlalchemy import event, make_url

from adapter.base_model import describe_base_model
from adapter.names import Reference
from bench.machine import Machine, measure
from examples.base_model import ensure_base_model
from loraplex.inference.v1 import inference_service_pb2 as inference_pb
from loraplex.inference.v1 import inference_service_pb2_grpc as inference_rpcs
from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import watch_service_pb2_grpc as watch_rpcs
from registry.client import RegistryClient
from registry.embedded import EmbeddedPostgres
from registry.resources import SnapshotEnd
from registry.store import Store
from registry.store.database import Database, connection_string
from registry.store.paging import PageRequest
from rpc.channel import connect

OUT = Path(".cache") / "bench"
SIZES = {"small": 100, "large": 10_000}
BASE, VERSIONS = "smollm2", 10
RESOLVES = 300
# Streams on one connection wait for each other in the client's library; this is how workers come, a few to a host.
WATCHES_PER_CHANNEL = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """Seconds, of many; or bytes or a ratio, where the name says so."""

    name: str
    p50: float
    p99: float
    lowest: float
    highest: float
    count: int


def cell(name: str, found: list[float]) -> Cell:
    ordered = sorted(found)
    return Cell(
        name, statistics.median(ordered), ordered[int(0.99 * (len(ordered) - 1))], ordered[0], ordered[-1], len(ordered)
    )


@asynccontextmanager
async def open_server(folder: Path, database_url: str) -> AsyncIterator[tuple[str, int]]:
    """A registry in a process of its own: its address and process id."""
    program = (
        "import asyncio; from registry.app import run; from registry.settings import read_settings;"
        "asyncio.run(run(read_settings(), on_ready=lambda port: print(port, flush=True)))"
    )
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "LORAPLEX_REGISTRY_DATA_DIR": str(folder),
        "LORAPLEX_REGISTRY_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{(await process.stdout.readline()).decode().strip()}", process.pid
    finally:
        process.terminate()
        await process.wait()


def new_database(database_url: str, name: str) -> str:
    """The URL of an empty database on the same server."""
    with psycopg.connect(connection_string(database_url), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return make_url(database_url).set(database=name).render_as_string(hide_password=False)


async def prepare(client: RegistryClient, model: Path) -> None:
    """The base model, and style:1 and style:2."""
    await client.create_base_model(BASE, describe_base_model(model))
    for one in ("pirate", "json"):
        await client.register(Path("examples/adapters") / one, adapter="style", base_model=BASE)


def fill(database_url: str, adapters: int) -> None:
    """Copies the one registered version into so many adapters, each in production at its last version."""
    with psycopg.connect(connection_string(database_url)) as connection:
        connection.execute(
            "INSERT INTO adapters (name, base_model, latest_version, create_time) SELECT "
            "'adapter-' || lpad(g::text, 6, '0'), %s, %s, now() FROM generate_series(1, %s) g ON CONFLICT DO NOTHING",
            (BASE, VERSIONS, adapters),
        )
        connection.execute(
            "INSERT INTO adapter_versions (adapter, number, digest, manifest, rank, alpha, target_modules, features, "
            "state, rejection_reasons, provenance, size_bytes, create_time, revision) SELECT a.name, n, 'sha256:' || "
            "encode(sha256((a.name || n)::bytea), 'hex'), v.manifest, v.rank, v.alpha, v.target_modules, v.features, "
            "v.state, v.rejection_reasons, v.provenance, v.size_bytes, v.create_time, v.revision FROM adapters a, "
            "generate_series(1, %s) n, adapter_versions v WHERE a.name LIKE 'adapter-%%' AND v.adapter = 'style' "
            "AND v.number = 1 ON CONFLICT DO NOTHING",
            (VERSIONS,),
        )
        connection.execute(
            "INSERT INTO aliases (adapter, alias, revision, update_time) SELECT name, 'production', 1, now() "
            "FROM adapters WHERE name LIKE 'adapter-%' ON CONFLICT DO NOTHING"
        )
        connection.execute(
            "INSERT INTO alias_targets (adapter, alias, version, weight) SELECT name, 'production', %s, 10000 "
            "FROM adapters WHERE name LIKE 'adapter-%%' ON CONFLICT DO NOTHING",
            (VERSIONS,),
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


Work = Callable[[RegistryClient, int, int], Awaitable[None]]
"""What is timed: the client, how many adapters its registry has, and how often it was done before."""


async def resolve(client: RegistryClient, adapters: int, number: int) -> None:
    await client.resolve(f"adapter-{number * 7919 % adapters + 1:06d}")


async def list_all(client: RegistryClient, adapters: int, _: int) -> None:
    assert len(await client.list_adapters()) >= adapters


async def snapshot(client: RegistryClient, _: int, __: int) -> None:
    watch = client.watch()
    async for message in watch:
        if isinstance(message, SnapshotEnd):
            break
    await watch.aclose()


async def timed(clients: dict[str, RegistryClient], count: int, work: Work) -> dict[str, list[float]]:
    """Seconds of each of so many calls, one after the other and the sizes in turn; the first is not counted."""
    found: dict[str, list[float]] = {size: [] for size in clients}
    for number in range(count + 1):
        for size, client in clients.items():
            began = time.perf_counter()
            await work(client, SIZES[size], number)
            found[size].append(time.perf_counter() - began)
    return {size: seconds[1:] for size, seconds in found.items()}


async def measure_sizes(clients: dict[str, RegistryClient], rounds: int) -> list[Cell]:
    cells = []
    for what, work, count in (
        ("resolve", resolve, RESOLVES),
        ("list, per 100 adapters", list_all, rounds),
        ("snapshot, per 100 aliases", snapshot, rounds),
    ):
        found = await timed(clients, count, work)
        shares = {size: 1.0 if work is resolve else 100 / SIZES[size] for size in clients}
        seconds = {size: [one * shares[size] for one in calls] for size, calls in found.items()}
        cells += [cell(f"{size}: {what}", calls) for size, calls in seconds.items()]
        pairs = zip(seconds["large"], seconds["small"], strict=True)
        cells.append(cell(f"large over small: {what}", [large / small for large, small in pairs]))
    return cells


async def explain(database_url: str, adapters: int) -> dict[str, list[str]]:
    """The plans of the statements behind list, resolve and snapshot, as Postgres runs them now."""
    database = Database(database_url, pool_size=2)
    store = Store(database)
    seen: list[tuple[str, Any]] = []

    def note(*details: Any) -> None:
        _, _, statement, parameters, *_ = details
        if statement.startswith("SELECT") and len(statement) > len("SELECT 1"):
            seen.append((statement, parameters))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    middle = f"adapter-{adapters // 2:06d}"
    plans: dict[str, list[str]] = {}

    async def snapshot() -> None:
        async with store.changes.snapshot() as found:
            async for _ in found.items:
                if len(seen) > 12:  # some pages into versions and aliases
                    return

    work = {
        "list": lambda: store.adapters.list(PageRequest(size=100)),
        "resolve": lambda: store.references.resolve(Reference.parse(middle)),
        "snapshot": snapshot,
    }
    for name, call in work.items():
        seen.clear()
        await call()
        lines: list[str] = []
        with psycopg.connect(connection_string(database_url)) as connection:
            for statement, parameters in seen[:12]:
                rows = connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF, SUMMARY OFF) {statement}", parameters)
                lines += [str(row[0]) for row in rows] + [""]
        plans[name] = lines
    await database.close()
    return plans


async def measure_watchers(address: str, client: RegistryClient, watchers: int, rounds: int) -> list[Cell]:
    """From the call of a promotion to each watch that was told of it."""
    revision = (await client.status()).revision
    channels = [connect(address) for _ in range(-(-watchers // WATCHES_PER_CHANNEL))]
    calls: list[Any] = [
        watch_rpcs.WatchServiceStub(channels[number % len(channels)]).Watch(
            watch_pb.WatchRequest(after_revision=revision)
        )
        for number in range(watchers)
    ]
    await asyncio.gather(*(call.read() for call in calls))

    async def told(call: Any, wanted: int) -> float:
        while True:
            message = await call.read()
            if message.change.revision >= wanted:
                return time.perf_counter()

    delays, slowest = [], []
    for number in range(rounds + 1):
        waiting = [asyncio.create_task(told(call, revision + 1 + number)) for call in calls]
        began = time.perf_counter()
        await client.promote("style", 1 + number % 2, alias="watched")
        ends = [end - began for end in await asyncio.gather(*waiting)]
        if number:
            delays += ends
            slowest.append(max(ends))
    for channel in channels:
        await channel.close()
    return [cell(f"promotion told to {watchers} watches", delays), cell("the last of them", slowest)]


async def measure_promotion(address: str, client: RegistryClient, folder: Path, model: Path, rounds: int) -> list[Cell]:
    """From the call of a promotion to the first token by the new version, asking again and again."""
    port = 7301  # nothing else of ours listens there
    with (folder / "worker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "inference", "serve", "--model", str(model), "--base-model-name", BASE,
            "--registry", address, "--state-dir", str(folder / "worker"), "--listen", f"127.0.0.1:{port}",
            stdout=log, stderr=log,
        )  # fmt: skip
    found = []
    try:
        async with connect(f"127.0.0.1:{port}") as channel:
            stub: Any = inference_rpcs.InferenceServiceStub(channel)
            request = inference_pb.GenerateRequest(
                text="Hello",
                adapters=[inference_pb.AdapterUse(reference="style")],
                stop=inference_pb.StopConditions(max_tokens=1),
            )

            async def version() -> int:
                number = 0
                async for message in stub.Generate(request, timeout=60, wait_for_ready=True):
                    if message.HasField("started"):
                        number = message.started.adapters[0].version
                return number

            for number in range(rounds + 2):
                wanted = 1 + number % 2
                began = time.perf_counter()
                await client.promote("style", wanted)
                while await version() != wanted:
                    pass
                if number >= 2:  # the first two load from the registry, later ones from the worker's disk or memory
                    found.append(time.perf_counter() - began)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
    return [cell("promotion to first token", found)]


def resident_bytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--worker", action="store_true")
    arguments = parser.parse_args()
    console, machine, model = Console(), measure(), ensure_base_model()
    cells: list[Cell] = []
    plans: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        postgres = EmbeddedPostgres(folder / "postgres")
        await postgres.start()
        try:
            async with (
                open_server(folder / "registry", postgres.url) as (address, pid),
                RegistryClient(connect(address)) as client,
            ):
                await prepare(client, model)
                cells.append(cell("bytes resident, empty", [resident_bytes(pid)]))
                if arguments.worker:
                    cells += await measure_promotion(address, client, folder, model, 4 * arguments.rounds)
                cells += await measure_watchers(address, client, arguments.watchers, arguments.rounds)
                cells.append(cell("bytes resident, after the watches", [resident_bytes(pid)]))
                async with AsyncExitStack() as stack:
                    clients = {}
                    for size, adapters in SIZES.items():
                        url = await asyncio.to_thread(new_database, postgres.url, size)
                        there, large_pid = await stack.enter_async_context(open_server(folder / size, url))
                        clients[size] = await stack.enter_async_context(RegistryClient(connect(there)))
                        await prepare(clients[size], model)
                        await asyncio.to_thread(fill, url, adapters)
                        plans[size] = await explain(url, adapters)
                    cells += await measure_sizes(clients, arguments.rounds)
                    cells.append(cell("bytes resident, after the large ones", [resident_bytes(large_pid)]))
        finally:
            await postgres.stop()
    _show(console, machine, cells)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"registry-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    document = {"machine": asdict(machine), "cells": [asdict(one) for one in cells], "plans": plans}
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"written with the query plans to {path}")


def _show(console: Console, machine: Machine, cells: list[Cell]) -> None:
    console.print(f"{machine.processor}, {machine.cores} cores, shared with the clients and Postgres")
    table = Table()
    for column in ("what", "p50", "p99", "lowest to highest", "of"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for one in cells:
        unit, scale = ("MiB", 2**-20) if "bytes" in one.name else ("x", 1.0) if " over " in one.name else ("ms", 1e3)
        p50, p99, low, high = (value * scale for value in (one.p50, one.p99, one.lowest, one.highest))
        spread = f"{low:.1f} to {high:.1f}"
        table.add_row(one.name, f"{p50:.1f} {unit}", f"{p99:.1f} {unit}", spread, str(one.count))
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
