"""The tokens of a vocabulary by the bytes that they spell: which begin with some, and which hold some."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

NO_BYTE = b"\xff"  # in no UTF-8 text


class SpelledVocabulary:
    """The tokens of a vocabulary as bytes, to be searched. `tokens` by id; one without a text is empty."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        # A caller's bad words tend to be those of its last request.
        self.holding = functools.lru_cache(maxsize=4096)(self._holding)
        self._order = sorted(range(len(tokens)), key=tokens.__getitem__)
        self._sorted = [tokens[token_id] for token_id in self._order]
        self._ids = torch.tensor(self._order, dtype=torch.int64)
        self._text = NO_BYTE.join(self._sorted)
        self._starts = [0]
        for token in self._sorted:
            self._starts.append(self._starts[-1] + len(token) + len(NO_BYTE))

    def beginning_with(self, rest: bytes) -> Tensor:
        """Ids of the tokens that begin with these bytes, int64 [found]."""
        end = rest + NO_BYTE * 64  # a token that begins with `rest` and sorts after this is not UTF-8
        return self._ids[bisect_left(self._sorted, rest) : bisect_left(self._sorted, end)]

    def _holding(self, word: bytes) -> list[int]:
        """Ids of the tokens with the word in them."""
        found, place = [], self._text.find(word)
        while place >= 0:
            index = bisect_left(self._starts, place + 1) - 1
            found.append(self._order[index])
            place = self._text.find(word, self._starts[index + 1])
        return found
