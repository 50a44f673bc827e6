"""Output tokens/s, time to first token and inter-token latency, in process and over gRPC.

    W1  the base model alone
    W2  8 adapters of rank 16 on all linear layers, shared by the streams
    W3  32 distinct adapters of rank 16 on all linear layers

each at 1, 8 and 32 streams of a 64-token prompt and 128 new tokens, beside the floor that memory bandwidth sets: the
bytes of weights and distinct adapters that one step must read, over the bandwidth measured in the same run. The sides
take turns within each round; a cell is the median over the rounds.

About 15 minutes on two cores; `--rounds 1` takes five and shows no spread.

    python -m bench.serving [--rounds N] [--streams 1,8,32] [--model FOLDER] [--dtype auto]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.machine import Machine, measure
from bench.random_adapters import make_adapters
from bench.sides import Load, Measurement, Side, open_grpc, open_in_process
from examples.base_model import ensure_base_model

RANK = 16
WORKLOADS = {"W1 base only": 0, "W2 8 adapters": 8, "W3 32 adapters": 32}
OUT = Path(".cache") / "bench"


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload, number of streams and side; medians over the rounds, with the spread of the rate."""

    workload: str
    streams: int
    side: str
    tokens_per_s: float
    slowest: float
    fastest: float
    first_token_s: float
    gap_s: float
    gap_p99_s: float
    floor_tokens_per_s: float


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file gets whole rows
    model = arguments.model or ensure_base_model()
    streams = [int(part) for part in arguments.streams.split(",")]
    console.print("measuring this machine's memory bandwidth")
    machine = measure()
    folders = make_adapters(OUT / "adapters" / model.name, model, count=max(WORKLOADS.values()), rank=RANK)
    cells: list[Cell] = []
    async with (
        open_in_process(model, folders, dtype=arguments.dtype) as in_process,
        open_grpc(model, folders, dtype=arguments.dtype, log=OUT / "worker.log") as over_grpc,
    ):
        sides: list[Side] = [in_process, over_grpc]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=len(WORKLOADS) * len(streams) * len(sides) * arguments.rounds)
            for workload, adapters in WORKLOADS.items():
                for count in streams:
                    load = Load(streams=count, adapters=min(adapters, count))
                    rounds: dict[str, list[Measurement]] = {side.name: [] for side in sides}
                    for side in sides:
                        await side.measure(Load(streams=count, adapters=load.adapters, output_tokens=4))  # not counted
                    for _ in range(arguments.rounds):
                        for side in sides:
                            rounds[side.name].append(await side.measure(load))
                            progress.advance(task)
                    floor = in_process.floor_tokens_per_s(load, machine.read_bytes_per_s)
                    cells += [_cell(workload, count, name, found, floor) for name, found in rounds.items()]
                    rates = ", ".join(f"{cell.side} {cell.tokens_per_s:.0f}" for cell in cells[-len(sides) :])
                    progress.console.print(f"{workload}, {count} streams: {rates} tokens/s")
    _show(console, machine, in_process, cells, arguments.rounds)
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"serving-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    document = {"machine": asdict(machine), "dtype": in_process.dtype, "rounds": arguments.rounds}
    path.write_text(json.dumps({**document, "cells": [asdict(cell) for cell in cells]}, indent=2) + "\n")
    console.print(f"written to {path}")


def _cell(workload: str, streams: int, side: str, found: Sequence[Measurement], floor: float) -> Cell:
    rates = [measurement.tokens_per_s for measurement in found]
    return Cell(
        workload=workload,
        streams=streams,
        side=side,
        tokens_per_s=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        first_token_s=statistics.median(measurement.first_token_s for measurement in found),
        gap_s=statistics.median(measurement.gap_s for measurement in found),
        gap_p99_s=statistics.median(measurement.gap_p99_s for measurement in found),
        floor_tokens_per_s=floor,
    )


def _show(console: Console, machine: Machine, side: Side, cells: list[Cell], rounds: int) -> None:
    console.print(
        f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, torch {machine.torch}; "
        f"reads {machine.read_bytes_per_s / 1e9:.1f} GB/s; {side.dtype}; median of {rounds} rounds (slowest to fastest)"
    )
    table = Table()
    for column in ("workload", "streams", "side", "tokens/s", "of floor", "first token", "between tokens", "p99"):
        table.add_column(column, justify="left" if column in ("workload", "side") else "right", no_wrap=True)
    last = ""
    for cell in cells:
        table.add_row(
            cell.workload if cell.workload != last else "",
            str(cell.streams),
            cell.side,
            f"{cell.tokens_per_s:.0f} ({cell.slowest:.0f} to {cell.fastest:.0f})",
            f"{cell.tokens_per_s / cell.floor_tokens_per_s:.0%}",
            f"{cell.first_token_s * 1e3:.0f} ms",
            f"{cell.gap_s * 1e3:.1f} ms",
            f"{cell.gap_p99_s * 1e3:.1f} ms",
        )
        last = cell.workload
    console.print(table)


if __name__ == "__main__":
    asyncio.run(main())
