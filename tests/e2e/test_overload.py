"""A worker with one row and a short queue: refusals come at once and say when to retry, deadlines hold in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from inference.errors import InferenceError, QueueFull
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
from rpc.status import from_rpc_error

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(tmp_path_factory: pytest.TempPathFactory, base_model_dir: Path, e2e: Any) -> AsyncIterator[Any]:
    """A worker without a registry: one row, two requests and 600 tokens in the queue."""
    folder = tmp_path_factory.mktemp("overload")
    flags = ["--max-batch", "1", "--max-queue", "2", "--max-queue-tokens", "600", "--state-dir", str(folder / "state")]
    worker = e2e.Program("worker", ["inference", "serve", "--model", str(base_model_dir), *flags], folder / "log")
    try:
        await worker.start()
        async with grpc.aio.insecure_channel(worker.address) as channel:
            yield pb_grpc.InferenceServiceStub(channel)
    finally:
        await worker.end()


async def waiting(stub: Any) -> int:
    return int((await stub.GetWorker(pb.GetWorkerRequest(), timeout=10)).waiting)


@asynccontextmanager
async def busy(stub: Any, e2e: Any, *queued: pb.GenerateRequest) -> AsyncIterator[None]:
    """An endless answer has the only row, and these wait behind it."""
    running = stub.Generate(e2e.ask(**ENDLESS))
    await running.read()
    calls = [running]
    try:
        for count, request in enumerate(queued, start=1):
            calls.append(stub.Generate(request))

            async def has_come(count: int = count) -> bool:
                return await waiting(stub) == count

            await e2e.until(has_come, "the request to be in the queue")
        yield
    finally:
        for call in calls:
            call.cancel()

        async def is_idle() -> bool:
            worker = await stub.GetWorker(pb.GetWorkerRequest(), timeout=10)
            return bool(worker.running + worker.waiting == 0 and worker.kv_blocks == worker.kv_blocks_free)

        await e2e.until(is_idle, "every cancelled request to be gone")


@pytest.mark.parametrize(
    ("num_queued", "queued_tokens", "words"),
    [(2, 1, "2 requests are waiting and 2 may"), (1, 590, "590 tokens are waiting, 600 may, and this one has")],
)
async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    stub: Any, e2e: Any, num_queued: int, queued_tokens: int, words: str
) -> None:
    queued = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * queued_tokens))
    async with busy(stub, e2e, *[queued] * num_queued):
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await e2e.generate(stub, e2e.ask("Hello!"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = from_rpc_error(caught.value, InferenceError)
        assert isinstance(error, QueueFull)
        assert error.retry_after_s == 1.0
    assert (await e2e.generate(stub, e2e.ask("Hello!"))).finished is not None


async def test_a_deadline_that_passes_in_the_queue_ends_the_request_there(stub: Any, e2e: Any) -> None:
    async with busy(stub, e2e):
        call = stub.Generate(e2e.ask("Hello!"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        async def is_gone() -> bool:
            return await waiting(stub) == 0

        await e2e.until(is_gone, "the request to leave the queue while another one runs")


async def test_a_cancel_in_the_queue_leaves_the_turns_of_others(stub: Any, e2e: Any) -> None:
    async with busy(stub, e2e, e2e.ask("Hello!")):
        other = stub.Generate(e2e.ask("Goodbye!"))
        await asyncio.sleep(0)
        other.cancel()

        async def is_one() -> bool:
            return await waiting(stub) == 1

        await e2e.until(is_one, "the cancelled request to leave the queue")
