r"""Regular expressions of strangers, matched in bounded time.

An adapter's configuration may hold regular expressions (`target_modules`, `rank_pattern`, …). Python's `re` backtracks:
`(.+)+!` against one module name takes years. Here a pattern is matched by sets instead: from each position, the set of
positions that a node can end at, a bit mask computed once. That is polynomial, and a step limit bounds the rest.

    node = Literal | Class | Anchor | Look | Sequence | Choice | Repeat
    ends(node, position) -> bit mask of end positions

It answers what `re.fullmatch` answers (a test compares them). Not served, and refused by name: back references,
look-behind, conditionals, inline flags, atomic groups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapter.errors import AdapterRefused
from adapter.header import shown

MAX_PATTERN_CHARS = 4096
# Depth of groups: each level costs the parser and the matcher a few frames of the interpreter's stack.
MAX_DEPTH = 20
# One name against one pattern; long real patterns take 2000. At the limit it is some milliseconds.
MAX_STEPS = 10_000

_ENDLESS = 2**31
_WORD = re.compile(r"\w")
_COUNT = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")
# Without a repeat, a choice or a group there is nothing to backtrack into.
_PLAIN = re.compile(r"(?:[\w.-]|\\\.)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Literal:
    char: str


@dataclass(frozen=True, slots=True)
class _Class:
    """One character, decided by `re` itself."""

    accepts: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Anchor:
    """A position: one of ^ $ \\A \\Z \\b."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Look:
    """A look-ahead."""

    node: _Node
    is_negative: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    nodes: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    nodes: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    least: int
    most: int


_Node = _Literal | _Class | _Anchor | _Look | _Sequence | _Choice | _Repeat


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that is matched against whole names."""

    source: str
    _root: _Node
    _plain: re.Pattern[str] | None

    @classmethod
    def compile(cls, source: str) -> Pattern:
        """Parses the expression. Raises AdapterRefused for what is no expression or is not served here."""
        if len(source) > MAX_PATTERN_CHARS:
            raise AdapterRefused([f"pattern {shown(source)}: expected at most {MAX_PATTERN_CHARS} characters"])
        is_plain = _PLAIN.fullmatch(source) is not None
        return cls(source, _Parser(source).parse(), re.compile(source) if is_plain else None)

    @classmethod
    def compile_suffix(cls, source: str) -> Pattern:
        """PEFT's `get_pattern_key`: the expression must match the name's end, at its beginning or after a dot."""
        inner = cls.compile(source)
        root = _Sequence((_Parser(r"(.*\.)?").parse(), inner._root))
        return cls(source, root, re.compile(rf"(.*\.)?({source})") if inner._plain else None)

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing that repeats or chooses, so that matching it costs nothing."""
        return self._plain is not None

    def matches(self, name: str) -> bool:
        """Whether the whole name matches. Raises AdapterRefused when that takes too many steps to say."""
        if self._plain is not None:
            return self._plain.fullmatch(name) is not None
        return bool(_Matcher(self, name).ends(self._root, 0) >> len(name) & 1)


class _Parser:
    """Recursive descent over the source: choice > sequence > repeat > atom."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.depth = 0

    def parse(self) -> _Node:
        node = self.choice()
        if self.at < len(self.source):
            raise self.refused("an unbalanced ')'")
        return node

    def refused(self, found: str) -> AdapterRefused:
        return AdapterRefused([f"pattern {shown(self.source)}: found {found} at {self.at}, which is not served"])

    def accept(self, text: str) -> bool:
        if not self.source.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def choice(self) -> _Node:
        nodes = [self.sequence()]
        while self.accept("|"):
            nodes.append(self.sequence())
        return nodes[0] if len(nodes) == 1 else _Choice(tuple(nodes))

    def sequence(self) -> _Node:
        nodes: list[_Node] = []
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            nodes.append(self.repeat())
        return nodes[0] if len(nodes) == 1 else _Sequence(tuple(nodes))

    def repeat(self) -> _Node:
        node = self.atom()
        bounds = self.bounds()
        if bounds is None:
            return node
        if isinstance(node, _Anchor):
            raise self.refused("a repeated anchor")
        self.accept("?")  # Lazy or greedy, the set of ends is the same.
        if self.accept("+"):
            raise self.refused("a possessive repeat")
        if self.bounds() is not None:
            raise self.refused("a repeated repeat")
        return _Repeat(node, *bounds)

    def bounds(self) -> tuple[int, int] | None:
        for sign, bounds in (("*", (0, _ENDLESS)), ("+", (1, _ENDLESS)), ("?", (0, 1))):
            if self.accept(sign):
                return bounds
        found = _COUNT.match(self.source, self.at)
        if found is None or found[0] == "{}":  # `re` takes a brace that counts nothing as a character.
            return None
        self.at = found.end()
        least = int(found[1] or 0)
        most = (int(found[3]) if found[3] else _ENDLESS) if found[2] else least
        if most < least or (not found[2] and found[3]):
            raise self.refused("a count whose most is less than its least")
        return least, most

    def atom(self) -> _Node:
        char = self.source[self.at]
        if char == "(":
            return self.group()
        if char == "[":
            return self.char_class()
        if char == "\\":
            return self.escape()
        if self.bounds() is not None:
            raise self.refused("a repeat of nothing")
        self.at += 1
        if char in "^$":
            return _Anchor(char)
        return _Class(re.compile(".")) if char == "." else _Literal(char)

    def group(self) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.refused(f"groups deeper than {MAX_DEPTH}")
        self.at += 1
        look: bool | None = None
        if self.accept("?="):
            look = False
        elif self.accept("?!"):
            look = True
        elif self.accept("?P<"):
            name = re.compile(r"[A-Za-z_]\w*>", re.ASCII).match(self.source, self.at)
            if name is None:
                raise self.refused("a group without a name")
            self.at = name.end()
        elif not self.accept("?:") and self.source.startswith("?", self.at):
            raise self.refused(f"the group '({self.source[self.at : self.at + 3]}'")
        node = self.choice()
        if not self.accept(")"):
            raise self.refused("the end of the pattern inside a group")
        self.depth -= 1
        # A group may repeat what alone may not, such as an anchor.
        return _Sequence((node,)) if look is None else _Look(node, look)

    def char_class(self) -> _Node:
        end = self.source.find("]", self.at + (3 if self.source.startswith("[^", self.at) else 2))
        while end > 0 and self.is_escaped(end):
            end = self.source.find("]", end + 1)
        text = self.source[self.at : end + 1]
        # A bracket or a doubled sign inside a class may change its meaning in a later Python.
        if end < 0 or "[" in text[1:] or any(sign * 2 in text for sign in "-&~|"):
            raise self.refused("a character class that is not closed, or nested")
        return self.single(text)

    def is_escaped(self, end: int) -> bool:
        before = self.source[self.at : end]
        return (len(before) - len(before.rstrip("\\"))) % 2 == 1

    def escape(self) -> _Node:
        text = self.source[self.at : self.at + 2]
        if text in ("\\b", "\\A", "\\Z"):
            self.at += 2
            return _Anchor(text)
        if len(text) < 2 or (text[1].isalnum() and text[1] not in "dDwWsSnrtfv"):
            raise self.refused(f"the escape {text!r}")
        return self.single(text)

    def single(self, text: str) -> _Node:
        try:
            accepts = re.compile(text)
        except re.error as error:
            raise self.refused(f"the character class {text[:40]!r} ({error.msg})") from error
        self.at += len(text)
        return _Class(accepts)


class _Matcher:
    """One pattern against one name; remembers what each node answered at each position."""

    def __init__(self, pattern: Pattern, name: str) -> None:
        self.pattern = pattern
        self.name = name
        self.steps = 0
        self.known: dict[tuple[int, int], int] = {}

    def ends(self, node: _Node, position: int) -> int:
        key = (id(node), position)
        if key not in self.known:
            self.known[key] = self.compute(node, position)
        return self.known[key]

    def compute(self, node: _Node, position: int) -> int:
        self.step()
        reached = 0
        match node:
            case _Literal(char):
                reached = 1 << position + 1 if self.name.startswith(char, position) else 0
            case _Class(accepts):
                has_char = position < len(self.name) and accepts.fullmatch(self.name[position]) is not None
                reached = 1 << position + 1 if has_char else 0
            case _Anchor(kind):
                reached = 1 << position if self.holds(kind, position) else 0
            case _Look(inner, is_negative):
                reached = 1 << position if bool(self.ends(inner, position)) != is_negative else 0
            case _Sequence(nodes):
                reached = 1 << position
                for inner in nodes:
                    reached = self.advance(inner, reached)
            case _Choice(nodes):
                for inner in nodes:
                    reached |= self.ends(inner, position)
            case _Repeat():
                reached = self.repeat(node, 1 << position)
        return reached

    def repeat(self, node: _Repeat, reached: int) -> int:
        # After as many rounds as the name has positions, a further round changes nothing: whatever still goes on then
        # stands still. So larger counts need not be counted.
        rounds = len(self.name) + 1
        for _ in range(min(node.least, rounds)):
            reached = self.advance(node.node, reached)
        fresh = reached
        for _ in range(min(node.most - node.least, rounds)):
            fresh = self.advance(node.node, fresh) & ~reached
            if not fresh:
                break
            reached |= fresh
        return reached

    def advance(self, node: _Node, positions: int) -> int:
        reached = 0
        while positions:
            lowest = positions & -positions
            reached |= self.ends(node, lowest.bit_length() - 1)
            positions ^= lowest
            self.step()
        return reached

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise AdapterRefused([f"pattern {shown(self.pattern.source)}: takes too long to match"])

    def holds(self, kind: str, position: int) -> bool:
        if kind in ("^", "\\A"):
            return position == 0
        if kind in ("$", "\\Z"):
            return position == len(self.name) or (kind == "$" and self.name[position:] == "\n")
        return self.is_word(position - 1) != self.is_word(position)

    def is_word(self, position: int) -> bool:
        return 0 <= position < len(self.name) and _WORD.fullmatch(self.name[position]) is not None
