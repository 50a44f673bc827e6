"""kill -9 of every process in the middle of things: a clear error, nothing lost, and everything comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference.errors import Draining, InferenceError
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
from rpc.status import from_rpc_error

pytestmark = pytest.mark.asyncio(loop_scope="module")


def postgres_pid(system: Any) -> int:
    """The postmaster of the registry's own Postgres."""
    (pid_file,) = (system.folder / "registry").rglob("postmaster.pid")
    return int(pid_file.read_text().splitlines()[0])


async def test_a_killed_worker_ends_its_streams_with_unavailable_and_comes_back(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        call = stub.Generate(e2e.ask("A long story.", "pirate", max_tokens=4000, ignore_eos=True), timeout=60)
        while (await call.read()).WhichOneof("message") != "chunk":
            pass
        await system.worker.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_to_the_end(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await system.worker.start()
        assert (await e2e.generate(stub, e2e.ask("Hello!", "pirate"))).version == 1


async def test_with_the_registry_down_a_worker_keeps_serving_and_even_starts(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        before = await e2e.generate(stub, e2e.ask("Tell me about the sea.", "pirate"))
        await system.registry.kill()
        during = await e2e.generate(stub, e2e.ask("Tell me about the sea.", "pirate"))
        assert during.token_ids == before.token_ids
        await system.worker.kill()
        await system.worker.start()
        after = await e2e.generate(stub, e2e.ask("Tell me about the sea.", "pirate"))
        assert after.token_ids == before.token_ids
        assert after.started.adapters == before.started.adapters
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await e2e.generate(stub, e2e.ask("Hello!", "never-heard-of"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # not NOT_FOUND: nobody can know
        await system.registry.start()

        async def is_connected() -> bool:
            return bool((await stub.GetWorker(pb.GetWorkerRequest(), timeout=30)).registry_connected)

        await e2e.until(is_connected, "the worker to find the registry again")


async def test_a_registry_killed_during_a_promotion_has_made_it_or_not(
    system: Any, e2e: Any, adapters_dir: Path
) -> None:
    for name in ("pirate", "json"):
        await system.cli("register", str(adapters_dir / name), "--name", "torn", "--base", e2e.BASE)
    await system.cli("promote", "torn", "1", "--wait")
    async with system.stub() as stub, e2e.open_client(system.registry.address) as client:
        stream = asyncio.create_task(e2e.generate(stub, e2e.ask("Sea?", "torn", max_tokens=64, ignore_eos=True)))
        promotion = asyncio.create_task(client.promote("torn", 2))
        await asyncio.sleep(random.uniform(0, 0.03))  # the kill lands at another moment in every run
        await system.registry.kill()
        promotion.cancel()
        await asyncio.gather(promotion, return_exceptions=True)
        assert (await stream).version in (1, 2)
        await system.registry.start()
        number = (await client.resolve("torn")).version.number
        assert number in (1, 2)

        async def serves_it() -> bool:
            return (await e2e.generate(stub, e2e.ask("Hello!", "torn", max_tokens=1))).version == number

        await e2e.until(serves_it, "the worker to serve what the registry says")


async def test_a_killed_postgres_comes_back_and_nothing_is_lost(system: Any, e2e: Any) -> None:
    before = await system.json("list")
    os.kill(postgres_pid(system), signal.SIGKILL)
    async with system.stub() as stub:
        assert (await e2e.generate(stub, e2e.ask("Hello!", "sql"))).version == 1

    async def lists() -> Any:
        process = await asyncio.create_subprocess_exec(
            str(e2e.BIN / "registry"), "--server", system.registry.address, "list",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait() == 0

    await e2e.until(lists, "the registry to restart its Postgres")
    assert await system.json("list") == before
    await system.cli("promote", "sql", "1", "--wait")


async def test_sigterm_lets_running_answers_finish(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        began = asyncio.Event()
        stream = asyncio.create_task(
            e2e.generate(stub, e2e.ask("Sea?", "pirate", max_tokens=48, ignore_eos=True), lambda _: began.set())
        )
        await began.wait()
        await system.worker.stop()
        answer = await stream
        assert len(answer.token_ids) == 48
    await system.worker.start()


async def test_a_worker_without_a_registry_serves_folders_and_tells_what_waits_or_outlasts_its_drain(
    e2e: Any, base_model_dir: Path, adapters_dir: Path, tmp_path: Path
) -> None:
    worker = e2e.Program(
        "worker",
        [
            *("inference", "serve", "--model", str(base_model_dir), "--adapter", f"pirate={adapters_dir / 'pirate'}"),
            *("--state-dir", str(tmp_path), "--drain-s", "0.2", "--max-batch", "1"),
        ],
        tmp_path / "worker.log",
    )
    await worker.start()
    async with grpc.aio.insecure_channel(worker.address) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        answer = await e2e.generate(stub, e2e.ask("Tell me about the sea.", "pirate"))
        (served,) = answer.started.adapters
        assert (served.adapter, served.version) == ("pirate", 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await e2e.generate(stub, e2e.ask("Hello!", "sql"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        began = asyncio.Event()
        request = e2e.ask("A long story.", "pirate", max_tokens=4000, ignore_eos=True)
        stream = asyncio.create_task(e2e.generate(stub, request, lambda _: began.set()))
        await began.wait()
        waiting = asyncio.create_task(e2e.generate(stub, e2e.ask("Hello!")))

        async def is_queued() -> bool:
            return bool((await stub.GetWorker(pb.GetWorkerRequest(), timeout=10)).waiting)

        await e2e.until(is_queued, "the second request to wait for the only row")
        await worker.stop()
        for ended in (waiting, stream):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ended
            error = from_rpc_error(caught.value, InferenceError)
            assert type(error) is Draining
            assert error.retry_after_s is not None


async def _read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
