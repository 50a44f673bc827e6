"""Reports, leases and what is seen of them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from loraplex.registry.v1 import worker_service_pb2 as pb
from registry.errors import InvalidPageToken, InvalidRequest
from registry.resources import Worker, WorkerAdapter, WorkerAdapterState, WorkerState
from registry.store.database import connection_string


def worker(name: str, *, base_model: str = "base", alias: str = "production") -> Worker:
    adapters = (
        WorkerAdapter("sql", 1, "sha256:a", WorkerAdapterState.READY, (alias,), "", 4096, 3),
        WorkerAdapter("sql", 2, "sha256:b", WorkerAdapterState.FAILED, (), "tensor q: found NaN", 0, 0),
    )
    return Worker(name, "127.0.0.1:1", base_model, "sha256:base", 7, adapters)


async def test_a_report_is_seen_as_it_was_last_made_and_makes_no_revision(registry_server, client, base_model):
    before = await registry_server.state()
    assert await client.report_worker(worker("one")) == 1
    assert await client.report_worker(worker("one", alias="canary")) == 1
    (found,) = await client.list_workers()
    assert (found.state, found.adapters) == (WorkerState.LIVE, worker("one", alias="canary").adapters)
    assert found.report_time is not None
    assert await registry_server.state() == before


async def test_workers_come_by_id_and_by_base_model(registry_server, client):
    for name, base_model in (("c", "x"), ("a", "x"), ("b", "y")):
        await client.report_worker(worker(name, base_model=base_model))
    assert [one.id for one in await client.list_workers()] == ["a", "b", "c"]
    assert [one.id for one in await client.list_workers(base_model="x")] == ["a", "c"]
    stub = registry_server.worker_stub
    page = await registry_server.ask(stub.ListWorkers, pb.ListWorkersRequest(page_size=2))
    assert [one.id for one in page.workers] == ["a", "b"]
    rest = await registry_server.ask(stub.ListWorkers, pb.ListWorkersRequest(page_token=page.next_page_token))
    assert [one.id for one in rest.workers] == ["c"]
    with pytest.raises(InvalidPageToken):
        await registry_server.ask(stub.ListWorkers, pb.ListWorkersRequest(page_token="x"))


async def test_a_worker_whose_lease_ran_out_is_lost_until_it_reports_again(client):
    await client.report_worker(worker("one"), lease_s=0.05)
    async with asyncio.timeout(10):
        while (await client.list_workers())[0].state != WorkerState.LOST:
            pass
    await client.report_worker(worker("one"))
    assert (await client.list_workers())[0].state == WorkerState.LIVE


async def test_a_worker_that_was_lost_for_a_week_is_forgotten(registry_server, serve_here, client):
    for name in ("gone", "lost", "live"):
        await client.report_worker(worker(name), lease_s=60)
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        for name, days in (("gone", 7.1), ("lost", 6.9)):
            connection.execute(
                "UPDATE workers SET lease_end = now() - make_interval(secs => %s) WHERE id = %s", (days * 86_400, name)
            )
    # Each registry looks when it starts, and from time to time.
    async with serve_here(registry_server.settings), asyncio.timeout(20):
        while len(found := await client.list_workers()) == 3:
            pass
    assert {one.id: one.state for one in found} == {"live": WorkerState.LIVE, "lost": WorkerState.LOST}
    await client.report_worker(worker("gone"))
    assert len(await client.list_workers()) == 3


async def test_a_bad_report_is_refused(registry_server, client):
    stub = registry_server.worker_stub
    unknown = pb.Worker(id="one", adapters=[pb.WorkerAdapter(adapter="sql", version=1)])
    for request in (
        pb.ReportWorkerRequest(),
        pb.ReportWorkerRequest(worker=pb.Worker(id="x" * 129)),
        pb.ReportWorkerRequest(worker=pb.Worker(id="a\0b")),
        pb.ReportWorkerRequest(worker=unknown),
        pb.ReportWorkerRequest(worker=pb.Worker(id="one", address="a\0b")),
    ):
        with pytest.raises(InvalidRequest):
            await registry_server.ask(stub.ReportWorker, request)
    for lease_s in (0, -1, 301):
        with pytest.raises(InvalidRequest, match="lease"):
            await client.report_worker(worker("one"), lease_s=lease_s)
    assert await client.list_workers() == []


async def test_what_the_registry_decides_is_ignored_in_reports(registry_server, client):
    report = pb.Worker(id="one", state=pb.WORKER_STATE_LOST)
    report.report_time.seconds = 2**60
    await registry_server.ask(registry_server.worker_stub.ReportWorker, pb.ReportWorkerRequest(worker=report))
    assert (await client.list_workers())[0].state == WorkerState.LIVE
