"""PushAdapter: what arrives whole and fits is served, anything else changes nothing and leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import suppress

import grpc
import pytest

from adapter.manifest import CONFIG_FILE, WEIGHTS_FILE, manifest_of_adapter
from inference import push
from inference.errors import InferenceError
from inference.lora.reading import AdapterFiles
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [5, 6, 7]
IMMEDIATE = pb.RELOAD_MODE_IMMEDIATE


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


class Running:
    """An answer under way: its ids, and the messages that are no tokens."""

    def __init__(self, worker, *adapters, max_tokens, **fields):
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=PROMPT),
            adapters=adapters,
            stop=pb.StopConditions(max_tokens=max_tokens, ignore_eos=True),
            **fields,
        )
        self._call = worker.stub.Generate(request, timeout=60)
        self.token_ids = []
        self.others = []

    async def read(self, count=10**9):
        """Reads until so many tokens are there, or to the end."""
        while len(self.token_ids) < count:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                break
            self.token_ids += message.chunk.token_ids
            if not message.HasField("chunk"):
                self.others.append(message)

    @property
    def reloads(self):
        return [message.reloaded for message in self.others if message.HasField("reloaded")]


def use(reference, weight=None):
    return pb.AdapterUse(reference=reference, weight=weight)


class Gate:
    """Steps of the engine that the test allows, one by one, until it is left."""

    def __init__(self, worker):
        self._runner = worker.core.engine._runner
        self._run = self._runner.run
        self._turns = threading.Semaphore(0)

    def __enter__(self):
        self._runner.run = self._step
        return self

    def __exit__(self, *_):
        self._runner.run = self._run
        self._turns.release(1000)  # for the step that waits

    def allow(self, steps):
        self._turns.release(steps)

    def _step(self, chunks):
        self._turns.acquire()
        return self._run(chunks)


async def push_meanwhile(worker, gate, folder, **header):
    """Pushes while a request runs, whose step under way ends when the name means the new weights."""
    call = worker.stub.PushAdapter(iter(parts(folder, **header)))
    meaning = ("rl", manifest_of_adapter(folder).digest)
    models = []
    while meaning not in [(one.reference, one.digest) for one in models]:
        models = (await worker.stub.ListModels(pb.ListModelsRequest())).models
    gate.allow(1)
    return await call


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
    async with open_worker(adapters=(f"one={one}",)) as worker:
        expected = await worker.tokens(PROMPT, "one", max_tokens=50)
        await worker.stub.PushAdapter(iter(parts(one)))
        running = Running(worker, use("rl"), max_tokens=50)
        with Gate(worker) as gate:
            gate.allow(5)
            await running.read(5)
            await push_meanwhile(worker, gate, two)
        assert await worker.tokens(PROMPT, "rl", max_tokens=50) != expected
        await running.read()
        assert (running.token_ids, running.reloads) == (expected, [])
        assert running.others[0].started.adapters[0].digest == manifest_of_adapter(one).digest
        assert len(left_behind(tmp_path)) == 1, "the files of the first push were kept"


async def test_the_memory_of_a_pushed_version_is_free_once_nothing_uses_it_and_a_pin_moves_on(
    open_worker, tiny_adapter
):
    folders = [tiny_adapter(f"step-{seed}", seed=seed) for seed in range(3)]
    async with open_worker() as worker:
        for folder in folders:
            await worker.stub.PushAdapter(iter(parts(folder)))
            await scheduled(worker)
            assert worker.core.engine.stats().blocks_kept == 0, "prefixes of the weights before are kept"
            await worker.tokens(PROMPT * 10, "rl")
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


@pytest.mark.parametrize(
    "kind", [{}, {"rank": 8, "targets": ("o_proj", "down_proj")}], ids=["the same layout", "another layout"]
)
async def test_an_immediate_push_changes_the_weights_under_a_running_request_and_says_where(
    open_worker, tiny_adapter, kind
):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2, **kind)
    async with open_worker(adapters=(f"one={one}", f"two={two}")) as worker:
        expected = await worker.tokens(PROMPT, "one", max_tokens=100)
        await worker.stub.PushAdapter(iter(parts(one)))
        with Gate(worker) as gate:
            running, exact = (
                Running(worker, use(reference), max_tokens=100) for reference in ("rl", manifest_of_adapter(one).digest)
            )
            gate.allow(8)
            await running.read(5)
            await exact.read(1)
            answer = await push_meanwhile(worker, gate, two, mode=IMMEDIATE)
        await running.read()
        await exact.read()
        (reload,) = running.reloads
        assert (reload.answer, 5 <= reload.index < 12) == (0, True)
        assert [(now.adapter, now.digest) for now in reload.adapters] == [("rl", answer.adapter.digest)]
        assert running.token_ids[: reload.index] == expected[: reload.index]
        assert running.token_ids[reload.index :] != expected[reload.index :]
        assert len(running.token_ids) == 100
        assert (exact.token_ids, exact.reloads) == (expected, []), "a digest means these weights and no others"
        # Both weights answer what they always answer: nobody finds the keys and values of the mixed answer.
        prompt = PROMPT + running.token_ids[:80]
        assert await worker.tokens(prompt, "rl") == await worker.tokens(prompt, "two")
        assert await worker.tokens(PROMPT, "one", max_tokens=100) == expected
        worker.core.adapters.check_integrity()


async def test_tokens_after_an_immediate_push_are_the_new_weights_over_the_old_keys_and_values(
    open_worker, tiny_adapter, paged
):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2)
    async with open_worker(adapters=(f"one={one}", f"two={two}")) as worker:
        await worker.stub.PushAdapter(iter(parts(one)))
        running = Running(worker, use("rl"), max_tokens=60)
        with Gate(worker) as gate:
            gate.allow(5)
            await running.read(5)
            await push_meanwhile(worker, gate, two, mode=IMMEDIATE)
        await running.read()
        (reload,) = running.reloads
        assert reload.index == 6
        adapters, bank = worker.core.adapters, worker.core.engine._runner._bank
        leases = [await adapters.acquire(AdapterFiles(manifest_of_adapter(folder), folder)) for folder in (one, two)]
        tokens, twin, sequence = PROMPT + running.token_ids, [], paged(worker.core.model)
        for position, token in enumerate(tokens[:-1]):
            is_new = position >= len(PROMPT) + reload.index - 1
            lora = bank.lora_batch([(1, [(leases[is_new].slot, 1.0)])]).send("cpu")
            twin.append(int(sequence.step([("a", [token])], lora=lora).argmax()))
        assert twin[len(PROMPT) - 1 :] == running.token_ids
        for lease in leases:
            lease.release()


async def test_requests_that_wait_are_answered_by_the_new_weights_and_started_says_so(open_worker, tiny_adapter):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2)
    async with open_worker(adapters=(f"two={two}",), max_batch=1) as worker:
        expected = await worker.tokens(PROMPT, "two")
        await worker.stub.PushAdapter(iter(parts(one)))
        with Gate(worker) as gate:
            gate.allow(1)
            busy = Running(worker, max_tokens=20)
            await busy.read(1)
            waiting = Running(worker, use("rl"), max_tokens=8)
            while not worker.core.engine.stats().waiting:
                await asyncio.sleep(0)
            await push_meanwhile(worker, gate, two, mode=IMMEDIATE)
        await waiting.read()
        await busy.read()
        assert waiting.token_ids == expected
        assert waiting.reloads == []
        (served,) = waiting.others[0].started.adapters
        assert served.digest == manifest_of_adapter(two).digest


async def test_a_reload_touches_only_its_own_part_of_a_composition(open_worker, tiny_adapter):
    one, two, other = (tiny_adapter(name, seed=seed) for seed, name in enumerate(("one", "two", "other")))
    async with open_worker(adapters=(f"other={other}",)) as worker:
        await worker.stub.PushAdapter(iter(parts(one)))
        running = Running(worker, use("other", 0.5), use("rl", 0.25), max_tokens=20)
        with Gate(worker) as gate:
            gate.allow(3)
            await running.read(3)
            answer = await push_meanwhile(worker, gate, two, mode=IMMEDIATE)
        await running.read()
        (reload,) = running.reloads
        found = [(now.adapter, now.digest, now.weight) for now in reload.adapters]
        assert found == [("other", manifest_of_adapter(other).digest, 0.5), ("rl", answer.adapter.digest, 0.25)]


async def test_every_answer_of_a_request_is_told(open_worker, tiny_adapter):
    one, two = tiny_adapter("one", seed=1), tiny_adapter("two", seed=2)
    async with open_worker() as worker:
        await worker.stub.PushAdapter(iter(parts(one)))
        running = Running(worker, use("rl"), max_tokens=20, n=2)
        with Gate(worker) as gate:
            gate.allow(4)
            await running.read(3)
            await push_meanwhile(worker, gate, two, mode=IMMEDIATE)
        await running.read()
        assert sorted(reload.answer for reload in running.reloads) == [0, 1]


async def test_weights_that_running_requests_cannot_go_on_with_change_nothing(open_worker, tiny_adapter, tmp_path):
    one, dora = tiny_adapter("one", seed=1), tiny_adapter("dora", seed=2, use_dora=True)
    async with open_worker(adapters=(f"one={one}",)) as worker:
        expected = await worker.tokens(PROMPT, "one", max_tokens=30)
        await worker.stub.PushAdapter(iter(parts(one)))
        files = left_behind(tmp_path)
        running = Running(worker, use("rl"), max_tokens=30)
        with Gate(worker) as gate:
            gate.allow(1)
            await running.read(1)
            error = await refused(worker.stub.PushAdapter(iter(parts(dora, mode=IMMEDIATE))))
        assert error.reason == "RELOAD_REFUSED"
        await running.read()
        assert (running.token_ids, running.reloads) == (expected, [])
        assert left_behind(tmp_path) == files
        assert await worker.tokens(PROMPT, "rl", max_tokens=30) == expected
        await worker.stub.PushAdapter(iter(parts(dora, mode=IMMEDIATE)))  # now that nobody runs on the others


async def test_pushes_every_few_steps_fail_no_request_and_leak_nothing(open_worker, tiny_adapter, tmp_path):
    folders = [tiny_adapter(f"step-{seed}", seed=seed, rank=4 + seed % 3) for seed in range(4)]
    async with open_worker() as worker:
        await worker.stub.PushAdapter(iter(parts(folders[0])))
        digests = {manifest_of_adapter(folder).digest for folder in folders}

        async def ask(turns):
            for _ in range(turns):
                running = Running(worker, use("rl"), max_tokens=40)
                await running.read()
                assert len(running.token_ids) == 40
                indices = [reload.index for reload in running.reloads]
                assert indices == sorted(indices)
                assert {reload.adapters[0].digest for reload in running.reloads} <= digests

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask(4)) for _ in range(4)]
            turn = 0
            while not all(task.done() for task in asking):
                turn += 1
                mode = IMMEDIATE if turn % 3 else pb.RELOAD_MODE_DRAIN
                await worker.stub.PushAdapter(iter(parts(folders[turn % len(folders)], mode=mode)))
        worker.core.adapters.check_integrity()
        (loaded,) = worker.core.adapters.loaded()
        assert (loaded.leases, loaded.digest) == (0, manifest_of_adapter(folders[turn % len(folders)]).digest)
        assert len(left_behind(tmp_path)) == 1
        stats = worker.core.engine.stats()
        assert stats.blocks_free == stats.blocks
