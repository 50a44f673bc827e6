"""A worker and a registry as processes: whose name it is, what a kill leaves, and what is tried before it is served."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from adapter.manifest import PROBE_FILE
from inference.errors import InferenceError
from inference.push_client import push_requests
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error
from tests.tiny import write_adapter, write_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "ABC"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tmp_path_factory: pytest.TempPathFactory, e2e: Any) -> AsyncIterator[Any]:
    """A system over a tiny model, with the adapter `sql` in production."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    system = e2e.System(folder, folder / "model", "--kv-memory", "16MiB", "--adapter-memory", "16MiB")
    try:
        await system.registry.start()
        await system.cli("base", "add", e2e.BASE, str(folder / "model"))
        adapter = str(write_adapter(folder / "sql-1", seed=1))
        await system.cli("register", adapter, "--name", "sql", "--base", e2e.BASE, "--promote", "production")
        await system.worker.start()
        yield system
    finally:
        await system.worker.end()
        await system.registry.end()


def ask(*adapters: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        text=PROMPT,
        adapters=[pb.AdapterUse(reference=reference) for reference in adapters],
        stop=pb.StopConditions(max_tokens=4, ignore_eos=True),
    )


async def refused(call: Any) -> InferenceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, InferenceError)


def scratch(system: Any) -> list[Path]:
    """What lies in the scratch folders of the worker's processes."""
    return list((system.folder / "worker" / "scratch").glob("*/*"))


async def test_a_registrys_name_cannot_be_pushed_over_and_a_pushed_one_gives_way_to_it(
    tiny: Any, e2e: Any, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "pushed", seed=7)
    async with tiny.stub() as stub:
        error = await refused(stub.PushAdapter(push_requests(folder, "sql")))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NAME_TAKEN")
        await stub.PushAdapter(push_requests(folder, "rl"))
        assert (await e2e.generate(stub, ask("rl"))).version == 0
        await tiny.cli("register", str(folder), "--name", "rl", "--base", e2e.BASE)
        await tiny.cli("promote", "rl", "1", "--wait")
        assert (await e2e.generate(stub, ask("rl"))).version == 1
        assert (await refused(stub.PushAdapter(push_requests(folder, "rl")))).reason == "NAME_TAKEN"


async def test_a_version_that_fails_its_self_test_is_reported_and_the_old_one_goes_on(
    tiny: Any, e2e: Any, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "sql-2", seed=2)
    probe = {"prompt": PROMPT, "expected_token_ids": [1, 2, 3]}
    (folder / PROBE_FILE).write_text(json.dumps({"probes": [probe | {"leading": 4}]}))
    refusal = await tiny.cli("register", str(folder), "--name", "sql", "--base", e2e.BASE, code=4)
    assert "leading: expected 1 to 3, found '4'" in refusal
    (folder / PROBE_FILE).write_text(json.dumps({"probes": [probe]}))
    await tiny.cli("register", str(folder), "--name", "sql", "--base", e2e.BASE)
    async with tiny.stub() as stub:
        before = await e2e.generate(stub, ask("sql"))
        told = await tiny.cli("promote", "sql", "2", "--wait", code=7)
        assert "failed its self-test: probe 0: expected the tokens [1, 2, 3], found [" in " ".join(told.split())
        after = await e2e.generate(stub, ask("sql"))
        assert (before.version, after.version) == (1, 1)
        assert after.token_ids == before.token_ids
        assert (await refused(e2e.generate(stub, ask("sql:2")))).reason == "ADAPTER_LOAD_FAILED"


async def test_a_worker_killed_in_the_middle_of_a_push_starts_without_a_trace_of_it(
    tiny: Any, e2e: Any, tmp_path: Path
) -> None:
    header, chunk, *_ = push_requests(write_adapter(tmp_path / "half", rank=64), "half")
    async with tiny.stub() as stub:
        call = stub.PushAdapter()
        await call.write(header)
        await call.write(pb.PushAdapterRequest(chunk=chunk.chunk[:1000]))

        async def has_begun() -> bool:
            return any(path.name.startswith("push-") for path in scratch(tiny))

        await e2e.until(has_begun, "the push to reach the disk")
        await tiny.worker.kill()
        assert await has_begun()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await tiny.worker.start()
        assert scratch(tiny) == []
        assert (await refused(e2e.generate(stub, ask("half")))).reason == "ADAPTER_NOT_FOUND"


async def test_with_the_registry_down_a_started_worker_knows_the_exact_versions_it_served(
    tiny: Any, e2e: Any, tmp_path: Path
) -> None:
    await tiny.cli("register", str(write_adapter(tmp_path / "exact", seed=5)), "--name", "exact", "--base", e2e.BASE)
    async with tiny.stub() as stub:
        before = await e2e.generate(stub, ask("exact:1"))

        async def is_saved() -> bool:
            table = json.loads((tiny.folder / "worker" / "registry.json").read_text())
            return any(one["adapter"] == "exact" for one in table["versions"])

        await e2e.until(is_saved, "the version to be saved")
        await tiny.registry.kill()
        await tiny.worker.kill()
        await tiny.worker.start()
        assert (await e2e.generate(stub, ask("exact:1"))).token_ids == before.token_ids
        folder = write_adapter(tmp_path / "new", seed=6)
        error = await refused(stub.PushAdapter(push_requests(folder, "new")))
        assert error.code == "UNAVAILABLE", "nobody can know whose name it is"
        await tiny.registry.start()
