"""How a worker says what it runs: all of it when something has changed, and otherwise only that it has not.

A worker with ten thousand aliases would send a megabyte every few seconds. Memory and running requests change all the
time and nobody waits for them, so they alone are told once a minute.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from loraplex.registry.v1 import worker_service_pb2 as pb
from loraplex.registry.v1 import worker_service_pb2_grpc as rpcs
from registry import fleet_messages
from registry.calls import Calls
from registry.errors import ReportUnknown
from registry.resources import Worker

WHOLE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What the registry was last told of, and when, by the monotonic clock."""

    adapters_digest: str
    time: float


class WorkerReports:
    """The reports of the workers of one process, of which there is usually one."""

    def __init__(
        self, stub: rpcs.WorkerServiceAsyncStub, calls: Calls, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stub = stub
        self._calls = calls
        self._now = now
        self._told: dict[str, _Told] = {}

    async def report(self, worker: Worker, *, lease_s: float | None) -> int:
        """Returns the registry's revision. Raises RegistryError."""
        digest = digest_of(worker)
        told = self._told.get(worker.id)
        if told is not None and told.adapters_digest == digest and self._now() - told.time < WHOLE_EVERY_S:
            try:
                return await self._send(replace(worker, adapters=()), digest, lease_s, is_renewal=True)
            except ReportUnknown:  # the registry's database is another one, or someone else reports under this id
                pass
        self._told.pop(worker.id, None)
        revision = await self._send(worker, digest, lease_s, is_renewal=False)
        self._told[worker.id] = _Told(digest, self._now())
        return revision

    async def _send(self, worker: Worker, digest: str, lease_s: float | None, *, is_renewal: bool) -> int:
        request = pb.ReportWorkerRequest(
            worker=fleet_messages.write_worker(worker), adapters_digest=digest, is_renewal=is_renewal
        )
        if lease_s is not None:
            request.lease.FromNanoseconds(int(lease_s * 1e9))
        return (await self._calls.call(self._stub.ReportWorker, request)).revision


def digest_of(worker: Worker) -> str:
    """Of everything that is told at once: who it is, and its adapters without their memory and running requests."""
    hasher = hashlib.sha256(repr((worker.address, worker.base_model, worker.base_model_digest)).encode())
    for one in worker.adapters:
        hasher.update(repr((one.adapter, one.version, one.digest, one.state, one.aliases, one.failure)).encode())
    return f"sha256:{hasher.hexdigest()}"
