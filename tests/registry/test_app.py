"""A registry in a process of its own, killed in every way; and one whose Postgres goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import grpc
import pytest

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry.client import RegistryClient
from registry.embedded import POLL_S, EmbeddedPostgres
from registry.errors import RegistryError, StoreUnavailable
from registry.resources import Change
from rpc.channel import connect
from rpc.status import from_rpc_error


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while is_alive(pid):
            await asyncio.sleep(POLL_S)


async def fill(client: RegistryClient, new_base_model, new_adapter) -> None:
    """A base model and sql:1 and sql:2."""
    await client.create_base_model("base", new_base_model(0))
    for seed in (1, 2):
        await client.register(new_adapter(seed), adapter="sql", base_model="base")


async def test_sigterm_ends_the_registry_and_its_postgres_and_open_watches(registry_process, new_base_model):
    registry_process.start()
    postgres = registry_process.postgres_pid
    async with RegistryClient(connect(registry_process.address)) as client:
        lost = asyncio.Event()
        watch = client.watch(on_connection=lambda error: lost.set() if error else None)
        await anext(watch)
        follow = asyncio.create_task(anext(watch))
        assert await asyncio.to_thread(registry_process.end, signal.SIGTERM) == 0
        await asyncio.wait_for(lost.wait(), 20)
        follow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follow
    assert not is_alive(postgres)


async def test_a_registry_killed_in_the_middle_of_promotions_loses_none_that_it_answered(
    registry_process, new_base_model, new_adapter
):
    registry_process.start()
    async with RegistryClient(connect(registry_process.address)) as client:
        await fill(client, new_base_model, new_adapter)
    postgres = registry_process.postgres_pid
    answered: list[pb.PromoteAdapterVersionResponse] = []

    def request(number: int) -> pb.PromoteAdapterVersionRequest:
        return pb.PromoteAdapterVersionRequest(adapter="sql", version=1 + number % 2, request_id=f"promotion-{number}")

    async with connect(registry_process.address) as channel:
        stub = RegistryServiceStub(channel)

        async def promote_for_ever() -> None:
            while True:
                answered.append(await stub.PromoteAdapterVersion(request(len(answered)), timeout=20))

        promotions = asyncio.create_task(promote_for_ever())
        async with asyncio.timeout(20):
            while len(answered) < 10:
                await asyncio.sleep(0)
        registry_process.end(signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError):
            await promotions
    await until_gone(postgres)

    registry_process.start()
    async with (
        RegistryClient(connect(registry_process.address)) as client,
        connect(registry_process.address) as channel,
    ):
        stub = RegistryServiceStub(channel)
        changes = await client.list_alias_changes("sql")
        assert [change.revision for change in changes][::-1] == list(range(4, 4 + len(changes)))
        assert len(changes) in (len(answered), len(answered) + 1)
        # A repeat gives the first answer, and one that was never answered is done exactly once.
        for number, answer in enumerate(answered):
            assert await stub.PromoteAdapterVersion(request(number)) == answer
        last = await stub.PromoteAdapterVersion(request(len(answered)))
        assert last.alias.revision == 4 + len(answered)
        assert (await client.status()).revision == 4 + len(answered)
        assert (await client.resolve("sql")).version.number == 1 + len(answered) % 2


async def test_a_registry_whose_postgres_is_killed_says_so_and_has_it_back_soon(
    registry_process, new_base_model, new_adapter
):
    registry_process.start()
    async with (
        RegistryClient(connect(registry_process.address)) as client,
        connect(registry_process.address) as channel,
    ):
        stub = RegistryServiceStub(channel)
        await fill(client, new_base_model, new_adapter)
        seen: list[int] = []

        async def follow() -> None:
            async for message in client.watch(after_revision=3):
                if isinstance(message, Change):
                    seen.append(message.revision)

        following = asyncio.create_task(follow())
        for number in (1, 2):
            os.kill(registry_process.postgres_pid, signal.SIGKILL)
            async with asyncio.timeout(30):
                while True:
                    request = pb.PromoteAdapterVersionRequest(adapter="sql", version=number, request_id=f"r{number}")
                    try:
                        await stub.PromoteAdapterVersion(request, timeout=20)
                        break
                    except grpc.aio.AioRpcError as error:
                        told = from_rpc_error(error, RegistryError)
                        assert isinstance(told, StoreUnavailable), told
                        assert told.retry_after_s is not None
                        await asyncio.sleep(POLL_S)
        async with asyncio.timeout(30):
            while seen != [4, 5]:
                await asyncio.sleep(POLL_S)
        following.cancel()


async def test_a_registry_answers_unavailable_while_its_server_is_away_and_recovers(
    tmp_path, settings, serve_here, new_base_model, new_adapter
):
    postgres = EmbeddedPostgres(tmp_path / "server")
    await postgres.start()
    try:
        async with serve_here(dataclasses.replace(settings, database_url=postgres.url)) as server:
            await fill(server.client, new_base_model, new_adapter)
            await postgres.stop()
            requests = (
                (server.stub.GetStatus, pb.GetStatusRequest()),
                (server.stub.ResolveAdapter, pb.ResolveAdapterRequest(reference="sql:1")),
                (server.stub.PromoteAdapterVersion, pb.PromoteAdapterVersionRequest(adapter="sql", version=1)),
            )
            for method, request in requests:
                with pytest.raises(StoreUnavailable) as told:
                    await server.ask(method, request)
                assert told.value.retry_after_s is not None
            await postgres.start()
            for method, request in requests:
                await server.ask(method, request)
            assert (await server.client.status()).revision == 4
    finally:
        await postgres.stop()


async def test_two_registries_may_share_a_server_and_start_at_once(empty_database_url, tmp_path, settings, serve_here):
    both = [
        serve_here(dataclasses.replace(settings, database_url=empty_database_url, data_dir=tmp_path / name))
        for name in ("a", "b")
    ]
    servers = await asyncio.gather(*(one.__aenter__() for one in both))
    statuses = await asyncio.gather(*(server.client.status() for server in servers))
    assert statuses[0] == statuses[1]
    for one in both:
        await one.__aexit__(None, None, None)
