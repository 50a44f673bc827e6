"""Where a decode step's time goes: the base model at 1, 8 and 32 rows, in this process, without gRPC and text.

Every part is wrapped in a clock that leaves out the parts within it; of many steps the fastest is shown, since whatever
else the machine does can only slow one down. Half a minute on two cores.

    python -m bench.step [--rows 1,8,32] [--model FOLDER] [--dtype auto] [--threads N]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import kernels
from bench.machine import measure
from examples.base_model import ensure_base_model
from inference.engine import runner
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams
from inference.engine.runner import Runner
from inference.engine.scheduler import Limits, Scheduler
from inference.lora.bank import Bank
from inference.models.linear import PackedLinear
from inference.models.llama import Llama

PROMPT, BLOCK_SIZE, NUM_BLOCKS = 32, 16, 1024
SECONDS = 6.0  # of steps for each number of rows
PARTS: tuple[tuple[Any, str, str], ...] = (
    (PackedLinear, "__call__", "matrix products"),
    (kernels, "attend", "attention"),
    (kernels, "write_kv", "keys and values"),
    (kernels, "rms_norm", "norms"),
    (kernels, "rotary", "rotary"),
    (kernels, "silu_mul", "silu"),
    (Llama, "forward", "rest of the model"),
    (runner, "choose", "choosing tokens"),
    (Runner, "run", "batch and rest of the runner"),
    (Scheduler, "schedule", "schedule"),
    (Scheduler, "complete", "complete"),
)


class Clock:
    """Seconds by part, each without the parts within it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Times every call of an attribute from now on, for the life of the process."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            self._within.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - began
                self.seconds[part] += elapsed - self._within.pop()
                if self._within:
                    self._within[-1] += elapsed

        setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)  # a file gets whole rows
    torch.set_num_threads(arguments.threads)
    machine = measure()
    model = Llama.load(arguments.model or ensure_base_model(), arguments.dtype)
    kernels.warm_up("cpu", [model.dtype])
    clock = Clock()
    for owner, name, part in PARTS:
        clock.wrap(owner, name, part)
    rows = [int(part) for part in arguments.rows.split(",")]
    found = {count: fastest_step(model, clock, count) for count in rows}
    console.print(f"{machine.processor}, {machine.threads} threads, torch {machine.torch}, {model.dtype}")
    table = Table("part", *(f"{count} rows" for count in rows))
    for part in ("step", *(part for _, _, part in PARTS)):
        shares = (
            f"{found[count][part] * 1e3:.2f} ms {found[count][part] / found[count]['step']:4.0%}" for count in rows
        )
        table.add_row(part, *shares)
    console.print(table)


def fastest_step(model: Llama, clock: Clock, rows: int) -> dict[str, float]:
    """Seconds of each part, and of the whole `step`, of the fastest decode step of so many sequences."""
    config = model.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=model.dtype,
    )
    limits = Limits(
        max_context=1024, max_running=64, max_step_tokens=128, max_waiting=rows, max_waiting_tokens=rows * PROMPT
    )
    scheduler = Scheduler(limits, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    engine = Runner(model, cache, Bank(model.sites, capacity_bytes=2**20, dtype=model.dtype))
    for number in range(rows):
        prompt = tuple(1000 + 37 * number + place for place in range(PROMPT))
        scheduler.add(Request(f"r{number}", prompt, SamplingParams(max_tokens=256)))
    best: dict[str, float] = {}
    ends = time.perf_counter() + SECONDS
    while scheduler.has_work and (not best or time.perf_counter() < ends):
        clock.seconds.clear()
        began = time.perf_counter()
        chunks = scheduler.schedule(0.0)
        scheduler.complete(chunks, engine.run(chunks), 0.0)
        elapsed = time.perf_counter() - began
        is_decode = len(chunks) == rows and all(chunk.length == 1 for chunk in chunks)
        if is_decode and elapsed < best.get("step", float("inf")):
            best = {**clock.seconds, "step": elapsed}
    return best


if __name__ == "__main__":
    main()
