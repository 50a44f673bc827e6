"""Whose turn it is among waiting requests. Knows sequences and adapter keys; no blocks, no budgets."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from inference.engine.prefixes import AdapterKey
from inference.engine.sequence import Sequence


class FairQueue:
    """Round robin over adapters; first come, first served within one.

    One line per adapter key (see request.Request). The line that was served goes to the back, so between two turns of
    a line every other one has at most one: a flood for one adapter delays another's next request by one turn.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[AdapterKey, deque[Sequence]] = OrderedDict()
        self._length = 0
        self.num_tokens = 0
        """Of all sequences in the queue."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def push(self, sequence: Sequence) -> None:
        self._lines.setdefault(sequence.request.adapter_key, deque()).append(sequence)
        self._length += 1
        self.num_tokens += len(sequence.tokens)

    def next(self, may_run: Callable[[Sequence], bool]) -> Sequence | None:
        """The sequence whose turn it is among those that are first in a line and may run; a line that may not keeps its
        turn."""
        return next((line[0] for line in self._lines.values() if may_run(line[0])), None)

    def pop(self, sequence: Sequence) -> None:
        """Takes out what `next` returned, and ends the turn of its line."""
        key = sequence.request.adapter_key
        line = self._lines[key]
        assert line[0] is sequence, "expected the first of its line"
        line.popleft()
        self._length -= 1
        self.num_tokens -= len(sequence.tokens)
        if line:
            self._lines.move_to_end(key)
        else:
            del self._lines[key]

    def remove(self, sequence: Sequence) -> None:
        """Takes out one sequence; the turns of the others stay as they are."""
        key = sequence.request.adapter_key
        self._lines[key].remove(sequence)
        self._length -= 1
        self.num_tokens -= len(sequence.tokens)
        if not self._lines[key]:
            del self._lines[key]
