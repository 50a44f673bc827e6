"""A worker says everything when something changed, and only that nothing has otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from loraplex.registry.v1 import worker_service_pb2 as pb
from registry.calls import Calls
from registry.errors import ReportUnknown
from registry.resources import Worker, WorkerAdapter, WorkerAdapterState, WorkerState
from registry.store.database import connection_string
from registry.worker_reports import WHOLE_EVERY_S, WorkerReports

ALIASES = 1000


def account(**changes: Any) -> Worker:
    """Of many adapters; changes are of the first."""
    adapters = [
        WorkerAdapter(f"adapter-{n}", 1, f"sha256:{n:064x}", WorkerAdapterState.READY, ("production",))
        for n in range(ALIASES)
    ]
    adapters[0] = replace(adapters[0], **changes)
    return Worker("w", "host:1", "base", "sha256:base", 7, tuple(adapters))


class Recorder:
    """The stub, and what went through it."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.requests: list[pb.ReportWorkerRequest] = []

    async def ReportWorker(self, request: pb.ReportWorkerRequest, **options: Any) -> Any:
        self.requests.append(request)
        return await self._stub.ReportWorker(request, **options)

    @property
    def renewals(self) -> list[bool]:
        """Of each report, whether it was one."""
        return [request.is_renewal for request in self.requests]


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def recorder(registry_server: Any) -> Recorder:
    return Recorder(registry_server.worker_stub)


@pytest.fixture
def reports(recorder: Recorder, clock: list[float]) -> WorkerReports:
    return WorkerReports(recorder, Calls(deadline_s=20), now=lambda: clock[0])  # type: ignore[arg-type]


async def test_what_has_not_changed_is_not_sent_again(recorder, reports, client, registry_server):
    await reports.report(account(), lease_s=60)
    (before,) = await client.list_workers()
    await reports.report(replace(account(in_flight=5, size_bytes=9), observed_revision=8), lease_s=60)
    assert recorder.renewals == [False, True]
    assert recorder.requests[1].ByteSize() < 200 < recorder.requests[0].ByteSize() / 100
    (after,) = await client.list_workers()
    assert after.adapters == account().adapters
    assert (before.observed_revision, after.observed_revision) == (7, 8)
    assert after.report_time > before.report_time


@pytest.mark.parametrize(
    "change",
    [{"state": WorkerAdapterState.FAILED, "failure": "NaN"}, {"aliases": ("canary",)}, {"digest": f"sha256:{1:064x}"}],
)
async def test_a_change_is_told_at_once(recorder, reports, client, change):
    await reports.report(account(), lease_s=60)
    await reports.report(account(**change), lease_s=60)
    await reports.report(account(**change), lease_s=60)
    assert recorder.renewals == [False, False, True]
    assert (await client.list_workers())[0].adapters == account(**change).adapters


async def test_memory_and_running_requests_are_told_once_a_minute(recorder, reports, client, clock):
    await reports.report(account(), lease_s=60)
    clock[0] += WHOLE_EVERY_S - 1
    await reports.report(account(in_flight=5), lease_s=60)
    clock[0] += 1
    await reports.report(account(in_flight=6, size_bytes=9), lease_s=60)
    assert recorder.renewals == [False, True, False]
    assert (await client.list_workers())[0].adapters == account(in_flight=6, size_bytes=9).adapters


async def test_a_registry_that_does_not_know_the_account_is_told_all(recorder, reports, client, registry_server):
    await reports.report(account(), lease_s=60)
    with psycopg.connect(connection_string(registry_server.settings.database_url), autocommit=True) as connection:
        connection.execute("DELETE FROM workers")
    await reports.report(account(), lease_s=60)
    assert recorder.renewals == [False, True, False]
    await client.report_worker(account(failure="someone else under this id"), lease_s=60)
    await reports.report(account(), lease_s=60)
    assert recorder.renewals == [False, True, False, True, False]
    assert (await client.list_workers())[0].adapters == account().adapters


async def test_a_renewal_brings_a_lost_worker_back(reports, client, registry_server):
    await reports.report(account(), lease_s=60)
    with psycopg.connect(connection_string(registry_server.settings.database_url), autocommit=True) as connection:
        connection.execute("UPDATE workers SET lease_end = now() - interval '1 hour'")
    assert (await client.list_workers())[0].state is WorkerState.LOST
    await reports.report(account(), lease_s=60)
    assert (await client.list_workers())[0].state is WorkerState.LIVE


async def test_a_renewal_of_nothing_is_refused(registry_server):
    stub = registry_server.worker_stub
    await registry_server.ask(stub.ReportWorker, pb.ReportWorkerRequest(worker=pb.Worker(id="w")))
    for digest in ("", "sha256:other"):
        renewal = pb.ReportWorkerRequest(worker=pb.Worker(id="w"), is_renewal=True, adapters_digest=digest)
        with pytest.raises(ReportUnknown):
            await registry_server.ask(stub.ReportWorker, renewal)
