"""WatchService and WorkerService, which workers use: protobuf in, protobuf out."""

from __future__ import annotations

from typing import Any

from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import worker_service_pb2 as worker_pb
from loraplex.registry.v1.watch_service_pb2_grpc import WatchServiceServicer
from loraplex.registry.v1.worker_service_pb2_grpc import WorkerServiceServicer
from registry import fleet_messages
from registry.access import Access, grant
from registry.errors import InvalidRequest
from registry.requests import MAX_ID_CHARS, check_text, read_page
from registry.resources import WatchMessage
from registry.store import Store
from registry.watch import Watches

# mypy-protobuf's own context type is private to each stub.
Context = Any

DEFAULT_LEASE_S = 15.0
MAX_LEASE_S = 300.0


class WatchService(WatchServiceServicer):
    """The event stream."""

    def __init__(self, watches: Watches, access: Access) -> None:
        self._watches = watches
        self._access = access

    async def Watch(self, request: watch_pb.WatchRequest, context: Context) -> None:  # type: ignore[override]
        async def send(store_id: str, message: WatchMessage) -> None:
            # Even an idle watch says something now and then, so one whose token ended does not outlive it for long.
            await self._access.check_again()
            await context.write(fleet_messages.write_watch(message, store_id=store_id))

        await self._watches.stream(
            send,
            after=request.after_revision if request.HasField("after_revision") else None,
            store_id=request.store_id,
            base_model=request.base_model,
            adapters=grant().adapters,
        )


class WorkerService(WorkerServiceServicer):
    """What workers say about themselves."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ReportWorker(
        self, request: worker_pb.ReportWorkerRequest, context: Context
    ) -> worker_pb.ReportWorkerResponse:
        if not request.worker.id:
            raise InvalidRequest("worker.id: expected an id, found none", field="worker.id")
        check_text(request.worker.id, "worker.id", most=MAX_ID_CHARS)
        lease_s = request.lease.ToNanoseconds() / 1e9 if request.HasField("lease") else DEFAULT_LEASE_S
        if not 0 < lease_s <= MAX_LEASE_S:
            raise InvalidRequest(f"lease: expected up to {MAX_LEASE_S:.0f} s, found {lease_s:g} s", field="lease")
        for ours in ("state", "report_time"):
            request.worker.ClearField(ours)
        digest = check_text(request.adapters_digest, "adapters_digest", most=MAX_ID_CHARS)
        if request.is_renewal:
            revision = await self._store.workers.renew(
                request.worker.id,
                observed_revision=request.worker.observed_revision,
                lease_s=lease_s,
                adapters_digest=digest,
            )
        else:
            revision = await self._store.workers.report(
                fleet_messages.read_worker(request.worker), lease_s=lease_s, adapters_digest=digest
            )
        return worker_pb.ReportWorkerResponse(revision=revision)

    async def ListWorkers(
        self, request: worker_pb.ListWorkersRequest, context: Context
    ) -> worker_pb.ListWorkersResponse:
        adapters = grant().adapters
        if request.adapter:
            grant().check_adapter(request.adapter)
            adapters = frozenset({request.adapter})
        found = await self._store.workers.list(read_page(request), base_model=request.base_model, adapters=adapters)
        return worker_pb.ListWorkersResponse(
            workers=[fleet_messages.write_worker(one) for one in found.page.items],
            next_page_token=found.page.next_token,
            revision=found.revision,
        )
