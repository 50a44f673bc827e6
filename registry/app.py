"""The registry process put together: Postgres, migrations, store, blobs, listener, services. Everything is built here.

start:  settings checked ─ Postgres ─ migrate ─ blobs ─ listener ─ serve
stop:   watches are told, calls finish ─ listener ─ connections ─ Postgres
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from loraplex.registry.v1 import (
    registry_service_pb2,
    registry_service_pb2_grpc,
    signing_service_pb2,
    signing_service_pb2_grpc,
    upkeep_service_pb2,
    upkeep_service_pb2_grpc,
    watch_service_pb2,
    watch_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from registry import migrate
from registry.access import Access
from registry.blobs import BlobStore
from registry.embedded import EmbeddedPostgres
from registry.errors import Draining
from registry.events import Listener
from registry.fleet_service import WatchService, WorkerService
from registry.registration import Registration
from registry.service import RegistryService
from registry.settings import Settings
from registry.shelves import FolderShelf, open_shelf
from registry.signing_service import SigningService
from registry.sources import Sources
from registry.spool import Spool
from registry.store import Store
from registry.store.compaction import Keep
from registry.store.database import RETRY_AFTER_S, Database
from registry.upkeep import keep_up
from registry.upkeep_service import UpkeepService
from registry.watch import Watches
from rpc.server import Service, serve

log = logging.getLogger(__name__)


class Registry:
    """The parts of a running registry that a server needs."""

    def __init__(self, services: list[Service], listener: Listener, access: Access) -> None:
        self.services = services
        self.access = access
        self._listener = listener

    async def drain(self) -> None:
        """Tells every watcher to come back, so that open watches do not hold up the end."""
        self._listener.close(Draining(retry_after_s=RETRY_AFTER_S))


async def run(settings: Settings, *, on_ready: Callable[[int], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; `on_ready` gets the port. Raises RegistryError when it cannot start."""
    settings.security.check_listen(settings.listen)

    def ready(port: int) -> None:
        log.info("the registry serves on %s", settings.listen if ":0" not in settings.listen else f"port {port}")
        if on_ready is not None:
            on_ready(port)

    async with open_registry(settings) as registry:
        await serve(
            registry.services,
            listen=settings.listen,
            security=settings.security,
            drain_s=settings.drain_s,
            on_ready=ready,
            on_drain=registry.drain,
            gate=registry.access,
        )


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """The registry without its gRPC server."""
    async with AsyncExitStack() as stack:
        url = settings.database_url or await stack.enter_async_context(_embedded(settings.data_dir / "postgres"))
        await asyncio.to_thread(migrate.upgrade, url)
        database = Database(url, pool_size=settings.pool_size)
        stack.push_async_callback(database.close)
        store = Store(database)
        blobs = _make_blobs(settings)
        await asyncio.to_thread(blobs.open)
        listener = Listener(url, poll_s=settings.poll_s)
        await stack.enter_async_context(_running(listener.run(), "listener"))
        watches = Watches(
            store.changes,
            listener,
            progress_s=settings.progress_s,
            max_snapshots=max(1, settings.pool_size // 2),
        )
        keep = Keep(settings.keep_revisions, settings.keep_days * 86_400)
        upkeep = keep_up(store, keep, every_s=settings.compact_every_s)
        await stack.enter_async_context(_running(upkeep, "upkeep"))
        access = Access(settings.security, store.tokens, listener, client_grants=settings.client_grants)
        registration = Registration(store, blobs, Sources(settings.source_roots))
        services = _services(
            RegistryService(store, blobs, registration),
            WatchService(watches, access),
            WorkerService(store),
            UpkeepService(store, keep, blobs),
            SigningService(store.signing),
        )
        yield Registry(services, listener, access)


def _make_blobs(settings: Settings) -> BlobStore:
    """The stored files, and uploads on their way: beside the files where those are in a folder, for a quick rename."""
    shelf = open_shelf(settings.blobs or str(settings.data_dir / "blobs"))
    folder = shelf.folder if isinstance(shelf, FolderShelf) else settings.data_dir / "blobs"
    return BlobStore(shelf, Spool(folder / "tmp"), max_bytes=settings.max_blob_bytes)


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[str]:
    """The URL of an embedded Postgres that is kept running."""
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    try:
        async with _running(postgres.supervise(), "supervisor of postgres"):
            yield postgres.url
    finally:
        await postgres.stop()


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Work that goes on beside the block and ends with it. Work that fails is a bug, and its error is logged."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the %s failed", task.get_name(), exc_info=error)


def _services(
    registry: RegistryService,
    watch: WatchService,
    worker: WorkerService,
    upkeep: UpkeepService,
    signing: SigningService,
) -> list[Service]:
    return [
        Service(
            registry_service_pb2.DESCRIPTOR.services_by_name["RegistryService"],
            registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
            registry,
        ),
        Service(
            watch_service_pb2.DESCRIPTOR.services_by_name["WatchService"],
            watch_service_pb2_grpc.add_WatchServiceServicer_to_server,
            watch,
        ),
        Service(
            worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
            worker_service_pb2_grpc.add_WorkerServiceServicer_to_server,
            worker,
        ),
        Service(
            upkeep_service_pb2.DESCRIPTOR.services_by_name["UpkeepService"],
            upkeep_service_pb2_grpc.add_UpkeepServiceServicer_to_server,
            upkeep,
        ),
        Service(
            signing_service_pb2.DESCRIPTOR.services_by_name["SigningService"],
            signing_service_pb2_grpc.add_SigningServiceServicer_to_server,
            signing,
        ),
    ]
