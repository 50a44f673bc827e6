from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.errors import (
    AdapterLoadFailed,
    AdapterMemoryFull,
    AdapterNotFound,
    AdapterTooLarge,
    Draining,
)
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import HostCache
from inference.lora.loader import Adapters
from inference.lora.reading import AdapterFiles, Reader
from inference.lora.slots import Slots
from inference.lora.staging import FilesNeeded

ADAPTER_BYTES = 4096  # an adapter of write_adapter(..., {"q": 4}) takes less than half of it


class Room(Adapters):
    """Adapters that count their reads, hold them back while a test wants it, and tell how far they are."""

    def __init__(self, sites, modules, *, capacity_bytes=ADAPTER_BYTES, host_bytes=0, wait_s=30.0):
        self.bank = Bank(sites, capacity_bytes=capacity_bytes, dtype=torch.float32, max_slots=64)
        self.reads = 0
        self.placed = []
        self.may_read = threading.Event()
        self.may_read.set()
        self.is_reading = asyncio.Event()
        self.is_reserving = asyncio.Event()
        slots, base = Slots(capacity_bytes), BaseWeights(Path("no-folder"), torch.float32)
        reader = Reader(sites=sites, modules=modules, base=base, dtype=torch.float32, check_fits=slots.check_fits)
        super().__init__(self.bank, slots, reader, host=HostCache(host_bytes), wait_s=wait_s)
        read, loop = reader.read, asyncio.get_running_loop()

        def counted(files):
            self.reads += 1
            loop.call_soon_threadsafe(self.is_reading.set)
            self.may_read.wait(30)
            return read(files)

        reader.read = counted

    def _place(self, claim):
        self.is_reserving.set()
        missing = self._missing(claim)
        super()._place(claim)
        self.placed += sorted(missing)


@pytest.fixture
async def make_room(sites, modules):
    rooms = []

    def make(**options):
        rooms.append(Room(sites, modules, **options))
        return rooms[-1]

    yield make
    for room in rooms:
        await room.close()
        room.check_integrity()


@pytest.fixture
def adapter(write_adapter, modules, files_of):
    """Files of the adapter of a name; every name has other weights."""

    def make(name, ranks=None):
        return files_of(write_adapter(name, modules, ranks or {"q": 4}, seed=len(name) * 1000 + ord(name[-1])))

    return make


async def test_an_adapter_is_loaded_once_and_leased_often(make_room, adapter):
    room, files = make_room(), adapter("a")
    leases = [await room.acquire(files) for _ in range(3)]
    assert room.reads == 1
    assert {lease.slot for lease in leases} == {leases[0].slot}
    assert room.bank.owners[leases[0].slot] == files.digest
    (loaded,) = room.loaded()
    assert (loaded.digest, loaded.leases, loaded.rank, loaded.size_bytes) == (files.digest, 3, 4, leases[0].size_bytes)
    for lease in leases:
        lease.release()
        lease.release()
    assert room.loaded()[0].leases == 0
    assert (await room.acquire(AdapterFiles(files.manifest, None))).slot == leases[0].slot


async def test_many_who_wait_share_one_load(make_room, adapter):
    room, files = make_room(), adapter("a")
    leases = await asyncio.gather(*(room.acquire(files) for _ in range(20)))
    assert room.reads == 1
    assert room.loaded()[0].leases == 20
    for lease in leases:
        lease.release()


async def test_one_who_stops_waiting_does_not_stop_the_others(make_room, adapter):
    room, files = make_room(), adapter("a")
    room.may_read.clear()
    waiting = [asyncio.create_task(room.acquire(files)) for _ in range(3)]
    await room.is_reading.wait()
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    room.may_read.set()
    leases = await asyncio.gather(*waiting[1:])
    assert room.loaded()[0].leases == 2
    for lease in leases:
        lease.release()


async def test_a_load_that_nobody_waits_for_any_more_is_given_up_and_can_begin_again(make_room, adapter):
    room, files = make_room(), adapter("a")
    room.may_read.clear()
    waiting = asyncio.create_task(room.acquire(files))
    await room.is_reading.wait()
    waiting.cancel()
    again = asyncio.create_task(room.acquire(files))
    await asyncio.wait([waiting])
    room.may_read.set()
    (await again).release()
    assert room.loaded()[0].leases == 0


async def test_every_defect_is_refused_with_all_reasons_and_changes_nothing(
    make_room, adapter, write_adapter, modules, files_of
):
    room = make_room()
    (await room.acquire(adapter("kept", {"q": 8, "v": 8}))).release()
    before = room.loaded()
    folder = write_adapter("bad", modules, {"q": 4})
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    missing, wrong = list(tensors)[:2]
    del tensors[missing]
    tensors[wrong] = torch.zeros(3, 3)
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 12)
    save_file(tensors, path)
    with pytest.raises(AdapterLoadFailed) as failed:
        await room.acquire(files_of(folder))
    reasons = "\n".join(failed.value.reasons)
    assert len(failed.value.reasons) == 3
    assert f"'{missing}': expected" in reasons
    assert "found [3, 3]" in reasons
    assert "lm_head" in reasons
    assert room.loaded() == before
    room.check_integrity()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
async def test_weights_that_are_not_numbers_are_refused(make_room, write_adapter, modules, files_of, value):
    folder = write_adapter("bad", modules, {"q": 4})
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[1, 1] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterLoadFailed, match="found NaN or infinity"):
        await make_room().acquire(files_of(folder))


async def test_files_that_are_not_those_of_the_manifest_are_refused(make_room, adapter, modules, write_adapter):
    room, files = make_room(), adapter("a")
    path = files.folder / "adapter_model.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(
        AdapterLoadFailed, match=r"adapter_model\.safetensors: expected sha256:.* found sha256:"
    ) as failed:
        await room.acquire(files)
    assert failed.value.metadata["damaged"] == "true"
    path.write_bytes(sound)
    (await room.acquire(files)).release()


async def test_a_folder_that_is_gone_is_refused(make_room, adapter, tmp_path):
    with pytest.raises(AdapterLoadFailed, match="expected a folder, found nothing"):
        await make_room().acquire(AdapterFiles(adapter("a").manifest, tmp_path / "gone"))


async def test_a_configuration_with_a_feature_that_is_not_served_is_refused(
    make_room, write_adapter, modules, files_of
):
    folder = write_adapter("a", modules, {"q": 4})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_qalora": True}))
    with pytest.raises(AdapterLoadFailed, match="QA-LoRA is not served"):
        await make_room().acquire(files_of(folder))


async def test_an_adapter_larger_than_all_memory_is_refused_at_once_with_the_numbers(make_room, adapter):
    room = make_room(capacity_bytes=1024)
    with pytest.raises(AdapterTooLarge, match="all memory for adapters is 1024"):
        await room.acquire(adapter("a", {"q": 40}))


async def test_the_least_recently_used_adapter_makes_room(make_room, adapter):
    room = make_room()
    first, second, third = (adapter(name, {"q": 8}) for name in "abc")
    for files in (first, second):
        (await room.acquire(files)).release()
    (await room.acquire(first)).release()
    (await room.acquire(third)).release()
    room.check_integrity()
    assert not room.is_loaded(second.digest)
    assert room.is_loaded(third.digest)


async def test_a_load_waits_for_memory_until_a_lease_is_released(make_room, adapter):
    room = make_room()
    lease = await room.acquire(adapter("a", {"q": 8, "v": 6}))
    room.is_reserving.clear()
    waiting = asyncio.create_task(room.acquire(adapter("b", {"q": 8, "v": 6})))
    await room.is_reserving.wait()
    assert not waiting.done()
    lease.release()
    (await waiting).release()


async def test_a_small_adapter_does_not_overtake_a_large_one_that_waits_for_memory(make_room, adapter):
    room, large, small = make_room(), adapter("large", {"q": 8, "v": 6}), adapter("small", {"q": 1})
    lease = await room.acquire(adapter("a", {"q": 8, "v": 6}))
    room.is_reserving.clear()
    first = asyncio.create_task(room.acquire(large))
    await room.is_reserving.wait()
    room.is_reserving.clear()
    second = asyncio.create_task(room.acquire(small))
    await room.is_reserving.wait()
    lease.release()
    for mine in await asyncio.gather(first, second):
        mine.release()
    assert room.placed[1:] == [large.digest, small.digest]


async def test_memory_that_stays_in_use_is_an_error_with_the_numbers(make_room, adapter):
    room = make_room(wait_s=0.01)
    lease = await room.acquire(adapter("a", {"q": 8, "v": 6}))
    with pytest.raises(AdapterMemoryFull, match=r"of 4096 for adapters, \d+ are in use or pinned"):
        await room.acquire(adapter("b", {"q": 8, "v": 6}))
    lease.release()
    (await room.acquire(adapter("c", {"q": 8, "v": 6}))).release()


async def test_a_pinned_adapter_stays_until_it_is_unpinned(make_room, adapter):
    room = make_room(wait_s=0.01)
    pinned, other = adapter("a", {"q": 8, "v": 6}), adapter("b", {"q": 8, "v": 6})
    with pytest.raises(AdapterNotFound):
        room.pin(pinned.digest)
    (await room.acquire(pinned)).release()
    room.pin(pinned.digest)
    with pytest.raises(AdapterMemoryFull):
        await room.acquire(other)
    room.unpin(pinned.digest)
    with pytest.raises(AdapterNotFound, match="not pinned"):
        room.unpin(pinned.digest)
    (await room.acquire(other)).release()


async def test_a_retired_version_lives_beside_the_new_one_until_its_last_request_ends(make_room, adapter):
    room, old, new = make_room(), adapter("a"), adapter("b")
    running = [await room.acquire(old) for _ in range(2)]
    (await room.acquire(new)).release()
    room.retire(old.digest)
    assert {loaded.digest: loaded.is_retired for loaded in room.loaded()} == {old.digest: True, new.digest: False}
    running[0].release()
    assert room.is_loaded(old.digest)
    running[1].release()
    assert not room.is_loaded(old.digest)
    assert room.bank.owners[running[0].slot] is None
    room.retire(old.digest)
    with pytest.raises(AdapterNotFound):
        room.evict(old.digest)
    room.evict(new.digest)
    assert room.loaded() == []


async def test_a_version_that_is_wanted_again_while_it_drains_stays(make_room, adapter):
    room, files = make_room(), adapter("a")
    lease = await room.acquire(files)
    room.retire(files.digest)
    (await room.acquire(files)).release()
    lease.release()
    assert room.is_loaded(files.digest)


async def test_what_fits_without_an_eviction_is_known(make_room, adapter):
    room = make_room()
    assert room.fits_free(ADAPTER_BYTES)
    lease = await room.acquire(adapter("a"))
    assert not room.fits_free(ADAPTER_BYTES)
    assert room.fits_free(ADAPTER_BYTES - lease.size_bytes)
    lease.release()


async def test_closing_ends_what_waits(make_room, adapter):
    room = make_room()
    lease = await room.acquire(adapter("a", {"q": 8, "v": 6}))
    room.is_reserving.clear()
    waiting = asyncio.create_task(room.acquire(adapter("b", {"q": 8, "v": 6})))
    await room.is_reserving.wait()
    await room.close()
    with pytest.raises(Draining):
        await waiting
    lease.release()


# several at once


async def test_a_request_for_several_holds_nothing_while_it_waits(make_room, adapter):
    """Each of two requests has what the other lacks, and there is room for two: taken one by one, both would wait."""
    room = make_room(capacity_bytes=2 * ADAPTER_BYTES)
    a, b, c, d = (adapter(name, {"q": 8, "v": 8, "o": 6}) for name in "abcd")
    busy = await room.acquire_all([a, b])
    served = []

    async def use(*files):
        leases = await room.acquire_all(files)
        assert [lease.digest for lease in leases] == [one.digest for one in files]
        served.append(files)
        room.check_integrity()
        for lease in leases:
            lease.release()

    async with asyncio.TaskGroup() as group:
        for files in ((a, c), (b, d), (c, d)):
            group.create_task(use(*files))
        while not {one.digest for one in room.host} >= {c.digest, d.digest}:
            await asyncio.sleep(0)
        assert not served
        for lease in busy:
            lease.release()
    assert len(served) == 3


async def test_adapters_that_never_fit_together_are_refused_at_once_with_the_numbers(make_room, adapter):
    room = make_room()
    a, b = (adapter(name, {"q": 8, "v": 6}) for name in "ab")
    (await room.acquire(a)).release()
    with pytest.raises(
        AdapterTooLarge, match=r"2 adapters take together \d+ bytes and all memory for adapters is 4096"
    ):
        await room.acquire_all([a, b])
    assert room.is_loaded(a.digest)
    assert room.loaded()[0].leases == 0


async def test_one_adapter_named_twice_is_leased_twice(make_room, adapter):
    room, files = make_room(), adapter("a")
    leases = await room.acquire_all([files, files])
    assert room.loaded()[0].leases == 2
    for lease in leases:
        lease.release()
    assert room.loaded()[0].leases == 0


async def test_one_that_cannot_be_loaded_fails_the_request_and_leaves_the_others_unleased(make_room, adapter):
    room, sound, damaged = make_room(), adapter("a"), adapter("b")
    (await room.acquire(sound)).release()
    (damaged.folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterLoadFailed, match="the files are not those"):
        await room.acquire_all([sound, damaged])
    assert room.loaded()[0].leases == 0


async def test_who_needs_nothing_new_does_not_wait_for_those_who_do(make_room, adapter):
    room = make_room()
    large = {"q": 8, "v": 6}
    loaded, cold = adapter("a", large), adapter("b", large)
    lease = await room.acquire(loaded)
    room.is_reserving.clear()
    waiting = asyncio.create_task(room.acquire(cold))
    await room.is_reserving.wait()
    (await room.acquire(loaded)).release()
    lease.release()
    (await waiting).release()


async def test_those_who_always_come_back_cannot_keep_a_newcomer_out_for_ever(make_room, adapter, monkeypatch):
    """There is room for one. Each of two clients asks for the hot adapter again before the other gives it back."""
    monkeypatch.setattr("inference.lora.line.PATIENCE", 0)
    room = make_room()
    hot, cold = adapter("hot", {"q": 8, "v": 6}), adapter("cold", {"q": 8, "v": 6})
    first, second = await room.acquire(hot), await room.acquire(hot)
    room.is_reserving.clear()
    waiting = asyncio.create_task(room.acquire(cold))
    await room.is_reserving.wait()
    first.release()
    again = asyncio.create_task(room.acquire(hot))
    await asyncio.sleep(0)
    assert not again.done(), "it passed by who waits for what it uses"
    second.release()
    (await waiting).release()
    (await again).release()
    assert room.placed == [hot.digest, cold.digest, hot.digest]


async def test_what_nobody_has_to_leave_for_passes_by_whoever_waits(make_room, adapter, monkeypatch):
    monkeypatch.setattr("inference.lora.line.PATIENCE", 0)
    room = make_room(capacity_bytes=2 * ADAPTER_BYTES)
    old, new, cold = (adapter(name, {"q": 8, "v": 8, "o": 6}) for name in ("old", "new", "cold"))
    busy = [await room.acquire(old), await room.acquire(new)]
    room.is_reserving.clear()
    waiting = asyncio.create_task(room.acquire(cold))
    await room.is_reserving.wait()
    (await room.acquire(new)).release()
    late = asyncio.create_task(room.acquire(old))
    await asyncio.sleep(0)
    assert not late.done()
    busy[0].release()
    (await waiting).release()
    busy[1].release()
    (await late).release()


async def test_one_that_is_still_read_does_not_hold_up_one_that_is_staged(make_room, adapter):
    room, slow, quick = make_room(host_bytes=2 * ADAPTER_BYTES), adapter("slow"), adapter("quick")
    await room.stage(quick)
    room.may_read.clear()
    first = asyncio.create_task(room.acquire(slow))
    (await room.acquire(quick)).release()
    assert not first.done()
    room.may_read.set()
    (await first).release()
    assert room.placed == [quick.digest, slow.digest]


async def test_a_write_that_fails_frees_its_slot_and_is_told_to_all_who_wait(make_room, adapter):
    room, a, b = make_room(), adapter("a"), adapter("b")
    write, room.bank.write = room.bank.write, lambda *_: 1 / 0
    ends = await asyncio.gather(room.acquire_all([a, b]), room.acquire(a), return_exceptions=True)
    assert all(isinstance(end, AdapterLoadFailed) for end in ends)
    assert room.used_bytes == 0
    room.check_integrity()
    room.bank.write = write
    (await room.acquire(a)).release()


async def test_an_adapter_that_left_memory_and_came_without_files_is_asked_for_again(make_room, adapter):
    with pytest.raises(FilesNeeded):
        await make_room().acquire(AdapterFiles(adapter("a").manifest, None))


# host memory


async def test_an_adapter_in_host_memory_is_loaded_again_without_its_files(make_room, adapter):
    room, files = make_room(host_bytes=ADAPTER_BYTES), adapter("a")
    (await room.acquire(files)).release()
    (before,) = room.loaded()
    contents = room.bank._arena[: before.size_bytes // 4].clone()
    room.evict(files.digest)
    room.bank._arena.fill_(torch.nan)
    (await room.acquire(AdapterFiles(files.manifest, None))).release()
    assert room.reads == 1
    assert torch.equal(room.bank._arena[: before.size_bytes // 4].view(torch.int32), contents.view(torch.int32))


async def test_without_a_host_cache_nothing_stays_in_host_memory(make_room, adapter):
    room, files = make_room(), adapter("a")
    (await room.acquire(files)).release()
    assert len(room.host) == 0
    with pytest.raises(AdapterTooLarge, match="the host cache is 0"):
        await room.stage(files)


async def test_a_slab_that_is_copied_from_stays_beyond_the_budget(make_room, adapter):
    room, files = make_room(host_bytes=64), adapter("a")
    copying, may_end = asyncio.Event(), threading.Event()
    loop, write = asyncio.get_running_loop(), room.bank.write

    def slow_write(*arguments):
        loop.call_soon_threadsafe(copying.set)
        may_end.wait(30)
        write(*arguments)

    room.bank.write = slow_write
    waiting = asyncio.create_task(room.acquire(files))
    await copying.wait()
    assert [slab.users for slab in room.host] == [1]
    may_end.set()
    (await waiting).release()
    assert len(room.host) == 0


async def test_what_left_the_arena_last_stays_longest_in_host_memory(make_room, adapter):
    a, b, c = (adapter(name) for name in "abc")
    room = make_room(capacity_bytes=4 * ADAPTER_BYTES)
    for files in (a, b):
        (await room.acquire(files)).release()
    size = room.loaded()[0].size_bytes
    room = make_room(capacity_bytes=4 * ADAPTER_BYTES, host_bytes=2 * size)
    for files in (a, b):
        (await room.acquire(files)).release()
    room.evict(a.digest)
    (await room.acquire(c)).release()
    assert [slab.digest for slab in room.host] == [a.digest, c.digest]
