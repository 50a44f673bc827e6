"""`make bench`: every benchmark in turn, each in a process of its own, or those that are named.

    serving    tokens/s and latencies, in process and over gRPC, beside the memory's bandwidth
    adapters   their memory: what loads cost themselves and others, promotions, growth
    registry   resolve, list, snapshot, watches and promotions
    step       where a decode step's time goes
    fairness   beside a flood, from the prefix cache, while idle, and what determinism costs

Each prints a table and writes JSON to .cache/bench; `python -m bench.NAME --help` tells what it takes.

    python -m bench [NAME …]
"""

from __future__ import annotations

import subprocess
import sys

import click

# In the order in which they run, with what they need to show everything.
PARTS: dict[str, list[str]] = {"serving": [], "adapters": [], "registry": ["--worker"], "step": [], "fairness": []}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PARTS)))
def main(names: tuple[str, ...]) -> None:
    """Runs the benchmarks of these NAMES, or all."""
    for name in names or PARTS:
        subprocess.run([sys.executable, "-m", f"bench.{name}", *PARTS[name]], check=True)


if __name__ == "__main__":
    main(prog_name="python -m bench")
