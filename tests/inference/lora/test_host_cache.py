from __future__ import annotations

import random

import pytest
import torch

from inference.errors import AdapterMemoryFull, AdapterNotFound, AdapterTooLarge
from inference.lora.host_cache import HostCache
from inference.lora.reading import Weights


def weights(num_bytes: int) -> Weights:
    """Of so many bytes; nobody looks at the rest."""
    return Weights(torch.zeros(num_bytes, dtype=torch.uint8), None, None)


def keep(cache: HostCache, digest: str, num_bytes: int) -> None:
    cache.release(cache.add(digest, weights(num_bytes)))
    cache.check_integrity()


def digests(cache: HostCache) -> list[str]:
    return [slab.digest for slab in cache]


def test_the_least_recently_used_slab_leaves() -> None:
    cache = HostCache(30)
    for digest in "abc":
        keep(cache, digest, 10)
    cache.touch("a")
    keep(cache, "d", 10)
    assert digests(cache) == ["c", "a", "d"]
    assert cache.used_bytes == 30


def test_a_slab_in_use_or_pinned_never_leaves() -> None:
    cache = HostCache(20)
    used = cache.add("used", weights(10))
    keep(cache, "pinned", 10)
    cache.pin("pinned")
    keep(cache, "new", 10)
    assert digests(cache) == ["used", "pinned"]
    cache.drop("used")
    cache.drop("pinned")
    assert digests(cache) == ["used", "pinned"]
    cache.release(used)
    cache.unpin("pinned")
    keep(cache, "new", 20)
    assert digests(cache) == ["new"]


def test_what_is_in_use_may_be_beyond_the_budget_and_leaves_at_its_release() -> None:
    cache = HostCache(10)
    large = cache.add("large", weights(50))
    assert cache.used_bytes == 50
    cache.release(large)
    assert cache.used_bytes == 0


def test_the_number_of_adapters_is_a_limit_too() -> None:
    cache = HostCache(100, max_adapters=2)
    for digest in "abc":
        keep(cache, digest, 1)
    assert digests(cache) == ["b", "c"]


def test_pins_beyond_the_budget_are_refused_with_the_numbers() -> None:
    cache = HostCache(15)
    slab = cache.add("a", weights(10))
    other = cache.add("b", weights(10))
    cache.pin("a")
    cache.pin("a")
    with pytest.raises(AdapterMemoryFull, match="takes 10 bytes; of 15 of the host cache, 10 are pinned"):
        cache.pin("b")
    with pytest.raises(AdapterNotFound, match="b is not pinned"):
        cache.unpin("b")
    with pytest.raises(AdapterNotFound):
        cache.pin("c")
    with pytest.raises(AdapterTooLarge, match="takes 16 bytes and the host cache is 15"):
        cache.check_fits(16)
    cache.release(slab)
    cache.release(other)


def test_random_use_keeps_the_budget_and_everything_in_use() -> None:
    rng = random.Random(0)
    cache = HostCache(100, max_adapters=12)
    held = []
    for _ in range(3000):
        digest = f"d{rng.randrange(30)}"
        slab = cache.find(digest)
        if held and rng.random() < 0.4:
            cache.release(held.pop(rng.randrange(len(held))))
        elif slab is None:
            held.append(cache.add(digest, weights(rng.randint(1, 40))))
        elif rng.random() < 0.7:
            cache.hold(slab)
            held.append(slab)
        else:
            cache.drop(digest)
        cache.check_integrity()
        assert all(cache.find(one.digest) is one for one in held)
