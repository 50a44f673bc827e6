"""Requests for several adapters in every order: what fits is served in the end, and each finds its own bytes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.manifest import Manifest, ManifestFile
from inference.errors import AdapterTooLarge
from inference.lora.extents import ALIGNMENT_BYTES
from inference.lora.host_cache import HostCache
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles, Traits, Weights
from inference.lora.slots import Slots

CELLS = 8  # of the arena
TURNS = 5000  # of the event loop, in which everything must have ended; a hundred would do


class AtOnce(Executor):
    """A thread that is done before anybody looks, so that a schedule is the same every time."""

    def submit(self, function, /, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


class Cells:
    """A bank of few cells, each with the number of the adapter that was written there."""

    dtype = torch.uint8

    def __init__(self):
        self.owners = [None] * 64
        self.cells = np.full(CELLS, -1)
        self.at = {}

    def write(self, slot, extent, slab, layout):
        assert self.owners[slot] is None
        self.at[slot] = _cells(extent)
        self.cells[self.at[slot]] = slab[0]

    def move(self, slot, target):
        (number,) = set(self.cells[self.at[slot]].tolist())
        self.cells[self.at[slot]] = -1
        self.at[slot] = _cells(target)
        self.cells[self.at[slot]] = number
        yield target.num_bytes

    def publish(self, slot, digest):
        self.owners[slot] = digest

    def disown(self, slot):
        self.owners[slot] = None


def _cells(extent):
    return slice(extent.begin // ALIGNMENT_BYTES, extent.end // ALIGNMENT_BYTES)


def _files(number):
    manifest = Manifest((ManifestFile("adapter_model.safetensors", number, "sha256:" + f"{number:064x}"),))
    return AdapterFiles(manifest, "somewhere")


FILES = [_files(number) for number in range(6)]
NUMBERS = {files.digest: number for number, files in enumerate(FILES)}


class Client:
    """Starts at a turn, wants adapters, holds them for some turns; may stop waiting."""

    def __init__(self, starts, wants, holds, gives_up):
        self.starts, self.wants, self.holds, self.gives_up = starts, wants, holds, gives_up

    async def run(self, adapters, bank):
        for _ in range(self.starts):
            await asyncio.sleep(0)
        leases = await adapters.acquire_all([FILES[number] for number in self.wants])
        try:
            for _ in range(self.holds + 1):
                for number, lease in zip(self.wants, leases, strict=True):
                    assert bank.owners[lease.slot] == FILES[number].digest
                    assert (bank.cells[bank.at[lease.slot]] == number).all()
                await asyncio.sleep(0)
        finally:
            for lease in leases:
                lease.release()


clients = st.builds(
    Client,
    st.integers(0, 12),
    st.lists(st.integers(0, len(FILES) - 1), min_size=1, max_size=3),
    st.integers(0, 6),
    st.one_of(st.none(), st.none(), st.integers(0, 20)),
)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=len(FILES), max_size=len(FILES)),
    crowd=st.lists(clients, min_size=2, max_size=10),
    host_cells=st.integers(0, 12),
    evictions=st.lists(st.integers(0, len(FILES) - 1), max_size=6),
    patience=st.sampled_from([0, 0.5]),
)
def test_every_request_that_fits_is_served_in_the_end(sizes, crowd, host_cells, evictions, patience):
    class Reader:
        def read(self, files):
            number = NUMBERS[files.digest]
            slab = torch.full((sizes[number] * ALIGNMENT_BYTES,), number, dtype=torch.uint8)
            return Weights(slab, None, Traits(1, is_composable=True))

    async def play():
        bank = Cells()
        slots, host_bytes = Slots(CELLS * ALIGNMENT_BYTES), host_cells * ALIGNMENT_BYTES
        adapters = Adapters(bank, slots, Reader(), host=HostCache(host_bytes))
        adapters._copier = adapters._staging._threads = AtOnce()
        tasks = [asyncio.create_task(client.run(adapters, bank)) for client in crowd]
        for turn in range(TURNS):
            adapters.check_integrity()
            for client, task in zip(crowd, tasks, strict=True):
                if turn == client.gives_up:
                    task.cancel()
            if turn < len(evictions):
                adapters.retire(FILES[evictions[turn]].digest)
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)
        for client, task in zip(crowd, tasks, strict=True):
            assert task.done(), f"{client.wants} is not served"
            if not task.cancelled():
                is_too_large = sum(sizes[number] for number in {*client.wants}) > CELLS
                assert isinstance(task.exception(), AdapterTooLarge if is_too_large else type(None))
        await adapters.close()
        adapters.check_integrity()
        assert all(loaded.leases == 0 for loaded in adapters.loaded())
        assert not any(slab.users for slab in adapters.host)

    with patch("inference.lora.line.PATIENCE", patience):
        asyncio.run(play())
