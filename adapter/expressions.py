"""The parts of a regular expression, matched by sets: from a set of positions in a name, the set of positions that a
part can end at. It knows no syntax.

    node = Literal | Class | Anchor | Look | Sequence | Choice | Repeat
    node.ends(run, starts) -> bit mask of end positions

A set is a bit mask, so a character costs the same at one position and at all of them, and nothing is ever tried twice.
What is left to grow are repeats within repeats, and a run counts its steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from adapter.errors import AdapterRefused
from adapter.header import shown

ENDLESS = 2**31
_WORD = re.compile(r"\w")
_DIGITS = "0123456789"


class Run:
    """One pattern against one name."""

    def __init__(self, source: str, name: str, *, steps: int) -> None:
        self.source = source
        self.name = name
        self.left = steps
        # The positions of each character, and of the characters that each class accepts, by its id.
        self.masks: dict[str, int] = {}
        self.class_masks: dict[int, int] = {}
        # What a repeat answered, by its id and the starts.
        self.known: dict[tuple[int, int], int] = {}
        for position, char in enumerate(name):
            self.masks[char] = self.masks.get(char, 0) | 1 << position
        self.step(len(name))

    def step(self, count: int = 1) -> None:
        """Counts steps. Raises AdapterRefused when none is left."""
        self.left -= count
        if self.left < 0:
            raise AdapterRefused([f"pattern {shown(self.source)}: takes too long to match"])


class Node(Protocol):
    """A part of a pattern."""

    def ends(self, run: Run, starts: int) -> int:
        """The positions where it can end when it begins at any of the starts."""

    @property
    def tells_digits_apart(self) -> bool:
        """Whether it may match one digit and not another in its place."""


@dataclass(frozen=True, slots=True)
class Literal:
    text: str

    @property
    def tells_digits_apart(self) -> bool:
        return any(digit in self.text for digit in _DIGITS)

    def ends(self, run: Run, starts: int) -> int:
        for char in self.text:
            run.step()
            starts = (starts & run.masks.get(char, 0)) << 1
            if not starts:
                break
        return starts

    def mask(self, run: Run) -> int:
        """The positions of its only character."""
        return run.masks.get(self.text, 0)


@dataclass(frozen=True, slots=True)
class Class:
    """One character, decided by `re` itself."""

    accepts: re.Pattern[str]
    # What it said of a character; a name repeats few.
    known: dict[str, bool] = field(default_factory=dict, compare=False)

    @property
    def tells_digits_apart(self) -> bool:
        return len({self.accepts.fullmatch(digit) is None for digit in _DIGITS}) > 1

    def ends(self, run: Run, starts: int) -> int:
        run.step()
        return (starts & self.mask(run)) << 1

    def mask(self, run: Run) -> int:
        """The positions of the characters that it accepts."""
        mask = run.class_masks.get(id(self))
        if mask is None:
            mask = 0
            for char, positions in run.masks.items():
                run.step()
                if char not in self.known:
                    self.known[char] = self.accepts.fullmatch(char) is not None
                mask |= positions if self.known[char] else 0
            run.class_masks[id(self)] = mask
        return mask


@dataclass(frozen=True, slots=True)
class Anchor:
    """A position: one of ^ $ \\A \\Z \\b."""

    kind: str
    tells_digits_apart: ClassVar[bool] = False

    def ends(self, run: Run, starts: int) -> int:
        reached = 0
        for position in _positions(starts):
            run.step()
            reached |= 1 << position if self._holds(run.name, position) else 0
        return reached

    def _holds(self, name: str, position: int) -> bool:
        if self.kind in ("^", "\\A"):
            return position == 0
        if self.kind in ("$", "\\Z"):
            return position == len(name) or (self.kind == "$" and name[position:] == "\n")
        return _is_word(name, position - 1) != _is_word(name, position)


@dataclass(frozen=True, slots=True)
class Look:
    """A look-ahead."""

    node: Node
    is_negative: bool

    @property
    def tells_digits_apart(self) -> bool:
        return self.node.tells_digits_apart

    def ends(self, run: Run, starts: int) -> int:
        reached = 0
        for position in _positions(starts):
            run.step()
            reached |= 1 << position if bool(self.node.ends(run, 1 << position)) != self.is_negative else 0
        return reached


@dataclass(frozen=True, slots=True)
class Sequence:
    nodes: tuple[Node, ...]

    @property
    def tells_digits_apart(self) -> bool:
        return any(node.tells_digits_apart for node in self.nodes)

    def ends(self, run: Run, starts: int) -> int:
        for node in self.nodes:
            run.step()
            starts = node.ends(run, starts)
            if not starts:
                break
        return starts


@dataclass(frozen=True, slots=True)
class Choice:
    nodes: tuple[Node, ...]

    @property
    def tells_digits_apart(self) -> bool:
        return any(node.tells_digits_apart for node in self.nodes)

    def ends(self, run: Run, starts: int) -> int:
        reached = 0
        for node in self.nodes:
            run.step()
            reached |= node.ends(run, starts)
        return reached


@dataclass(frozen=True, slots=True)
class Repeat:
    node: Node
    least: int
    most: int

    @property
    def tells_digits_apart(self) -> bool:
        return self.node.tells_digits_apart

    def ends(self, run: Run, starts: int) -> int:
        key = (id(self), starts)
        if key not in run.known:
            run.known[key] = self._ends(run, starts)
        return run.known[key]

    def _ends(self, run: Run, reached: int) -> int:
        # After as many rounds as the name has positions, a further round changes nothing: whatever still goes on then
        # stands still. So larger counts need not be counted.
        rounds = len(run.name) + 1
        for _ in range(min(self.least, rounds)):
            run.step()
            reached = self.node.ends(run, reached)
        if self.most == ENDLESS and isinstance(self.node, Literal | Class):
            # Each start reaches to the end of its run of accepted characters: adding it carries through the run.
            run.step()
            mask = self.node.mask(run)
            return ((reached & mask) + mask) ^ mask | reached
        fresh = reached
        for _ in range(min(self.most - self.least, rounds)):
            run.step()
            fresh = self.node.ends(run, fresh) & ~reached
            if not fresh:
                break
            reached |= fresh
        return reached


def _positions(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _is_word(name: str, position: int) -> bool:
    return 0 <= position < len(name) and _WORD.fullmatch(name[position]) is not None
