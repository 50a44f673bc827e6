"""Words that never occur in an answer, whatever the tokens that spell them. Knows bytes; no requests and no model.

A word is looked for in the bytes of the answer. It can come in two ways: within one token, or across the border
between what was answered and the next token. For the second, a matching machine (Aho and Corasick 1975) follows the
answer and knows which beginnings of words it ends with; the tokens that begin with the rest of one are banned. In a
vocabulary sorted by its bytes those lie side by side, so a ban is a slice.

    answer  … f o o      machine: ends with "foo" of "foobar", "o" of "order"
                  next   banned: b a r … , r d e r … , and tokens that hold a whole word
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from inference.constraints.spelled_vocabulary import SpelledVocabulary


class BadWords:
    """The constraint that none of `words` occurs in an answer.

    `open_bytes` are those of a character that the prompt has begun and the answer may complete. `vocab_size` counts the
    ids that there are; those without a text are harmless.
    """

    def __init__(
        self, words: Sequence[str], vocabulary: SpelledVocabulary, *, vocab_size: int, open_bytes: bytes = b""
    ) -> None:
        spelled = sorted({word.encode("utf-8") for word in words})
        assert all(spelled), "expected no empty word"
        self._vocabulary = vocabulary
        self._machine = Machine(spelled)
        self._start = self._machine.follow(0, open_bytes)
        self._usual = torch.ones(max(vocab_size, len(vocabulary.tokens)), dtype=torch.bool)
        for word in spelled:
            self._usual[vocabulary.holding(word)] = False

    def begin(self) -> BadWordsWalk:
        return BadWordsWalk(self, self._start)

    def advance(self, state: int, token_id: int) -> int:
        """The machine's state after a token; ids without a text change nothing."""
        tokens = self._vocabulary.tokens
        return self._machine.follow(state, tokens[token_id]) if token_id < len(tokens) else state

    def allowed(self, state: int) -> Tensor:
        rests = self._machine.rests(state)
        if not rests:
            return self._usual
        allowed = self._usual.clone()
        for rest in rests:
            allowed[self._vocabulary.beginning_with(rest)] = False
        return allowed


class BadWordsWalk:
    """Where one answer stands."""

    def __init__(self, words: BadWords, state: int) -> None:
        self._words = words
        self._state = state
        self._count = 0

    def allowed(self, output_ids: Sequence[int]) -> Tensor:
        for token_id in output_ids[self._count :]:
            self._state = self._words.advance(self._state, token_id)
        self._count = len(output_ids)
        return self._words.allowed(self._state)


class Machine:
    """Follows a text: the state is the longest beginning of a word that the text ends with, 0 the empty one.

    Whole words are no states: an answer has none, and a prompt's go on from the longest beginning that is not whole.
    """

    def __init__(self, words: Sequence[bytes]) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._rests: list[list[bytes]] = [[]]
        """What makes a word of the beginning: one entry for each word that goes on from here."""
        for word in words:
            state = 0
            for place, byte in enumerate(word[:-1], start=1):
                if byte not in self._next[state]:
                    self._next[state][byte] = len(self._next)
                    self._next.append({})
                    self._rests.append([])
                state = self._next[state][byte]
                self._rests[state].append(word[place:])
        self._shorter = [0] * len(self._next)
        """The next longest beginning that a state ends with."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for byte, longer in self._next[state].items():
                self._shorter[longer] = self._step(self._shorter[state], byte)
                queue.append(longer)

    def follow(self, state: int, text: bytes) -> int:
        for byte in text:
            state = self._step(state, byte)
        return state

    def rests(self, state: int) -> set[bytes]:
        """Every text that would complete a word in this state."""
        found: set[bytes] = set()
        while state:
            found.update(self._rests[state])
            state = self._shorter[state]
        return found

    def _step(self, state: int, byte: int) -> int:
        while state and byte not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(byte, 0)
