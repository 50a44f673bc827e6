"""The whole system as processes: a registry with its own Postgres, and a worker. Each can be killed and restarted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
from registry.client import RegistryClient
from rpc.channel import connect
from rpc.probe import is_serving

BIN = Path(sys.executable).parent
BASE = "smollm2"
START_LIMIT_S = 120.0
WAIT_LIMIT_S = 60.0


class Program:
    """One server process on one port, which it keeps when it is started again."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.name = name
        self._command = [str(BIN / command[0]), *command[1:], "--listen", self.address]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it and returns when it serves."""
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        began = time.monotonic()
        while not await asyncio.to_thread(is_serving, self.address):
            if self._process.returncode is not None or time.monotonic() - began > START_LIMIT_S:
                raise AssertionError(f"{self.name} did not start:\n{self._log.read_text()[-4000:]}")
            await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and the exit code must be 0."""
        assert await self._end(signal.SIGTERM) == 0, f"{self.name}:\n{self._log.read_text()[-4000:]}"

    async def end(self) -> None:
        """Stops it if it runs, however."""
        if self._process is not None and self._process.returncode is None:
            await self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), WAIT_LIMIT_S)


class System:
    """A registry and a worker."""

    def __init__(self, folder: Path, model: Path, *worker_flags: str) -> None:
        self.folder = folder
        self.registry = Program(
            "registry", ["registry", "serve", "--data-dir", str(folder / "registry")], folder / "registry.log"
        )
        self.worker = Program(
            "worker",
            [
                *("inference", "serve", "--model", str(model), "--base-model-name", BASE, "--dtype", "float32"),
                *("--registry", self.registry.address, "--state-dir", str(folder / "worker"), *worker_flags),
            ],
            folder / "worker.log",
        )

    async def cli(self, *arguments: str, code: int = 0) -> str:
        """Runs `registry …` and returns what it prints; the exit code must be `code`."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / "registry"), "--server", self.registry.address, *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), WAIT_LIMIT_S)
        assert process.returncode == code, f"registry {' '.join(arguments)}: {process.returncode}\n{out!r}\n{err!r}"
        return (out if code == 0 else err).decode()

    async def json(self, *arguments: str) -> Any:
        """As `cli`, parsed."""
        return json.loads(await self.cli(*arguments, "-o", "json"))

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[pb_grpc.InferenceServiceAsyncStub]:
        """The worker's generated stub."""
        async with grpc.aio.insecure_channel(self.worker.address) as channel:
            yield pb_grpc.InferenceServiceStub(channel)  # type: ignore[misc]  # the async stub exists for types only


class Answer:
    """Everything that one Generate call said."""

    def __init__(self) -> None:
        self.started: pb.Started | None = None
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[pb.TokenLogprob] = []
        self.finished: pb.Finished | None = None

    @property
    def version(self) -> int:
        """The version of its only adapter."""
        assert self.started is not None
        (served,) = self.started.adapters
        return int(served.version)


async def generate(stub: Any, request: pb.GenerateRequest, on_chunk: Callable[[Answer], None] | None = None) -> Answer:
    """Reads a whole stream and checks its order."""
    answer = Answer()
    async for message in stub.Generate(request, timeout=WAIT_LIMIT_S):
        kind = message.WhichOneof("message")
        assert answer.finished is None, "expected nothing after Finished"
        assert (kind == "started") == (answer.started is None), "expected Started first, and once"
        if kind == "started":
            answer.started = message.started
        elif kind == "chunk":
            assert message.chunk.index == len(answer.token_ids)
            answer.token_ids += message.chunk.token_ids
            answer.text += message.chunk.text
            answer.logprobs += message.chunk.logprobs
            if on_chunk is not None:
                on_chunk(answer)
        else:
            answer.finished = message.finished
    assert answer.finished is not None, "expected Finished"
    return answer


def ask(prompt: str = "Hello!", *adapters: str, max_tokens: int = 8, **fields: Any) -> pb.GenerateRequest:
    """A greedy chat request."""
    return pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=prompt)]),
        adapters=[pb.AdapterUse(reference=reference) for reference in adapters],
        stop=pb.StopConditions(max_tokens=max_tokens, ignore_eos=fields.pop("ignore_eos", False)),
        **fields,
    )


@asynccontextmanager
async def open_client(registry: str) -> AsyncIterator[RegistryClient]:
    """The typed client of a registry."""
    async with RegistryClient(connect(registry)) as client:
        yield client


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Waits until an async condition gives something true."""
    began = time.monotonic()
    while not (found := await condition()):
        assert time.monotonic() - began < WAIT_LIMIT_S, f"still waiting: {what}"
        await asyncio.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def e2e() -> Any:
    """The functions of this file, for tests: `e2e.ask`, `e2e.generate`, `e2e.until`."""
    return sys.modules[__name__]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, base_model_dir: Path, adapters_dir: Path
) -> AsyncIterator[System]:
    """A running system with the base model and four adapters registered and in production."""
    system = System(tmp_path_factory.mktemp("system"), base_model_dir)
    try:
        await system.registry.start()
        await system.cli("base", "add", BASE, str(base_model_dir))
        for name in ("pirate", "sql", "json", "classify"):
            await system.cli("register", str(adapters_dir / name), "--name", name, "--base", BASE)
            await system.cli("promote", name, "1")
        await system.worker.start()
        yield system
    finally:
        await system.worker.end()
        await system.registry.end()
