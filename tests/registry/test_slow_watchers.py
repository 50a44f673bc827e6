"""Watchers that do not read cost the registry no memory, and miss nothing when they do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from loraplex.registry.v1 import watch_service_pb2 as pb
from loraplex.registry.v1 import watch_service_pb2_grpc as rpcs
from registry.client import RegistryClient
from registry.fleet_messages import read_watch
from registry.resources import Change
from rpc.channel import connect

EVENTS = 10_000
# Ten thousand of them are 80 MB as text, and more in memory.
FILLER = "x" * 8_000
MAX_GROWTH_BYTES = 48 * 2**20


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def read_changes(call: Any, up_to: int) -> list[int]:
    revisions = []
    async with asyncio.timeout(120):
        while not revisions or revisions[-1] < up_to:
            message = read_watch(await call.read())
            if isinstance(message, Change):
                revisions.append(message.revision)
    return revisions


async def test_ten_thousand_events_to_watchers_that_pause_take_bounded_memory(
    registry_process, database_url, new_base_model, new_adapter, append_events
):
    registry_process.database_url = database_url
    await asyncio.to_thread(registry_process.start)
    async with RegistryClient(connect(registry_process.address)) as client:
        await client.create_base_model("base", new_base_model(0))
        await client.register(new_adapter(1), adapter="sql", base_model="base")
        begin = (await client.promote("sql", 1)).revision
        channels = [connect(registry_process.address) for _ in range(9)]
        calls = [rpcs.WatchServiceStub(one).Watch(pb.WatchRequest(after_revision=begin)) for one in channels]
        for call in calls:
            await call.read()
        before = peak_bytes(registry_process.pid)
        head = await asyncio.to_thread(append_events, database_url, EVENTS, message=FILLER)
        quick, slow, *_ = calls
        expected = list(range(begin + 1, head + 1))
        assert await read_changes(quick, head) == expected
        growth = peak_bytes(registry_process.pid) - before
        assert growth < MAX_GROWTH_BYTES, f"{growth / 2**20:.0f} MiB for eight watchers that paused"
        assert await read_changes(slow, head) == expected
        for channel in channels:
            await channel.close()
