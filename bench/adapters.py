"""Adapters in memory: what they take, what a cold one costs itself and the others, what a promotion does to streams.

    arena        bytes of adapters of ranks 4 to 128 in the arena, beside the sum of their true sizes
    crowd        tokens/s of many registered adapters, asked for as Zipf has it, with room for few of them, beside five
                 that all fit; and beside as many as there is room for, which tells the loads from the larger batches
    neighbours   the 99th percentile of the time between two tokens of warm streams, with loads going on and without
    cold         time to first token of an adapter on the disk, in host memory and in the arena
    promotion    32 streams while their adapter's next version is loaded and takes over: failed, mixed, longest gap
    cycles       resident memory over many loads and evictions

Everything runs in this process, without gRPC; sides take turns in one run. Prints a table and writes JSON.

    python -m bench.adapters [FIGURE …] [--rounds N] [--requests N] [--seconds S] [--cycles N]
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from adapter.base_model import read_modules
from adapter.manifest import WEIGHTS_FILE, manifest_of_adapter
from bench.crowd import Answer, Crowd, register
from bench.machine import measure
from bench.random_adapters import make_adapters
from examples.base_model import ensure_base_model
from inference.app import open_core
from inference.lora.reading import AdapterFiles
from inference.settings import Settings

OUT = Path(".cache") / "bench"
RANKS = (4, 8, 16, 32, 64, 128)
TARGETS = ("q_proj", "v_proj")  # PEFT's own for this family, and its rank: what most small adapters are
RANK = 8
ROOM = 64  # adapters that the arena of `crowd` holds
FEW = 5
WARM = 8  # streams of `neighbours`
LOADS_PER_S = 4  # of `neighbours`
SETTLE_S = 1.0  # of a side of `neighbours`, in which the prompts are computed
STREAMS, TOKENS = 32, 24  # of `promotion`


@dataclass(frozen=True, slots=True)
class Options:
    """How long the figures take. `seconds` are those of a side of `neighbours`."""

    model: Path
    dtype: str
    rounds: int
    requests: int
    registered: int
    seconds: float
    cycles: int


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found, and whether that is what was wanted."""

    name: str
    found: str
    goal: str
    is_met: bool
    details: dict[str, float]


async def measure_arena(options: Options) -> list[Figure]:
    modules = {name: shape for name, shape in read_modules(options.model).items() if name.endswith("_proj")}
    settings = Settings(model=options.model, dtype=options.dtype, adapter_memory=2**29, host_cache=0)
    async with open_core(settings) as core:
        true_bytes = 0
        for rank in RANKS:
            (folder,) = make_adapters(OUT / "adapters" / options.model.name, options.model, count=1, rank=rank)
            (await core.adapters.acquire(_files(folder))).release()
            true_bytes += sum(rank * sum(shape) for shape in modules.values()) * core.model.dtype.itemsize
        used_bytes = core.adapters.used_bytes
    overhead = used_bytes / true_bytes - 1
    details: dict[str, float] = {"arena_bytes": used_bytes, "true_bytes": true_bytes}
    return [Figure("arena", f"{overhead:+.3%} of the true sizes", "within 1 %", abs(overhead) <= 0.01, details)]


async def measure_crowd(options: Options) -> list[Figure]:
    registered, size = await _registered(options)
    rng = random.Random(0)  # noqa: S311 -- a draw that is the same every time, not a secret
    weights = [1 / (1 + k) for k in range(len(registered))]
    sides: dict[str, Callable[[], list[AdapterFiles]]] = {
        f"{FEW} that fit": lambda: [registered[rng.randrange(FEW)] for _ in range(options.requests)],
        f"{ROOM} that fit": lambda: [registered[rng.randrange(ROOM)] for _ in range(options.requests)],
        f"{len(registered)} registered": lambda: rng.choices(registered, weights, k=options.requests),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    settings = _settings(options, adapter_memory=ROOM * size, host_cache=4 * ROOM * size)
    async with open_core(settings) as core:
        crowd = Crowd(core)
        for pick in sides.values():
            await crowd.rush(pick()[:16], streams=16, max_tokens=8)  # not counted
        for _ in range(options.rounds):
            for name, pick in sides.items():
                rates[name].append(await crowd.rush(pick(), streams=16, max_tokens=64))
    few, room, many = (statistics.median(found) for found in rates.values())
    details = {f"{name}, tokens/s": statistics.median(found) for name, found in rates.items()}
    details |= {"of those that fit": many / room, "adapter_bytes": size}
    return [Figure("crowd", f"{many / few:.1%} of {FEW} that fit", "at least 95 %", many / few >= 0.95, details)]


async def measure_neighbours(options: Options) -> list[Figure]:
    registered, size = await _registered(options)
    cold = iter(registered[WARM:] * 1000)
    found: dict[str, list[float]] = {"calm": [], "loads": [], "all the time": []}
    counts = dict.fromkeys(found, 0)
    async with open_core(_settings(options, adapter_memory=(WARM + 4) * size, host_cache=0)) as core:
        crowd = Crowd(core)
        for files in registered[:WARM]:
            (await core.adapters.acquire(files)).release()
            core.adapters.pin(files.digest)

        async def load(side: str, pause_s: float) -> None:
            while True:
                (await core.adapters.acquire(next(cold))).release()
                counts[side] += 1
                await asyncio.sleep(pause_s)

        async def play(side: str, loader: Awaitable[None] | None) -> None:
            task = asyncio.ensure_future(loader) if loader is not None else None
            began = time.perf_counter()
            until = began + SETTLE_S + options.seconds
            answers = await asyncio.gather(
                *(crowd.ask(files, max_tokens=10_000, until=until) for files in registered[:WARM])
            )
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            found[side] += [gap for answer in answers for gap in answer.gaps_s(after=began + SETTLE_S)]

        await play("calm", None)  # not counted
        found["calm"].clear()
        for _ in range(options.rounds):
            await play("calm", None)
            await play("loads", load("loads", 1 / LOADS_PER_S))
            await play("all the time", load("all the time", 0.0))
    calm, busy, flood = (sorted(gaps)[int(len(gaps) * 0.99)] for gaps in found.values())
    details = {"calm p99 ms": calm * 1e3, "loads p99 ms": busy * 1e3, "all the time p99 ms": flood * 1e3}
    details |= {
        f"{side}, loads/s": count / options.rounds / (SETTLE_S + options.seconds)
        for side, count in counts.items()
        if count
    }
    return [
        Figure(
            "neighbours", f"{busy / calm - 1:+.1%} at {LOADS_PER_S} loads/s", "within 10 %", busy <= 1.1 * calm, details
        ),
        Figure("neighbours", f"{flood / calm - 1:+.1%} loading all the time", "", True, {}),
    ]


async def measure_cold(options: Options) -> list[Figure]:
    folders = make_adapters(OUT / "adapters" / options.model.name, options.model, count=3 + 8 * options.rounds, rank=16)
    found: dict[str, list[float]] = {"arena": [], "host": [], "disk": []}
    settings = Settings(model=options.model, dtype=options.dtype, adapter_memory=2**29, host_cache=2**30)
    size = (folders[0] / WEIGHTS_FILE).stat().st_size
    async with open_core(settings) as core:
        crowd = Crowd(core)
        for folder in folders[:3]:
            await crowd.ask(_files(folder), max_tokens=2)  # not counted
        for folder in folders[3:]:
            files = _files(folder)  # reads the file, so that the disk is the system's page cache for all
            found["disk"].append((await crowd.ask(files, max_tokens=2)).first_token_s)
            found["arena"].append((await crowd.ask(files, max_tokens=2)).first_token_s)
            core.adapters.evict(files.digest)
            found["host"].append((await crowd.ask(files, max_tokens=2)).first_token_s)
        bandwidth = _read_bytes_per_s(folders[-1] / WEIGHTS_FILE)
    arena, host, disk = (statistics.median(times) for times in found.values())
    ratio = disk / (arena + size / bandwidth)
    details = {f"{tier}, first token ms": statistics.median(times) * 1e3 for tier, times in found.items()}
    details |= {"file_bytes": size, "read GB/s": bandwidth / 1e9, "host ratio": host / arena}
    goal = "at most 1.3 x warm + bytes/bandwidth"
    return [Figure("cold", f"{ratio:.2f} x", goal, ratio <= 1.3, details)]


async def measure_promotion(options: Options) -> list[Figure]:
    old, new = (_files(folder) for folder in _strong(options, 2))
    # The same bits alone and in any batch, so that an answer that is neither version's is a mixed one.
    settings = Settings(model=options.model, dtype=options.dtype, adapter_memory=2**28, deterministic=True)
    async with open_core(settings) as core:
        crowd = Crowd(core, prompt_tokens=16)

        async def rush(files: AdapterFiles, on_tokens: Callable[[Answer], None] | None = None) -> list[Answer]:
            asked = [
                crowd.ask(files, max_tokens=TOKENS, prompt=crowd.prompt(number), on_tokens=on_tokens)
                for number in range(STREAMS)
            ]
            return await asyncio.gather(*asked)

        alone = {files.digest: [answer.tokens for answer in await rush(files)] for files in (old, new)}
        core.adapters.retire(new.digest)
        core.adapters.host.drop(new.digest)
        running: set[float] = set()
        is_running = asyncio.Event()

        def note(answer: Answer) -> None:
            running.add(answer.began)
            if len(running) == STREAMS:
                is_running.set()

        before = asyncio.create_task(rush(old, note))
        await is_running.wait()
        began = time.perf_counter()
        (await core.adapters.acquire(new)).release()
        core.adapters.retire(old.digest)  # from here on requests are for the new version
        took = time.perf_counter() - began
        ends = [*await before, *await rush(new)]
        is_freed = not core.adapters.is_loaded(old.digest)
    failed = sum(len(answer.tokens) < TOKENS for answer in ends)
    mixed = sum(answer.tokens != alone[answer.digest][n % STREAMS] for n, answer in enumerate(ends)) - failed
    gaps = sorted(gap for answer in ends[:STREAMS] for gap in answer.gaps_s(after=began))
    ratio = gaps[-1] / statistics.median(gaps)
    details: dict[str, float] = {"failed": failed, "mixed": mixed, "old memory freed": is_freed, "load ms": took * 1e3}
    details |= {"median gap ms": statistics.median(gaps) * 1e3, "longest gap ms": gaps[-1] * 1e3}
    return [
        Figure("promotion", f"{failed} failed, {mixed} mixed", "none", not failed and not mixed, details),
        Figure("promotion", f"longest gap {ratio:.2f} x the median", "at most 1.5 x", ratio <= 1.5, {}),
    ]


async def measure_cycles(options: Options) -> list[Figure]:
    registered, size = await _registered(replace(options, registered=64))
    settings = _settings(options, adapter_memory=4 * size, host_cache=8 * size)
    async with open_core(settings) as core:

        async def cycle(count: int) -> int:
            for number in range(count):
                (await core.adapters.acquire(registered[number % len(registered)])).release()
            gc.collect()
            return _resident_bytes()

        before = await cycle(options.cycles // 10)
        began = time.perf_counter()
        after = await cycle(options.cycles)
        elapsed = time.perf_counter() - began
    growth = after / before - 1
    details: dict[str, float] = {"before_bytes": before, "after_bytes": after, "loads/s": options.cycles / elapsed}
    found = f"{growth:+.2%} after {options.cycles} loads"
    return [Figure("cycles", found, "flat within 2 %", growth <= 0.02, details)]


FIGURES: dict[str, Callable[[Options], Awaitable[list[Figure]]]] = {
    "arena": measure_arena,
    "crowd": measure_crowd,
    "neighbours": measure_neighbours,
    "cold": measure_cold,
    "promotion": measure_promotion,
    "cycles": measure_cycles,
}


async def _registered(options: Options) -> tuple[list[AdapterFiles], int]:
    """Small adapters of the real model's shapes, and the bytes that each takes in the arena."""
    root = OUT / "registered" / options.model.name
    (source,) = make_adapters(root, options.model, count=1, rank=RANK, targets=TARGETS)
    registered = await asyncio.to_thread(register, root / "links", source, count=options.registered)
    async with open_core(_settings(options, adapter_memory=2**26, host_cache=0)) as core:
        lease = await core.adapters.acquire(registered[0])
        lease.release()
        return registered, lease.size_bytes


def _strong(options: Options, count: int) -> list[Path]:
    """Adapters whose answers differ from each other's."""
    return make_adapters(OUT / "adapters" / options.model.name, options.model, count=count, rank=64)


def _settings(options: Options, *, adapter_memory: int, host_cache: int) -> Settings:
    return Settings(model=options.model, dtype=options.dtype, adapter_memory=adapter_memory, host_cache=host_cache)


def _files(folder: Path) -> AdapterFiles:
    return AdapterFiles(manifest_of_adapter(folder), folder)


def _read_bytes_per_s(path: Path) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        path.read_bytes()
        times.append(time.perf_counter() - began)
    return path.stat().st_size / statistics.median(times)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES)))
@click.option("--rounds", default=3, show_default=True)
@click.option("--requests", default=64, show_default=True, help="Of a side of `crowd`.")
@click.option("--registered", default=2000, show_default=True, help="Adapters of `crowd`.")
@click.option("--seconds", default=8.0, show_default=True, help="Of a side of `neighbours`.")
@click.option("--cycles", default=10_000, show_default=True, help="Loads of `cycles`.")
@click.option("--model", type=click.Path(path_type=Path), help="Base model.  [default: the examples']")
@click.option("--dtype", default="auto", show_default=True)
def main(names: tuple[str, ...], model: Path | None, **numbers: int | float | str) -> None:
    """Measures these figures, or all."""
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file gets whole rows
    options = Options(model=model or ensure_base_model(), **numbers)  # type: ignore[arg-type]  # click checked them
    machine = measure()
    console.print(f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, torch {machine.torch}")
    figures: list[Figure] = []
    table = Table("figure", "found", "goal", "", "details")
    for name in names or FIGURES:
        for figure in asyncio.run(_measured(name, options)):
            figures.append(figure)
            met = ("yes" if figure.is_met else "NO") if figure.goal else ""
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in figure.details.items())
            table.add_row(figure.name, figure.found, figure.goal, met, shown)
            console.print(f"{figure.name}: {figure.found}")
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"adapters-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    document = {"machine": asdict(machine), "options": {**asdict(options), "model": str(options.model)}}
    path.write_text(json.dumps({**document, "figures": [asdict(figure) for figure in figures]}, indent=2) + "\n")
    console.print(f"written to {path}")


async def _measured(name: str, options: Options) -> list[Figure]:
    return await FIGURES[name](options)


if __name__ == "__main__":
    main()
