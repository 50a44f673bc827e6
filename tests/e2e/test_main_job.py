"""The main job through real processes: register, promote, stream a mixed batch, reload in place."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from loraplex.inference.v1 import inference_service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Below this gap between the two best logits, two correct float32 programs may choose differently.
NEAR_TIE = 0.01
LOGPROB_TOLERANCE = 2e-3


async def test_a_mixed_batch_answers_as_peft_does(system: Any, e2e: Any, goldens: dict[str, Any]) -> None:
    entries = goldens["entries"]

    def request(entry: dict[str, Any]) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=entry["prompt_ids"]),
            adapters=[pb.AdapterUse(reference=entry["adapter"])] if entry["adapter"] else [],
            stop=pb.StopConditions(max_tokens=entry["max_tokens"]),
            logprobs=0,
        )

    async with system.stub() as stub:
        answers = await asyncio.gather(*(e2e.generate(stub, request(entry)) for entry in entries))
    assert {entry["adapter"] for entry in entries} == {None, "pirate", "sql", "json", "classify"}
    for entry, answer in zip(entries, answers, strict=True):
        golden = entry["fp32"]
        certain = next((i for i, gap in enumerate(golden["margins"]) if gap < NEAR_TIE), len(golden["margins"]))
        assert answer.token_ids[:certain] == golden["output_ids"][:certain], entry
        assert [item.logprob for item in answer.logprobs[:certain]] == pytest.approx(
            golden["logprobs"][:certain], abs=LOGPROB_TOLERANCE
        )
        assert [use.adapter for use in answer.started.adapters] == ([entry["adapter"]] if entry["adapter"] else [])
        assert answer.started.prompt_tokens == len(entry["prompt_ids"])
        if certain == len(golden["margins"]):
            assert answer.text == golden["text"]
            assert (answer.finished.reason == pb.FINISH_REASON_STOP) == (golden["finish"] == "stop")


async def test_a_chat_is_rendered_and_tokenized_as_the_goldens_were(
    system: Any, e2e: Any, goldens: dict[str, Any]
) -> None:
    async with system.stub() as stub:
        for entry in goldens["entries"]:
            chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=entry["prompt"])])
            prompt = {"text": entry["prompt"]} if entry["raw"] else {"chat": chat}
            tokens = await stub.Tokenize(pb.TokenizeRequest(**prompt), timeout=30)
            assert list(tokens.token_ids) == entry["prompt_ids"]


async def test_started_says_which_weights_answer(system: Any, e2e: Any) -> None:
    version = (await system.json("show", "sql:1"))["digest"]
    async with system.stub() as stub:
        for reference in ("sql", "sql@production", "sql:1", version):
            answer = await e2e.generate(stub, e2e.ask("users older than 30", reference))
            (served,) = answer.started.adapters
            assert (served.adapter, served.version, served.digest) == ("sql", 1, version)
            assert answer.started.registry_revision > 0
            assert answer.started.base_model == e2e.BASE


async def test_a_promotion_in_traffic_fails_nothing_and_mixes_nothing(
    system: Any, e2e: Any, adapters_dir: Path, tmp_path: Path
) -> None:
    for name in ("pirate", "json"):
        await system.cli("register", str(adapters_dir / name), "--name", "style", "--base", e2e.BASE)
    await system.cli("promote", "style", "1", "--wait")
    request = e2e.ask("Tell me about the sea.", "style", max_tokens=12, ignore_eos=True)
    async with system.stub() as stub:
        expected = {}
        for number in (1, 2):
            request.adapters[0].reference = f"style:{number}"
            expected[number] = (await e2e.generate(stub, request)).token_ids
        request.adapters[0].reference = "style"
        assert expected[1] != expected[2]
        answers: list[Any] = []
        stopping = asyncio.Event()

        async def client() -> None:
            while not stopping.is_set():
                answers.append(await e2e.generate(stub, request))

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for number in (2, 1, 2):
            await system.cli("promote", "style", str(number), "--wait")
            since = len(answers)
            assert (await e2e.generate(stub, request)).version == number  # whatever starts now is on the new version

            async def enough(since: int = since) -> bool:
                return len(answers) >= since + 8 or any(task.done() for task in clients)

            await e2e.until(enough, "answers after the promotion")
        stopping.set()
        await asyncio.gather(*clients)  # raises if any request failed
    assert {answer.version for answer in answers} == {1, 2}
    for answer in answers:
        assert answer.token_ids == expected[answer.version]


async def test_a_version_that_cannot_be_loaded_keeps_the_old_one_serving_and_is_reported(
    system: Any, e2e: Any, adapters_dir: Path, tmp_path: Path
) -> None:
    await system.cli("register", str(adapters_dir / "pirate"), "--name", "fragile", "--base", e2e.BASE)
    await system.cli("promote", "fragile", "1", "--wait")
    shutil.copytree(adapters_dir / "pirate", tmp_path / "louder")
    config = tmp_path / "louder" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    await system.cli("register", str(tmp_path / "louder"), "--name", "fragile", "--base", e2e.BASE)
    # The registry's stored copy rots before any worker has fetched it.
    sha256 = hashlib.sha256(config.read_bytes()).hexdigest()
    blobs = (path for path in (system.folder / "registry").rglob("*") if path.is_file())
    (blob,) = [path for path in blobs if "".join(path.parts).endswith(sha256)]
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b'"lora_alpha": 9', b'"lora_alpha": 7'))
    error = await system.cli("promote", "fragile", "2", "--wait", "--timeout", "40", code=7)
    assert "fragile" in error
    async with system.stub() as stub:
        assert (await e2e.generate(stub, e2e.ask("Hello!", "fragile"))).version == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await e2e.generate(stub, e2e.ask("Hello!", "fragile:2"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        listed = (await stub.ListModels(pb.ListModelsRequest(), timeout=30)).models
        (model,) = [model for model in listed if model.reference == "fragile@production"]
        assert (model.version, bool(model.failure)) == (1, True)


async def test_an_adapter_is_loaded_pinned_and_unloaded_by_call(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        loaded = await stub.LoadAdapter(pb.LoadAdapterRequest(reference="json:1"), timeout=30)
        assert loaded.size_bytes > 0
        await stub.PinAdapter(pb.PinAdapterRequest(reference="json"), timeout=30)
        await stub.UnpinAdapter(pb.UnpinAdapterRequest(reference="json"), timeout=30)
        gone = await stub.UnloadAdapter(pb.UnloadAdapterRequest(reference="json"), timeout=30)
        assert gone.adapter.digest == loaded.adapter.digest
        for call, request in (
            (stub.UnloadAdapter, pb.UnloadAdapterRequest(reference="json")),
            (stub.UnpinAdapter, pb.UnpinAdapterRequest(reference="json")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, timeout=30)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await e2e.generate(stub, e2e.ask("Hello!", "json"))).version == 1


async def test_a_cancelled_stream_frees_its_row(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        call = stub.Generate(e2e.ask("Tell me a long story.", "pirate", max_tokens=4000, ignore_eos=True))
        while (await call.read()).WhichOneof("message") != "chunk":
            pass
        call.cancel()

        async def is_idle() -> bool:
            worker = await stub.GetWorker(pb.GetWorkerRequest(), timeout=30)
            return worker.running == 0 and worker.kv_blocks_free == worker.kv_blocks

        await e2e.until(is_idle, "the row and its blocks to be free")


async def test_a_deadline_frees_its_row_too(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(e2e.ask("Story", max_tokens=4000, ignore_eos=True), timeout=1.0):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        async def is_idle() -> bool:
            return (await stub.GetWorker(pb.GetWorkerRequest(), timeout=30)).running == 0

        await e2e.until(is_idle, "the row to be free")


async def test_a_stop_string_ends_the_answer_before_it_even_across_tokens(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        whole = await e2e.generate(stub, e2e.ask("What is the capital of France?", max_tokens=20))
        assert whole.text == "The capital of France is Paris."
        request = e2e.ask("What is the capital of France?", max_tokens=20)
        request.stop.strings.extend(["of Fra", "never"])
        cut = await e2e.generate(stub, request)
        assert cut.text == "The capital "
        assert cut.finished.reason == pb.FINISH_REASON_STOP_STRING
        assert cut.finished.stop_string == "of Fra"


async def test_the_same_seed_gives_the_same_answer_whatever_else_runs(system: Any, e2e: Any) -> None:
    request = e2e.ask("Write a poem.", "pirate", max_tokens=16, sampling=pb.SamplingParams(temperature=1.0, seed=7))
    async with system.stub() as stub:
        alone = await e2e.generate(stub, request)
        others = [e2e.generate(stub, e2e.ask(f"Prompt {n}", max_tokens=16)) for n in range(5)]
        crowded, *_ = await asyncio.gather(e2e.generate(stub, request), *others)
    assert crowded.token_ids == alone.token_ids


async def test_several_adapters_add_up_and_a_weight_of_zero_is_the_base_model(system: Any, e2e: Any) -> None:
    async with system.stub() as stub:
        base = await e2e.generate(stub, e2e.ask("Tell me about the sea."))
        nothing = e2e.ask("Tell me about the sea.")
        nothing.adapters.add(reference="pirate", weight=0.0)
        assert (await e2e.generate(stub, nothing)).token_ids == base.token_ids
        pirate = await e2e.generate(stub, e2e.ask("Tell me about the sea.", "pirate"))
        halves = e2e.ask("Tell me about the sea.")
        for _ in range(2):
            halves.adapters.add(reference="pirate", weight=0.5)
        assert (await e2e.generate(stub, halves)).token_ids == pirate.token_ids


async def test_a_client_that_is_not_ours_drives_both_services(system: Any, e2e: Any) -> None:
    async def buf_curl(address: str, method: str, body: dict[str, Any]) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            str(e2e.BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(body),
            f"http://{address}/{method}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()

    code, out, err = await buf_curl(
        system.registry.address, "loraplex.registry.v1.RegistryService/ResolveAdapter", {"reference": "sql"}
    )
    assert code == 0, err
    digest = json.loads(out)["version"]["digest"]
    generate = "loraplex.inference.v1.InferenceService/Generate"
    body = {"text": "The sea", "adapters": [{"reference": "sql"}], "stop": {"maxTokens": 3}}
    code, out, err = await buf_curl(system.worker.address, generate, body)
    assert code == 0, err
    decoder, messages, rest = json.JSONDecoder(), [], out.strip()
    while rest:
        message, end = decoder.raw_decode(rest)
        messages.append(message)
        rest = rest[end:].lstrip()
    assert messages[0]["started"]["adapters"][0]["digest"] == digest
    assert "finished" in messages[-1]
    code, out, err = await buf_curl(system.worker.address, generate, body | {"adapters": [{"reference": "nobody"}]})
    assert (code != 0, out) == (True, "")
    error = json.loads(err)
    assert error["code"] == "not_found"
    infos = [detail["value"] for detail in error["details"] if detail["type"] == "google.rpc.ErrorInfo"]
    assert b"ADAPTER_NOT_FOUND" in base64.b64decode(infos[0] + "==")


async def test_the_command_line_streams_an_answer(system: Any, e2e: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "inference"), "generate", "--server", system.worker.address,
        "--adapter", "pirate", "--max-tokens", "8", "Tell me about the sea.",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    assert out.strip()
    assert b"pirate:1 sha256:" in err
