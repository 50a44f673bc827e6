from __future__ import annotations

import random

import pytest

from inference.errors import AdapterMemoryFull, AdapterTooLarge
from inference.lora.slots import Slot, Slots

KIB = 1024


def reserve(slots: Slots, digest: str, num_bytes: int) -> tuple[Slot, list[Slot]]:
    (slot,), evicted = slots.reserve({digest: num_bytes})
    return slot, evicted


def load(slots: Slots, digest: str, num_bytes: int) -> Slot:
    """Loaded and not in use."""
    slot, _ = reserve(slots, digest, num_bytes)
    slots.publish(slot)
    slots.release(slot)
    slots.check_integrity()
    return slot


def test_the_least_recently_used_adapter_leaves() -> None:
    slots = Slots(3 * KIB)
    a, _, _ = (load(slots, digest, KIB) for digest in "abc")
    slots.lease(a)
    slots.release(a)
    new, evicted = reserve(slots, "d", KIB)
    assert [slot.digest for slot in evicted] == ["b"]
    assert new.index == evicted[0].index
    slots.check_integrity()


def test_a_leased_a_pinned_and_a_loading_slot_are_never_evicted() -> None:
    slots = Slots(4 * KIB)
    leased, pinned, idle = (load(slots, digest, KIB) for digest in "abc")
    reserve(slots, "loading", KIB)
    slots.lease(leased)
    slots.pin(pinned)
    with pytest.raises(AdapterMemoryFull, match="takes 2048 bytes; of 4096 for adapters, 3072 are in use or pinned"):
        reserve(slots, "d", 2 * KIB)
    assert {slot.digest for slot in slots} == {"a", "b", "c", "loading"}
    _, evicted = reserve(slots, "d", KIB)
    assert evicted == [idle]


def test_what_cannot_be_placed_evicts_nothing() -> None:
    slots = Slots(4 * KIB)
    used, _ = load(slots, "a", KIB), load(slots, "b", KIB)
    slots.lease(used)
    with pytest.raises(AdapterMemoryFull):
        reserve(slots, "d", 4 * KIB)
    with pytest.raises(AdapterTooLarge, match="takes 4097 bytes and all memory for adapters is 4096"):
        reserve(slots, "e", 4 * KIB + 1)
    assert {slot.digest for slot in slots} == {"a", "b"}


def test_only_those_that_lie_in_the_new_hole_are_evicted() -> None:
    slots = Slots(4 * KIB)
    for digest in "abcd":
        load(slots, digest, KIB)
    middle = slots.find("c")
    assert middle is not None
    slots.lease(middle)
    slots.release(middle)  # the order of use is now a, b, d, c
    _, evicted = reserve(slots, "e", 2 * KIB)
    assert [slot.digest for slot in evicted] == ["a", "b"]
    slots = Slots(4 * KIB)
    for digest in "dacb":
        load(slots, digest, KIB)
    for digest in "dabc":
        slot = slots.find(digest)
        assert slot is not None
        slots.lease(slot)
        slots.release(slot)
    _, evicted = reserve(slots, "e", KIB * 2)
    assert [slot.digest for slot in evicted] == ["d", "a"]


def test_a_retired_slot_is_freed_by_its_last_release() -> None:
    slots = Slots(KIB)
    slot = load(slots, "a", KIB)
    slots.lease(slot)
    slots.lease(slot)
    assert not slots.retire(slot)
    assert not slots.release(slot)
    assert slots.find("a") is slot
    assert slots.release(slot)
    assert slots.find("a") is None
    assert slots.used_bytes == 0


def test_a_retired_slot_that_is_pinned_is_freed_when_it_is_unpinned() -> None:
    slots = Slots(KIB)
    slot = load(slots, "a", KIB)
    slots.pin(slot)
    assert not slots.retire(slot)
    assert slots.unpin(slot)
    assert slots.find("a") is None


def test_pinning_a_retired_slot_wants_it_again() -> None:
    slots = Slots(KIB)
    slot = load(slots, "a", KIB)
    slots.lease(slot)
    slots.retire(slot)
    slots.pin(slot)
    assert not slots.release(slot)
    assert not slots.unpin(slot)
    assert slots.find("a") is slot


def test_an_abandoned_slot_is_free() -> None:
    slots = Slots(KIB)
    slot, _ = reserve(slots, "a", KIB)
    slots.abandon(slot)
    slots.check_integrity()
    assert slots.used_bytes == 0
    assert load(slots, "b", KIB).index == slot.index


def test_the_table_of_slots_is_bounded_too() -> None:
    slots = Slots(64 * KIB, max_slots=2)
    load(slots, "a", KIB)
    load(slots, "b", KIB)
    _, evicted = reserve(slots, "c", KIB)
    assert [slot.digest for slot in evicted] == ["a"]
    kept = slots.find("b")
    assert kept is not None
    slots.lease(kept)
    with pytest.raises(AdapterMemoryFull):
        reserve(slots, "d", KIB)
    slots.check_integrity()


def test_several_are_placed_together_or_not_at_all() -> None:
    slots = Slots(4 * KIB)
    kept, idle = load(slots, "kept", KIB), load(slots, "idle", KIB)
    reserved, evicted = slots.reserve({"a": KIB, "b": 2 * KIB}, beside=["kept"])
    assert [slot.digest for slot in reserved] == ["a", "b"]
    assert evicted == [idle]
    slots.check_integrity()
    with pytest.raises(AdapterMemoryFull, match="the adapters take 2048 bytes together; of 4096"):
        slots.reserve({"c": KIB, "d": KIB})
    assert slots.find("kept") is kept
    with pytest.raises(AdapterTooLarge, match="the request's 2 adapters take together 4097 bytes"):
        slots.reserve({"c": 3 * KIB + 1}, beside=["kept"])
    slots.check_integrity()


def test_the_same_request_and_those_that_wait_keep_theirs_for_as_long_as_others_can_leave() -> None:
    slots = Slots(3 * KIB)
    for digest in ("mine", "awaited", "idle"):
        load(slots, digest, KIB)
    _, evicted = slots.reserve({"a": KIB}, beside=["mine"], awaited=["awaited"])
    assert [slot.digest for slot in evicted] == ["idle"]
    _, evicted = slots.reserve({"b": KIB}, beside=["mine"], awaited=["awaited"])
    assert [slot.digest for slot in evicted] == ["awaited"]
    with pytest.raises(AdapterMemoryFull):
        slots.reserve({"c": KIB}, beside=["mine"])


def test_more_adapters_in_one_request_than_there_are_slots_are_refused() -> None:
    slots = Slots(4 * KIB, max_slots=2)
    with pytest.raises(AdapterTooLarge, match="names 3 adapters and at most 2 may be in memory"):
        slots.reserve(dict.fromkeys("abc", KIB))


def test_random_use_never_moves_what_is_in_use_and_keeps_every_byte() -> None:
    rng = random.Random(0)
    slots = Slots(64 * KIB)
    held: list[tuple[Slot, int, str]] = []
    for number in range(4000):
        digest = f"d{rng.randrange(40)}"
        if held and rng.random() < 0.5:
            slot, _, _ = held.pop(rng.randrange(len(held)))
            slots.release(slot)
        elif found := slots.find(digest):
            action = rng.choice([slots.lease, slots.lease, slots.pin, slots.unpin, slots.retire])
            action(found)
            if action == slots.lease:
                held.append((found, found.extent.begin, digest))
        else:
            try:
                slot, evicted = reserve(slots, digest, rng.randint(1, 9 * KIB))
            except AdapterMemoryFull:
                assert held or any(slot.is_pinned for slot in slots)
                continue
            assert all(victim.leases == 0 and not victim.is_pinned for victim in evicted)
            if number % 7 == 0:
                slots.abandon(slot)
            else:
                slots.publish(slot)
                held.append((slot, slot.extent.begin, digest))
        slots.check_integrity()
        for slot, begin, digest in held:
            assert slots.find(digest) is slot
            assert slot.extent.begin == begin
