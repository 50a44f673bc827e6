"""What this machine can do: its name, and the memory bandwidth that bounds every decode step."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass

import torch

# Far larger than any cache, so that it is memory which is measured.
STREAM_BYTES = 2**30
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Machine:
    """Named in every result. `read_bytes_per_s` is the median of streaming reads with all threads."""

    processor: str
    cores: int
    threads: int
    torch: str
    read_bytes_per_s: float


def measure() -> Machine:
    """Takes about two seconds."""
    data = torch.ones(STREAM_BYTES // 4)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        torch.dot(data, data)  # reads each array once; both are the same one, so the second read is free
        times.append(time.perf_counter() - began)
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        read_bytes_per_s=STREAM_BYTES / statistics.median(times),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(named.get("flags", "").split())
    extras = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{named.get('model name', platform.machine())} ({', '.join(extras) or 'no vector extensions known'})"
