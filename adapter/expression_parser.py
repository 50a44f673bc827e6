"""The syntax of regular expressions, as far as they are served.

Back references, look-behind, conditionals, inline flags and atomic groups are refused by name.
"""

from __future__ import annotations

import re

from adapter.errors import AdapterRefused
from adapter.expressions import ENDLESS, Anchor, Choice, Class, Literal, Look, Node, Repeat, Sequence
from adapter.header import shown

# Depth of groups: each level costs the parser and the matcher a few frames of the interpreter's stack.
MAX_DEPTH = 20
_COUNT = re.compile(r"\{(\d{0,6})(,?)(\d{0,6})\}")


class Parser:
    """Recursive descent over the source: choice > sequence > repeat > atom."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
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

    def choice(self) -> Node:
        nodes = [self.sequence()]
        while self.accept("|"):
            nodes.append(self.sequence())
        return nodes[0] if len(nodes) == 1 else Choice(tuple(nodes))

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            node, last = self.repeat(), nodes[-1] if nodes else None
            if isinstance(node, Literal) and isinstance(last, Literal):
                nodes[-1] = Literal(last.text + node.text)
            else:
                nodes.append(node)
        return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))

    def repeat(self) -> Node:
        node = self.atom()
        bounds = self.bounds()
        if bounds is None:
            return node
        if isinstance(node, Anchor):
            raise self.refused("a repeated anchor")
        self.accept("?")  # Lazy or greedy, the set of ends is the same.
        if self.accept("+"):
            raise self.refused("a possessive repeat")
        if self.bounds() is not None:
            raise self.refused("a repeated repeat")
        return Repeat(node, *bounds)

    def bounds(self) -> tuple[int, int] | None:
        for sign, bounds in (("*", (0, ENDLESS)), ("+", (1, ENDLESS)), ("?", (0, 1))):
            if self.accept(sign):
                return bounds
        found = _COUNT.match(self.source, self.at)
        if found is None or found[0] == "{}":  # `re` takes a brace that counts nothing as a character.
            return None
        self.at = found.end()
        least = int(found[1] or 0)
        most = (int(found[3]) if found[3] else ENDLESS) if found[2] else least
        if most < least or (not found[2] and found[3]):
            raise self.refused("a count whose most is less than its least")
        return least, most

    def atom(self) -> Node:
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
            return Anchor(char)
        return Class(re.compile(".")) if char == "." else Literal(char)

    def group(self) -> Node:
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
        return Sequence((node,)) if look is None else Look(node, look)

    def char_class(self) -> Node:
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

    def escape(self) -> Node:
        text = self.source[self.at : self.at + 2]
        if text in ("\\b", "\\A", "\\Z"):
            self.at += 2
            return Anchor(text)
        if len(text) < 2 or (text[1].isalnum() and text[1] not in "dDwWsSnrtfv"):
            raise self.refused(f"the escape {text!r}")
        return self.single(text)

    def single(self, text: str) -> Node:
        try:
            accepts = re.compile(text)
        except re.error as error:
            raise self.refused(f"the character class {text[:40]!r} ({error.msg})") from error
        self.at += len(text)
        return Class(accepts)
