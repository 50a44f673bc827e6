"""A request for an adapter that is on its way: it waits within its deadline or is told to come back, and holds nothing
once it has gone."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from inference.errors import InferenceError
from inference.push_client import push_requests
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [5, 6, 7]


class SlowFiles:
    """The files of one adapter come when the test lets them."""

    def __init__(self, worker, name):
        self._resolver = worker.service._desk._resolver
        self._fetch = self._resolver.fetch
        self._name = name
        self.is_asked, self.go = asyncio.Event(), asyncio.Event()
        self._resolver.fetch = self.fetch

    async def fetch(self, version):
        if version.adapter == self._name:
            self.is_asked.set()
            await self.go.wait()
        return await self._fetch(version)


def ask(worker, *adapters, timeout=60, **fields):
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=PROMPT),
        adapters=[pb.AdapterUse(reference=reference) for reference in adapters],
        stop=pb.StopConditions(max_tokens=4, ignore_eos=True),
        **fields,
    )
    return worker.stub.Generate(request, timeout=timeout)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return caught.value


async def until_idle(worker):
    """Waits until nothing is leased, loading or running, and every block is free."""
    adapters, engine = worker.core.adapters, worker.core.engine
    while any(loaded.leases for loaded in adapters.loaded()) or len(worker.core.streams) or engine.stats().running:
        await asyncio.wrap_future(engine.run_between_steps(lambda: None))
    adapters.check_integrity()
    stats = engine.stats()
    assert (stats.waiting, stats.blocks_free) == (0, stats.blocks)


@pytest.fixture
def modules(tiny_adapter):
    return tuple(f"{name}={tiny_adapter(name, seed=seed)}" for seed, name in enumerate(("cold", "warm")))


async def test_a_request_waits_for_its_adapter_while_others_are_answered(open_worker, modules):
    async with open_worker(adapters=modules) as worker:
        files = SlowFiles(worker, "cold")
        waiting = ask(worker, "cold")
        await files.is_asked.wait()
        assert len(await worker.tokens(PROMPT, "warm")) == 8
        files.go.set()
        assert (await waiting.read()).started.adapters[0].adapter == "cold"
        waiting.cancel()
        await until_idle(worker)


async def test_a_deadline_that_passes_while_the_adapter_is_on_its_way_ends_the_wait_and_not_the_worker(
    open_worker, modules
):
    async with open_worker(adapters=modules) as worker:
        files = SlowFiles(worker, "cold")
        error = await refused(ask(worker, "warm", "cold", timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_idle(worker)
        files.go.set()
        assert len(await worker.tokens(PROMPT, "cold")) == 8


async def test_who_gives_up_while_the_adapter_is_on_its_way_holds_nothing(open_worker, modules):
    async with open_worker(adapters=modules) as worker:
        files = SlowFiles(worker, "cold")
        calls = [ask(worker, "warm", "cold") for _ in range(3)]
        await files.is_asked.wait()
        for call in calls:
            call.cancel()
        await until_idle(worker)
        files.go.set()
        await worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference="cold"))
        await until_idle(worker)


async def test_who_will_not_wait_is_told_at_once_and_finds_the_adapter_later(open_worker, modules):
    async with open_worker(adapters=modules) as worker:
        files = SlowFiles(worker, "cold")
        for _ in range(2):
            error = await refused(ask(worker, "cold", adapter_loading=pb.ADAPTER_LOADING_REFUSE))
            found = from_rpc_error(error, InferenceError)
            assert (found.code, found.reason, found.retry_after_s) == ("UNAVAILABLE", "ADAPTER_LOADING", 1.0)
        await files.is_asked.wait()
        files.go.set()
        await worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference="cold"))  # joins the load under way
        started = await ask(worker, "cold", adapter_loading=pb.ADAPTER_LOADING_REFUSE).read()
        assert started.HasField("started")
        await until_idle(worker)


async def test_a_pushed_adapter_that_was_evicted_is_on_its_way_like_any_other(open_worker, tiny_adapter):
    async with open_worker() as worker:
        await worker.stub.PushAdapter(push_requests(tiny_adapter("rl"), "rl"))
        await worker.stub.UnloadAdapter(pb.UnloadAdapterRequest(reference="rl"))
        files = SlowFiles(worker, "rl")
        error = await refused(ask(worker, "rl", adapter_loading=pb.ADAPTER_LOADING_REFUSE))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        files.go.set()
        assert len(await worker.tokens(PROMPT, "rl")) == 8
