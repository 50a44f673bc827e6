"""Names for what is in a full block: which weights computed it, from which tokens. Knows no blocks and no policy.

    root(adapter key) ──► key of block 0 ──► key of block 1 ──► …     each a hash of the one before and its tokens

The keys and values of a position depend on the weights and on every token up to it, and on nothing else, so blocks of
equal keys hold equal contents. The hash is a cryptographic one: nobody can make a prompt that reads another's blocks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

AdapterKey = tuple[tuple[str, float], ...]
BlockKey = bytes


def root(adapter_key: AdapterKey) -> BlockKey:
    """The key before the first block: the digests and weights of a request's adapters, in their order."""
    return hashlib.sha256(repr(adapter_key).encode()).digest()


def extend(key: BlockKey, token_ids: Iterable[int]) -> BlockKey:
    """The key of the block with these tokens that follows the one with `key`."""
    return hashlib.sha256(key + array("q", token_ids).tobytes()).digest()
