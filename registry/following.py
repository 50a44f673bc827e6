"""An endless watch over a connection that ends. It knows revisions, not what the events mean.

    first or lost ──> snapshot items, snapshot end ──> changes and progress ──(connection breaks)──> resume
          ^                                                                                             │
          └──────── the revision is compacted or of the future, or the store is another one ────────────┘

A consumer sees an unbroken stream: a snapshot comes whole or not at all, and whenever one comes it replaces what was
known before; between two snapshots each revision comes once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import watch_service_pb2_grpc as watch_rpcs
from registry.errors import RegistryError, StoreUnavailable
from registry.fleet_messages import read_watch
from registry.resources import SnapshotEnd, SnapshotItem, WatchMessage
from registry.retries import backoff_s
from rpc.status import from_rpc_error

# Answers that trying again cannot change.
_FINAL_CODES = frozenset({"INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"})
_SNAPSHOT_CODES = frozenset({"OUT_OF_RANGE", "FAILED_PRECONDITION"})


async def follow(
    channel: grpc.aio.Channel,
    *,
    after_revision: int | None,
    store_id: str,
    base_model: str,
    on_connection: Callable[[RegistryError | None], None] | None,
) -> AsyncGenerator[WatchMessage]:
    """Yields for ever; `on_connection` is told None with the first message of a connection and why one was lost.

    Raises RegistryError only for what trying again cannot change: a bad request or a missing permission.
    """
    stub = watch_rpcs.WatchServiceStub(channel)
    tell = on_connection or (lambda _: None)
    position, failures = after_revision, 0
    while True:
        request = watch_pb.WatchRequest(after_revision=position, store_id=store_id, base_model=base_model)
        call: Any = stub.Watch(request)
        snapshot: list[WatchMessage] = []
        is_connected = False
        error: RegistryError = StoreUnavailable("the registry ended the watch")
        try:
            async for response in call:
                if not is_connected:
                    tell(None)
                is_connected, failures = True, 0
                message = read_watch(response)
                if message is None:
                    continue
                if isinstance(message, SnapshotItem):
                    snapshot.append(message)
                    continue
                if isinstance(message, SnapshotEnd):
                    for item in snapshot:
                        yield item
                    snapshot.clear()
                yield message
                position, store_id = message.revision, response.store_id
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken, RegistryError)
        finally:
            call.cancel()
        if error.code in _FINAL_CODES or (error.code in _SNAPSHOT_CODES and position is None):
            raise error
        tell(error)
        if error.code in _SNAPSHOT_CODES:
            position, store_id = None, ""
        await asyncio.sleep(backoff_s(failures, error))
        failures += 1
