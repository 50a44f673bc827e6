"""A real Postgres, a real registry over loopback, in this process or in one of its own, and tiny adapters."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from safetensors.numpy import save_file

from adapter.base_model import BaseModelDescription
from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import registry_service_pb2_grpc, watch_service_pb2_grpc, worker_service_pb2_grpc
from registry import migrate
from registry.app import Registry, open_registry
from registry.client import RegistryClient
from registry.embedded import EmbeddedPostgres
from registry.errors import RegistryError
from registry.models import Table
from registry.settings import Settings
from registry.store.database import connection_string
from rpc.channel import connect
from rpc.server import Server
from rpc.status import from_rpc_error

TEMPLATE = "loraplex_template"
# Two layers of a model that is not there: only its shapes matter to the registry.
HIDDEN, INNER = 8, 16
SHAPES: dict[str, tuple[int, int]] = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }.items()
}
# The same of the model in `base_folder`, which has files.
TINY_SHAPES = {
    "model.layers.0.self_attn.q_proj": (8, 8),
    "model.layers.0.self_attn.v_proj": (4, 8),
    "model.layers.0.mlp.down_proj": (8, 16),
}
ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "registry"


def _make_base_model(seed: int = 0) -> BaseModelDescription:
    """A base model of its own digest for each seed."""
    digests = {name: f"sha256:{seed:02x}{ord(name[0]):062x}" for name in ("config.json", "model.safetensors")}
    files = tuple(ManifestFile(name, 100 + seed, digest) for name, digest in digests.items())
    return BaseModelDescription(architecture="LlamaForCausalLM", modules=dict(SHAPES), manifest=Manifest(files))


def _make_adapter(
    folder: Path,
    seed: int,
    *,
    rank: int = 2,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    change_config: Mapping[str, Any] | None = None,
    change_tensors: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Path:
    """A PEFT folder for the base model above; different seeds have different digests."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
    }
    tensors: dict[str, np.ndarray] = {}
    for name, (rows, columns) in SHAPES.items():
        if name.rpartition(".")[2] in targets:
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = random.standard_normal((rank, columns), dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = random.standard_normal((rows, rank), dtype=np.float32)
    if change_tensors is not None:
        change_tensors(tensors)
    (folder / "adapter_config.json").write_text(json.dumps({**config, **(change_config or {})}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all tests: the one named by LORAPLEX_TEST_DATABASE_URL, or an embedded one."""
    given = os.environ.get("LORAPLEX_TEST_DATABASE_URL")
    if given:
        _make_template(given)
        yield given
        return
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    asyncio.run(postgres.start())
    try:
        _make_template(postgres.url)
        yield postgres.url
    finally:
        asyncio.run(postgres.stop())


@pytest.fixture
def database_url(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{os.getpid()}_{abs(hash(request.node.nodeid)):x}"[:60]
    with _connect_to(postgres_url) as connection:
        _execute(connection, "CREATE DATABASE {} TEMPLATE {}", name, TEMPLATE)
    yield _in_database(postgres_url, name)
    with _connect_to(postgres_url) as connection:
        _execute(connection, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def append_events() -> Callable[..., int]:
    """Appends so many revisions like the last one, each with its audit entry, and returns the new head."""

    def append(url: str, count: int, *, message: str = "") -> int:
        """`message` makes the events as large as wanted."""
        with _connect_to(url) as connection:
            found = connection.execute(
                "SELECT document, h.revision FROM events e, registry_head h WHERE e.revision = h.revision"
            ).fetchone()
            assert found is not None
            document, head = found
            document["happening"]["versions"][0]["provenance"]["git_commit"] = message
            with connection.transaction():
                into = "COPY events (revision, ordinal, base_model, document) FROM STDIN"
                with connection.cursor().copy(into) as copy:
                    for revision in range(head + 1, head + count + 1):
                        copy.write_row((revision, 0, "base", Jsonb({**document, "revision": revision})))
                connection.execute(
                    "INSERT INTO audit_entries (revision, time, actor, action, resource, request_id, message, after) "
                    "SELECT g, now(), '', '', '', '', '', '{}' FROM generate_series(%s::int, %s) g",
                    (head + 1, head + count),
                )
                connection.execute("UPDATE registry_head SET revision = %s", (head + count,))
            connection.execute("NOTIFY loraplex_registry")
        return int(head + count)

    return append


@pytest.fixture
def copy_of_database(postgres_url: str, database_url: str) -> Iterator[Callable[[str], str]]:
    """Copies a database as it is now, with a dump as a backup would, and returns the copy's URL."""
    name = f"{database_url.partition('?')[0].rpartition('/')[2][:50]}_copy"

    def copy(url: str) -> str:
        with _connect_to(postgres_url) as connection:
            _execute(connection, "CREATE DATABASE {} TEMPLATE {}", name, TEMPLATE)
        target = _in_database(postgres_url, name)
        with _connect_to(url) as source, _connect_to(target) as destination, destination.transaction():
            destination.execute("SET session_replication_role = replica")  # rows come before those they refer to
            for table in Table.metadata.sorted_tables:
                _execute(destination, "DELETE FROM {}", table.name)
                statement = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(table.name))
                into = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(table.name))
                with source.cursor().copy(statement) as rows, destination.cursor().copy(into) as writer:
                    for row in rows:
                        writer.write(row)
        return target

    yield copy
    with _connect_to(postgres_url) as connection:
        _execute(connection, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh database without tables."""
    with _connect_to(postgres_url) as connection:
        _execute(connection, "CREATE DATABASE {}", "empty_database")
    yield _in_database(postgres_url, "empty_database")
    with _connect_to(postgres_url) as connection:
        _execute(connection, "DROP DATABASE {} WITH (FORCE)", "empty_database")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """For a registry on the fresh database, with short waits."""
    return Settings(
        data_dir=tmp_path / "registry", database_url=database_url, listen="127.0.0.1:0", drain_s=1.0, progress_s=0.2
    )


@dataclass(frozen=True)
class RunningRegistry:
    """A registry in this process, and who talks to it."""

    address: str
    settings: Settings
    registry: Registry
    client: RegistryClient
    stub: registry_service_pb2_grpc.RegistryServiceAsyncStub
    watch_stub: watch_service_pb2_grpc.WatchServiceAsyncStub
    worker_stub: worker_service_pb2_grpc.WorkerServiceAsyncStub

    async def ask(self, method: Callable[..., Awaitable[Any]], request: Any) -> Any:
        """One call with no retry; raises the classes of registry.errors."""
        try:
            return await method(request, timeout=20)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, RegistryError) from error

    async def state(self) -> dict[str, list[Any]]:
        """Every row of every table that a refused write must leave alone."""
        # Workers report by themselves, and files are noted as in use before anything is decided about them.
        tables = [table for table in Table.metadata.sorted_tables if table.name not in ("workers", "blob_uses")]
        connection = await psycopg.AsyncConnection.connect(connection_string(self.settings.database_url))
        async with connection:
            return {
                table.name: await (await connection.execute(f"SELECT * FROM {table.name} ORDER BY 1, 2")).fetchall()
                for table in tables
            }


@asynccontextmanager
async def _serve_here(settings: Settings) -> AsyncIterator[RunningRegistry]:
    """A registry over real gRPC in this process."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(open_registry(settings))
        server = Server(registry.services, listen=settings.listen, security=settings.security, gate=registry.access)
        await server.start()
        stack.push_async_callback(server.drain, 0, registry.drain)
        address = f"127.0.0.1:{server.port}"
        channel = connect(address)
        client = await stack.enter_async_context(RegistryClient(channel))
        yield RunningRegistry(
            address=address,
            settings=settings,
            registry=registry,
            client=client,
            stub=registry_service_pb2_grpc.RegistryServiceStub(channel),
            watch_stub=watch_service_pb2_grpc.WatchServiceStub(channel),
            worker_stub=worker_service_pb2_grpc.WorkerServiceStub(channel),
        )


@pytest.fixture
async def registry_server(settings: Settings) -> AsyncIterator[RunningRegistry]:
    """An empty registry over real gRPC in this process."""
    async with _serve_here(settings) as running:
        yield running


@pytest.fixture
def serve_here() -> Callable[[Settings], AbstractAsyncContextManager[RunningRegistry]]:
    """A way to serve more than one registry."""
    return _serve_here


@pytest.fixture
def new_base_model() -> Callable[[int], BaseModelDescription]:
    """Describes a base model; each seed has its own digest."""
    return _make_base_model


@pytest.fixture
def new_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Makes PEFT folders for the base model; each seed has its own digest. See `_make_adapter` for the keywords."""

    def make(seed: int, **changes: Any) -> Path:
        return _make_adapter(tmp_path / f"adapter-{seed}", seed, **changes)

    return make


@pytest.fixture
def connect_to() -> Callable[[str], psycopg.Connection[Any]]:
    """Opens an autocommit connection."""
    return _connect_to


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder of a model too small to answer anything."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    weights = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in TINY_SHAPES.items()}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
async def client(registry_server: RunningRegistry) -> RegistryClient:
    """Of an empty registry."""
    return registry_server.client


@pytest.fixture
async def base_model(registry_server: RunningRegistry) -> str:
    """The name of a registered base model."""
    await registry_server.client.create_base_model("base", _make_base_model())
    return "base"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


async def _registry(*arguments: object, **environment: str) -> Ended:
    """Runs the command; arguments are turned into text."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *(str(one) for one in arguments),
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in err.decode()
    return Ended(process.returncode, out.decode(), err.decode())


class Commands:
    """The command against one registry."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __call__(self, *arguments: object) -> Ended:
        return await _registry(*arguments, LORAPLEX_REGISTRY=self.address)

    async def json(self, *arguments: object) -> Any:
        """The document of a command that must succeed."""
        ended = await self(*arguments, "-o", "json")
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.document


@pytest.fixture
def registry() -> Callable[..., Awaitable[Ended]]:
    """Runs the command in a process of its own."""
    return _registry


@pytest.fixture
def commands_at() -> Callable[[str], Commands]:
    """The command against the registry at an address."""
    return Commands


@dataclass
class RegistryProcess:
    """A registry in a process of its own, with an embedded Postgres unless it is given a DATABASE_URL."""

    data_dir: Path
    database_url: str = ""
    address: str = ""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    PROGRAM = (
        "import asyncio; from registry.app import run; from registry.settings import read_settings;"
        "asyncio.run(run(read_settings(), on_ready=lambda port: print(port, flush=True)))"
    )

    def start(self) -> Self:
        """Returns when it serves."""
        environment = {
            **os.environ,
            "DATABASE_URL": self.database_url,
            "LORAPLEX_REGISTRY_DATA_DIR": str(self.data_dir),
            "LORAPLEX_REGISTRY_LISTEN": self.address or "127.0.0.1:0",
            "LORAPLEX_REGISTRY_DRAIN_S": "2",
            "LORAPLEX_REGISTRY_PROGRESS_S": "0.2",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, f"the registry ended with {self._process.wait()} before it served"
        self.address = f"127.0.0.1:{port}"
        return self

    @property
    def pid(self) -> int:
        """Of the registry."""
        assert self._process is not None
        return self._process.pid

    @property
    def postgres_pid(self) -> int:
        """Of its embedded Postgres."""
        return int((self.data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; returns how the process ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout=30)
        finally:
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        """Ends it, if it runs."""
        if self._process is not None:
            self.end(signal.SIGTERM)


@pytest.fixture
def registry_process(tmp_path: Path) -> Iterator[RegistryProcess]:
    """Not yet started, so that a test can start it, kill it and start it again."""
    process = RegistryProcess(tmp_path / "process")
    yield process
    process.close()


def _connect_to(url: str) -> psycopg.Connection[Any]:
    """An autocommit connection."""
    return psycopg.connect(connection_string(url), autocommit=True)


def _in_database(url: str, name: str) -> str:
    """The same server, another database."""
    before, _, query = url.partition("?")
    return before.rpartition("/")[0] + f"/{name}" + (f"?{query}" if query else "")


def _make_template(url: str) -> None:
    with _connect_to(url) as connection:
        _execute(connection, "DROP DATABASE IF EXISTS {}", TEMPLATE)
        _execute(connection, "CREATE DATABASE {}", TEMPLATE)
    migrate.upgrade(_in_database(url, TEMPLATE))


def _execute(connection: psycopg.Connection[Any], statement: str, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))
