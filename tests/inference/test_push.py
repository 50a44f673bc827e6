"""PushAdapter: what arrives whole and fits is served, anything else changes nothing and leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import contextmanager, suppress

import grpc
import pytest

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, manifest_of_adapter
from inference import push
from inference.errors import InferenceError
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [5, 6, 7]


def parts(folder, name="rl", *, chunk_bytes=1000, **changes):
    """The messages that push a folder."""
    weights = (folder / WEIGHTS_FILE).read_bytes()
    header = {
        "adapter": name,
        "adapter_config": (folder / CONFIG_FILE).read_bytes(),
        "digest": f"sha256:{hashlib.sha256(weights).hexdigest()}",
        "size_bytes": len(weights),
        **changes,
    }
    chunks = [weights[at : at + chunk_bytes] for at in range(0, len(weights), chunk_bytes)]
    return [
        pb.PushAdapterRequest(header=pb.PushHeader(**header)),
        *(pb.PushAdapterRequest(chunk=chunk) for chunk in chunks),
    ]


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value, InferenceError)


def left_behind(tmp_path):
    """Everything of pushes on disk."""
    return sorted(path.name for scratch in (tmp_path / "state" / "scratch").glob("*/") for path in scratch.iterdir())


def scheduled(worker):
    return asyncio.wrap_future(worker.core.engine.run_between_steps(lambda: None))


@contextmanager
def held(worker):
    """The engine takes no step."""
    go_on = threading.Event()
    worker.core.engine.run_between_steps(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


async def test_pushed_weights_are_served_under_their_name_and_listed(open_worker, tiny_adapter):
    folder = tiny_adapter("rl", seed=1)
    async with open_worker(adapters=(f"same={folder}",)) as worker:
        answer = await worker.stub.PushAdapter(iter(parts(folder)))
        digest = manifest_of_adapter(folder).digest
        assert (answer.adapter.adapter, answer.adapter.version, answer.adapter.digest) == ("rl", 0, digest)
        assert await worker.tokens(PROMPT, "rl") == await worker.tokens(PROMPT, "same") != await worker.tokens(PROMPT)
        models = {one.reference: one for one in (await worker.stub.ListModels(pb.ListModelsRequest())).models}
        assert (models["rl"].digest, models["rl"].version, models["rl"].parent) == (digest, 0, "tiny")
        assert models["rl"].state == pb.MODEL_STATE_READY


async def test_a_second_push_switches_the_name_and_running_requests_finish_on_what_they_began_with(
    open_worker, tiny_adapter, tmp_path
):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2, rank=8, targets=("o_proj", "down_proj"))
    async with open_worker(adapters=(f"one={one}", f"two={two}")) as worker:
        expected = [await worker.tokens(PROMPT, name, max_tokens=200) for name in ("one", "two")]
        assert expected[0] != expected[1]
        await worker.stub.PushAdapter(iter(parts(one)))
        running = worker.stub.Generate(
            pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=PROMPT),
                adapters=[pb.AdapterUse(reference="rl")],
                stop=pb.StopConditions(max_tokens=200, ignore_eos=True),
            )
        )
        started = await running.read()
        with held(worker):  # so that it is still running when the name changes its meaning
            await worker.stub.PushAdapter(iter(parts(two)))
        assert await worker.tokens(PROMPT, "rl", max_tokens=200) == expected[1]
        found = []
        while (message := await running.read()) is not grpc.aio.EOF:
            found += message.chunk.token_ids
        assert found == expected[0]
        assert started.started.adapters[0].digest == manifest_of_adapter(one).digest
        assert len(left_behind(tmp_path)) == 1, "the files of the first push were kept"


async def test_the_memory_of_a_pushed_version_is_free_once_nothing_uses_it_and_a_pin_moves_on(
    open_worker, tiny_adapter
):
    folders = [tiny_adapter(f"step-{seed}", seed=seed) for seed in range(3)]
    async with open_worker() as worker:
        for folder in folders:
            await worker.stub.PushAdapter(iter(parts(folder)))
            (loaded,) = worker.core.adapters.loaded()
            assert loaded.digest == manifest_of_adapter(folder).digest
            assert loaded.is_pinned == (folder is not folders[0])
            if folder is folders[0]:
                await worker.stub.PinAdapter(pb.PinAdapterRequest(reference="rl"))
        worker.core.adapters.check_integrity()


async def test_an_evicted_pushed_version_comes_back_from_its_private_files(open_worker, tiny_adapter):
    async with open_worker() as worker:
        await worker.stub.PushAdapter(iter(parts(tiny_adapter("rl", seed=1))))
        before = await worker.tokens(PROMPT, "rl")
        await worker.stub.UnloadAdapter(pb.UnloadAdapterRequest(reference="rl"))
        assert worker.core.adapters.loaded() == []
        assert await worker.tokens(PROMPT, "rl") == before


async def test_weights_that_another_name_serves_too_stay_when_the_pushed_name_moves_on(open_worker, tiny_adapter):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2)
    async with open_worker(adapters=(f"same={one}",)) as worker:
        before = await worker.tokens(PROMPT, "same")
        for folder in (one, two):
            await worker.stub.PushAdapter(iter(parts(folder)))
        assert worker.core.adapters.is_loaded(manifest_of_adapter(one).digest)
        assert await worker.tokens(PROMPT, "same") == before


def bad_pushes(folder):
    """(what is wrong, messages, reason, words)"""
    good = parts(folder)
    size = (folder / WEIGHTS_FILE).stat().st_size
    bad, refused_ = "INVALID_REQUEST", "ADAPTER_LOAD_FAILED"
    deep = b'{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}'
    return {
        "nothing": ([], bad, "found none"),
        "no header": (good[1:], bad, "header"),
        "two headers": ([good[0], good[0]], bad, "chunk"),
        "an empty chunk": ([good[0], pb.PushAdapterRequest(chunk=b"")], bad, "found 0"),
        "a large chunk": ([good[0], pb.PushAdapterRequest(chunk=bytes(2**20 + 1))], bad, "expected 1 to 1048576"),
        "a path for a name": (parts(folder, "../rl"), "INVALID_NAME", "header.adapter"),
        "half a digest": (parts(folder, digest="sha256:12"), bad, "64 lower-case hex digits"),
        "another digest": (parts(folder, digest="sha256:" + "0" * 64), bad, "expected bytes of sha256:0000"),
        "no bytes": (parts(folder, size_bytes=0), bad, "expected 1 to"),
        "more than is allowed": (parts(folder, size_bytes=2**40), bad, "found 1099511627776"),
        "too few bytes": (good[:-1], bad, f"expected {size} bytes in all"),
        "too many bytes": ([*good, good[-1]], bad, "found more"),
        "no configuration": (parts(folder, adapter_config=b""), bad, "header.adapter_config"),
        "a strange mode": (parts(folder, mode=9), bad, "expected a ReloadMode, found 9"),
        "a broken configuration": (parts(folder, adapter_config=b"{"), refused_, "adapter_config.json"),
        "other shapes": (parts(folder, adapter_config=deep), refused_, "expected [8, 32], found [4, 32]"),
    }


async def test_a_push_that_is_not_what_it_says_is_refused_and_what_was_served_goes_on(
    open_worker, tiny_adapter, tmp_path
):
    async with open_worker() as worker:
        await worker.stub.PushAdapter(iter(parts(tiny_adapter("good", seed=1))))
        before, files = await worker.tokens(PROMPT, "rl"), left_behind(tmp_path)
        for what, (messages, reason, words) in bad_pushes(tiny_adapter("rl", seed=2)).items():
            error = await refused(worker.stub.PushAdapter(iter(messages)))
            assert (error.reason, words in str(error)) == (reason, True), f"{what}: {error}"
            assert left_behind(tmp_path) == files, what
        assert await worker.tokens(PROMPT, "rl") == before
        assert len(worker.core.adapters.loaded()) == 1


async def test_a_push_without_room_changes_nothing(open_worker, tiny_adapter):
    async with open_worker(adapter_memory=40_000) as worker:
        await worker.stub.PushAdapter(iter(parts(tiny_adapter("good", seed=1))))
        before = await worker.tokens(PROMPT, "rl")
        error = await refused(worker.stub.PushAdapter(iter(parts(tiny_adapter("large", seed=2, rank=64)))))
        assert error.reason == "ADAPTER_TOO_LARGE"
        assert await worker.tokens(PROMPT, "rl") == before


async def test_a_stream_that_breaks_leaves_nothing(open_worker, tiny_adapter, tmp_path):
    messages = parts(tiny_adapter("rl"))
    async with open_worker() as worker:
        call = worker.stub.PushAdapter()
        for message in messages[:3]:
            await call.write(message)
        while not left_behind(tmp_path):
            await scheduled(worker)
        call.cancel()
        while left_behind(tmp_path):
            await scheduled(worker)
        assert (await refused(worker.generate(PROMPT, "rl"))).reason == "ADAPTER_NOT_FOUND"


async def test_a_deadline_that_passes_leaves_nothing(open_worker, tiny_adapter, tmp_path):
    async with open_worker() as worker:
        call = worker.stub.PushAdapter(timeout=0.2)
        with suppress(grpc.aio.AioRpcError):  # on a slow machine it has passed already
            await call.write(parts(tiny_adapter("rl"))[0])
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while left_behind(tmp_path):
            await scheduled(worker)


async def test_pushes_beyond_the_limit_are_told_to_come_back(open_worker, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "MAX_PUSHES", 1)
    messages = parts(tiny_adapter("rl"))
    async with open_worker() as worker:
        first = worker.stub.PushAdapter()
        await first.write(messages[0])
        while not left_behind(tmp_path):
            await scheduled(worker)
        error = await refused(worker.stub.PushAdapter(iter(messages)))
        assert (error.reason, error.retry_after_s) == ("TOO_MANY_PUSHES", 1.0)
        for message in messages[1:]:
            await first.write(message)
        await first.done_writing()
        assert (await first).adapter.adapter == "rl"
        await worker.stub.PushAdapter(iter(messages))


async def test_a_push_that_stops_coming_gives_its_place_back(open_worker, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(push, "STALL_S", 0.05)
    async with open_worker() as worker:
        call = worker.stub.PushAdapter()
        await call.write(parts(tiny_adapter("rl"))[0])
        assert (await refused(call)).reason == "PUSH_STALLED"
        assert left_behind(tmp_path) == []


async def test_a_worker_may_take_no_pushes(open_worker, tiny_adapter):
    async with open_worker(pushes="off") as worker:
        assert (await refused(worker.stub.PushAdapter(iter(parts(tiny_adapter("rl")))))).reason == "PUSHES_OFF"


async def test_the_same_weights_again_change_nothing(open_worker, tiny_adapter, tmp_path):
    messages = parts(tiny_adapter("rl", seed=1))
    async with open_worker() as worker:
        first = await worker.stub.PushAdapter(iter(messages))
        files = left_behind(tmp_path)
        again = await asyncio.gather(*(worker.stub.PushAdapter(iter(messages)) for _ in range(3)))
        assert {answer.adapter.digest for answer in again} == {first.adapter.digest}
        assert left_behind(tmp_path) == files
        assert await worker.tokens(PROMPT, "rl")
