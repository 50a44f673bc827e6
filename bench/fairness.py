"""What tenants, caches and quiet cost on this machine: four figures, each against its own base in the same run.

    fairness       a tenant's time to first token beside a flood of 100 times its requests, and alone on half a worker:
                   half the threads, the rows and the tokens of a step
    prefix cache   the first token of a second request with the same first 1 000 tokens, against the first one's
    idle           processor time of a worker process that serves nobody
    determinism    tokens/s with --deterministic, against those without

About two minutes on two cores with nothing else to do.

    python -m bench.fairness [PART …] [--model FOLDER] [--dtype auto]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.machine import measure
from bench.sides import WORKER_PORTS
from examples.base_model import ensure_base_model
from examples.processes import Processes
from inference.app import Core, open_core
from inference.engine.request import Request, SamplingParams
from inference.errors import QueueFull
from inference.settings import Settings

ASKERS = 3  # of the quiet tenant, each with one request at a time
ASKED = 6  # times by each of them
FLOOD = 100 * ASKERS
ROWS, STEP_TOKENS = 16, 64  # of the whole worker
PREFIX, TAIL = 1000, 24
IDLE_S = 8.0
STREAMS = (1, 8)
OUT = Path(".cache") / "bench"
_salts = itertools.count()


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio and the bound that it has to keep, if one is set."""

    name: str
    measured: str
    base: str
    ratio: float
    bound: float | None


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file gets whole rows
    settings = Settings(model=arguments.model or ensure_base_model(), dtype=arguments.dtype)
    machine = measure()
    figures: list[Figure] = []
    for name in arguments.parts or PARTS:
        for figure in await PARTS[name](settings):
            figures.append(figure)
            console.print(f"{figure.name}: {figure.measured} : {figure.base} = {figure.ratio:.3f}")
    console.print(f"{machine.processor}, {machine.cores} cores, torch {machine.torch}")
    table = Table("figure", "measured", "base", "ratio", "bound")
    for figure in figures:
        bound = "" if figure.bound is None else f"{figure.bound:.2f}"
        table.add_row(figure.name, figure.measured, figure.base, f"{figure.ratio:.2f}", bound)
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"fairness-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    document = {"machine": asdict(machine), "figures": [asdict(figure) for figure in figures]}
    path.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"written to {path}")


async def fairness(settings: Settings) -> list[Figure]:
    """The quiet tenant's 99th percentile of the time to first token."""
    whole = replace(settings, max_batch=ROWS, step_tokens=STEP_TOKENS)
    threads = max(1, (os.cpu_count() or 1) // 2)
    half = replace(settings, max_batch=ROWS // 2, step_tokens=STEP_TOKENS // 2, threads=threads)
    async with open_core(half) as core:
        alone = await _ask_quietly(core)
    async with open_core(whole) as core:
        is_over = asyncio.Event()
        flood = [asyncio.create_task(_flood(core, is_over)) for _ in range(FLOOD)]
        await _first_token_s(core, _prompt(48), tokens=1, tenant="flood")  # comes when the flood is under way
        crowded = await _ask_quietly(core)
        is_over.set()
        for task in flood:
            task.cancel()  # whose requests end with the engine
        await asyncio.gather(*flood, return_exceptions=True)
    name, ratio = "p99 first token, beside a flood : alone on half", _p99(crowded) / _p99(alone)
    return [Figure(name, _milliseconds(crowded), _milliseconds(alone), ratio, 1.5)]


async def _ask_quietly(core: Core) -> list[float]:
    async def ask() -> list[float]:
        return [await _first_token_s(core, _prompt(48), tokens=16, tenant="quiet") for _ in range(ASKED)]

    await _first_token_s(core, _prompt(48), tokens=16, tenant="quiet")  # not counted
    return [seconds for one in await asyncio.gather(*(ask() for _ in range(ASKERS))) for seconds in one]


async def _flood(core: Core, is_over: asyncio.Event) -> None:
    """Asks for one long answer after the other; those under way when it is over are cancelled."""
    while not is_over.is_set():
        try:
            stream = core.streams.open(core.engine, _request(_prompt(48), tokens=64, tenant="flood"), [])
        except QueueFull:
            await asyncio.sleep(0.05)
            continue
        async for _ in stream.batches():
            if is_over.is_set():
                core.engine.cancel(stream.request_id)


async def prefix_cache(settings: Settings) -> list[Figure]:
    """Medians of three prefixes."""
    async with open_core(settings) as core:
        first, second = [], []
        for _ in range(3):
            prefix = _prompt(PREFIX)
            first.append(await _first_token_s(core, prefix + _prompt(TAIL), tokens=1))
            second.append(await _first_token_s(core, prefix + _prompt(TAIL), tokens=1))
    ratio = statistics.median(second) / statistics.median(first)
    name = f"first token, cached prefix of {PREFIX} : computed"
    return [Figure(name, _milliseconds(second), _milliseconds(first), ratio, 0.15)]


async def idle(settings: Settings) -> list[Figure]:
    """Of one processor, after the first request's traces are gone."""
    async with Processes(OUT) as processes:
        command = ["inference", "serve", "--model", str(settings.model), "--dtype", settings.dtype]
        await processes.start("idle-worker", [*command, "--state-dir", str(OUT / "idle-state")], WORKER_PORTS)
        await asyncio.sleep(1.0)
        pid = processes.pid_of("idle-worker")
        before = _processor_s(pid)
        await asyncio.sleep(IDLE_S)
        spent = _processor_s(pid) - before
    name = "processor time of an idle worker"
    return [Figure(name, f"{spent * 1e3:.0f} ms", f"{IDLE_S:.0f} s", spent / IDLE_S, 0.01)]


async def determinism(settings: Settings) -> list[Figure]:
    """Medians of three rounds in turn."""
    figures = []
    async with open_core(settings) as plain, open_core(replace(settings, deterministic=True)) as tiled:
        for streams in STREAMS:
            rates: dict[str, list[float]] = {"plain": [], "tiled": []}
            for _ in range(3):
                for name, core in (("plain", plain), ("tiled", tiled)):
                    rates[name].append(await _tokens_per_s(core, streams))
            measured, base = (statistics.median(rates[name]) for name in ("tiled", "plain"))
            name = f"tokens/s of {streams} streams, deterministic : not"
            figures.append(Figure(name, f"{measured:.0f}", f"{base:.0f}", measured / base, None))
    return figures


async def _tokens_per_s(core: Core, streams: int) -> float:
    async def read() -> None:
        request = _request(_prompt(32), tokens=16)
        async for _ in core.streams.open(core.engine, request, []).batches():
            pass

    began = time.perf_counter()
    await asyncio.gather(*(read() for _ in range(streams)))
    return streams * 16 / (time.perf_counter() - began)


async def _first_token_s(core: Core, prompt: tuple[int, ...], *, tokens: int, tenant: str = "") -> float:
    began, first_s = time.perf_counter(), 0.0
    async for _ in core.streams.open(core.engine, _request(prompt, tokens=tokens, tenant=tenant), []).batches():
        first_s = first_s or time.perf_counter() - began
    return first_s


def _request(prompt: tuple[int, ...], *, tokens: int, tenant: str = "") -> Request:
    return Request(f"bench-{next(_salts)}", prompt, SamplingParams(tokens), tenant=tenant, arrival_s=time.monotonic())


def _prompt(tokens: int) -> tuple[int, ...]:
    """Ordinary token ids that no other prompt begins with, so that no cache can answer."""
    salt = next(_salts)
    return tuple(1000 + (salt * 7919 + place * 31) % 40000 for place in range(tokens))


def _processor_s(pid: int) -> float:
    """Of all threads of a process so far; fields 14 and 15 of proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _p99(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{_p99(seconds) * 1e3:.0f} ms, median {statistics.median(seconds) * 1e3:.0f}"


PARTS = {"fairness": fairness, "prefix": prefix_cache, "idle": idle, "determinism": determinism}


if __name__ == "__main__":
    asyncio.run(main())
