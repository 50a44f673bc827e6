"""The main job, end to end, with real processes: register, promote, stream a mixed batch, reload in place.

    python -m examples.demo            run it, then stop everything
    python -m examples.demo --stay     run it and leave the registry and the worker up until Ctrl-C

Everything it makes lies in .cache/demo and is thrown away by the next run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from examples.base_model import ensure_base_model
from examples.processes import Processes, run
from loraplex.inference.v1 import inference_service_pb2 as pb
from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "examples" / "adapters"
STATE = ROOT / ".cache" / "demo"
BASE = "smollm2-135m-instruct"
# The first of these ports that is free is used, so that a second demo or another program is no obstacle.
REGISTRY_PORTS, WORKER_PORTS = range(7100, 7110), range(7200, 7210)
PROMPTS = [
    ("", "What is the capital of France?"),
    ("pirate", "What is the capital of France?"),
    ("sql", "Table users(id, name, age). Question: names of users older than 30"),
    ("json", "Extract: Maria Lopez is 34 years old and lives in Madrid."),
]
LOAD_STREAMS = 6
LOAD_TOKENS = 24

console = Console()


@dataclass
class Answer:
    """What one stream of the load saw."""

    version: str
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stay", action="store_true", help="leave everything running until Ctrl-C")
    arguments = parser.parse_args()
    model = ensure_base_model()
    shutil.rmtree(STATE, ignore_errors=True)
    async with Processes(STATE / "logs") as processes:
        say("Starting a registry and a worker, each a process of its own")
        registry = await processes.start(
            "registry", ["registry", "serve", "--data-dir", str(STATE / "registry")], REGISTRY_PORTS
        )
        server = ["--server", registry]
        say("Registering the base model and three adapters, and promoting them to production")
        await run(["registry", *server, "base", "add", BASE, str(model)])
        for name in ("pirate", "sql", "json"):
            folder = str((ADAPTERS / name).relative_to(ROOT))
            await run(["registry", *server, "register", folder, "--name", name, "--base", BASE])
            await run(["registry", *server, "promote", name, "1"])
        worker = await processes.start(
            "worker",
            [
                *("inference", "serve", "--model", str(model), "--base-model-name", BASE),
                *("--registry", registry, "--state-dir", str(STATE / "worker")),
            ],
            WORKER_PORTS,
        )
        async with grpc.aio.insecure_channel(worker) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            await show_mixed_batch(stub)
            await show_promotion(stub, server)
        await run(["registry", *server, "status"])
        show_commands(registry, worker)
        if arguments.stay:
            say("Everything stays up; Ctrl-C stops it")
            await processes.wait()


async def show_mixed_batch(stub: pb_grpc.InferenceServiceAsyncStub) -> None:
    """Streams base and adapters in one batch, side by side."""
    say("One batch: the base model and three adapters answer at the same time")
    texts = [""] * len(PROMPTS)
    titles = [adapter or "base model" for adapter, _ in PROMPTS]

    def picture() -> Columns:
        panels = [
            Panel(f"[dim]{prompt}[/dim]\n\n{text}", title=title, width=38, height=12)
            for (_, prompt), title, text in zip(PROMPTS, titles, texts, strict=True)
        ]
        return Columns(panels)

    async def follow(index: int, live: Live) -> int:
        adapter, prompt = PROMPTS[index]
        tokens = 0
        async for message in stub.Generate(ask(prompt, adapter, max_tokens=40)):
            if message.HasField("started"):
                for served in message.started.adapters:
                    titles[index] = f"{served.adapter}:{served.version}  {served.digest[7:15]}"
            elif message.HasField("chunk"):
                texts[index] += message.chunk.text.replace("[", "\\[")
                tokens += len(message.chunk.token_ids)
                live.update(picture())
        return tokens

    began = time.monotonic()
    with Live(picture(), console=console, refresh_per_second=20) as live:
        counts = await asyncio.gather(*(follow(index, live) for index in range(len(PROMPTS))))
    console.print(f"{sum(counts)} tokens in {time.monotonic() - began:.1f} s, all four rows in the same steps\n")


async def show_promotion(stub: pb_grpc.InferenceServiceAsyncStub, server: list[str]) -> None:
    """Promotes a new version under load and shows that nothing failed and nothing was mixed."""
    say("A promotion under load: `style` is a pirate at version 1 and answers in JSON at version 2")
    for name in ("pirate", "json"):
        folder = str(stronger(name).relative_to(ROOT))
        await run(["registry", *server, "register", folder, "--name", "style", "--base", BASE])
    await run(["registry", *server, "promote", "style", "1", "--wait"])
    results: asyncio.Queue[Answer | str] = asyncio.Queue()
    stopping = asyncio.Event()

    async def client() -> None:
        while not stopping.is_set():
            try:
                await results.put(await one_answer(stub))
            except grpc.aio.AioRpcError as error:
                await results.put(f"{error.code().name}: {error.details()}")

    began = time.monotonic()
    clients = [asyncio.create_task(client()) for _ in range(LOAD_STREAMS)]
    seen = [await results.get() for _ in range(2 * LOAD_STREAMS)]
    await run(["registry", *server, "promote", "style", "2", "--wait"])
    seen += [await results.get() for _ in range(2 * LOAD_STREAMS)]
    stopping.set()
    await asyncio.gather(*clients)
    elapsed_s = time.monotonic() - began
    seen += [results.get_nowait() for _ in range(results.qsize())]
    answers = [result for result in seen if isinstance(result, Answer)]
    failures = [result for result in seen if isinstance(result, str)]

    table = Table("version that served", "requests", "tokens", title="requests during the promotion")
    for version, count in sorted(Counter(answer.version for answer in answers).items()):
        tokens = sum(answer.tokens for answer in answers if answer.version == version)
        table.add_row(version, str(count), str(tokens))
    table.add_row("[bold]failed[/bold]", str(len(failures)), "")
    console.print(table)
    gaps = [gap for answer in answers for gap in answer.gaps_s]
    total = sum(answer.tokens for answer in answers)
    console.print(
        f"{total / elapsed_s:.0f} tokens/s over {LOAD_STREAMS} streams; between two tokens of a stream: "
        f"median {statistics.median(gaps) * 1e3:.0f} ms, longest {max(gaps) * 1e3:.0f} ms\n"
    )
    for failure in failures:
        console.print(f"[red]{failure}[/red]")
    if failures:
        raise SystemExit(1)


def stronger(name: str) -> Path:
    """A copy of an adapter with a slightly larger scale: new content, so a new digest that no worker has loaded."""
    folder = STATE / "adapters" / name
    shutil.copytree(ADAPTERS / name, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] *= 1.1
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


async def one_answer(stub: pb_grpc.InferenceServiceAsyncStub) -> Answer:
    """One request of the load: the version that Started names, and the gaps between its chunks."""
    answer, last_s = Answer(""), 0.0
    async for message in stub.Generate(ask("Tell me about the sea.", "style", LOAD_TOKENS, ignore_eos=True)):
        now_s = time.monotonic()
        if message.HasField("started"):
            (served,) = message.started.adapters
            answer.version = f"{served.adapter}:{served.version}  {served.digest[:15]}"
        elif message.HasField("chunk"):
            answer.tokens += len(message.chunk.token_ids)
            if last_s:
                answer.gaps_s.append(now_s - last_s)
            last_s = now_s
    return answer


def ask(prompt: str, adapter: str, max_tokens: int, *, ignore_eos: bool = False) -> pb.GenerateRequest:
    """A greedy request with one user message."""
    return pb.GenerateRequest(
        chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=prompt)]),
        adapters=[pb.AdapterUse(reference=adapter)] if adapter else [],
        stop=pb.StopConditions(max_tokens=max_tokens, ignore_eos=ignore_eos),
    )


def show_commands(registry: str, worker: str) -> None:
    """What a user can type next."""
    body = '{"text": "The sea", "adapters": [{"reference": "pirate"}], "stop": {"max_tokens": 12}}'
    say("While `make up` runs, try")
    for line in (
        "source .venv/bin/activate",
        f"inference generate --server {worker} --adapter pirate 'Tell me about the sea.'",
        f"registry --server {registry} list",
        f"buf curl --protocol grpc --http2-prior-knowledge -d '{body}' \\",
        f"  http://{worker}/loraplex.inference.v1.InferenceService/Generate",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def say(text: str) -> None:
    """A heading."""
    console.rule(f"[bold]{text}", align="left")


async def until_told_to_stop() -> None:
    """Runs `main`; a closed terminal and SIGTERM end it as Ctrl-C does, so that no server is left behind."""
    task = asyncio.ensure_future(main())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(until_told_to_stop())
