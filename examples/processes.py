"""Runs the project's own programs for the demo: servers in the background, logs in files, commands in sight."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from rich.console import Console

from rpc.probe import is_serving

BIN = Path(sys.executable).parent
START_LIMIT_S = 120.0
STOP_LIMIT_S = 45.0

console = Console()


class Processes:
    """Servers that end when the `async with` block ends."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, asyncio.subprocess.Process] = {}
        logs.mkdir(parents=True, exist_ok=True)

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running.values()):  # the worker before the registry it reports to
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def start(self, name: str, command: list[str], ports: Iterable[int]) -> str:
        """Starts a server on the first free port and returns its address once it serves."""
        address = f"127.0.0.1:{_free_port(ports)}"
        log = self._logs / f"{name}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                BIN / command[0], *command[1:], "--listen", address, stdout=output, stderr=output
            )
        self._running[name] = process
        with console.status(f"{name}: starting on {address}"):
            while not await asyncio.to_thread(is_serving, address):
                if process.returncode is not None or time.monotonic() - began > START_LIMIT_S:
                    raise SystemExit(f"the {name} did not start; the end of {log}:\n{_tail(log)}")
                await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
        console.print(f"{name}: serving on {address} after {seconds:.1f} s; its log is {log}", soft_wrap=True)
        return address

    def pid_of(self, name: str) -> int:
        """The process of a server that was started."""
        return self._running[name].pid

    async def wait(self) -> None:
        """Returns when one of the servers ends."""
        await asyncio.wait(
            [asyncio.ensure_future(process.wait()) for process in self._running.values()],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def run(command: list[str]) -> None:
    """Shows a command and its output; a command that fails ends the demo."""
    console.print(f"[green]$ {' '.join(command)}", soft_wrap=True, highlight=False)
    process = await asyncio.create_subprocess_exec(BIN / command[0], *command[1:])
    if await process.wait() != 0:
        raise SystemExit(f"`{' '.join(command)}` ended with {process.returncode}")


def _free_port(ports: Iterable[int]) -> int:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"no free port among {list(ports)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
