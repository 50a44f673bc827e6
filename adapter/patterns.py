r"""Regular expressions of strangers, matched in bounded time.

An adapter's configuration may hold regular expressions (`target_modules`, `rank_pattern`, …). Python's `re` backtracks:
`(.+)+!` against one module name takes years. Here a pattern is matched by sets of positions, and a budget of steps,
which all patterns of a configuration share, bounds the rest. It answers what `re.fullmatch` answers (a test compares
them), or refuses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from adapter.errors import AdapterRefused
from adapter.expression_parser import Parser
from adapter.expressions import Node, Run, Sequence
from adapter.header import shown

MAX_PATTERN_CHARS = 4096
# One name against one pattern, which also bounds what is remembered meanwhile.
MAX_NAME_STEPS = 10_000
# All patterns of a configuration against all names: about half a second. The longest pattern that people use takes 240
# steps for a name, a usual one 90, and names that differ in their digits only mostly cost once.
MAX_STEPS = 2_000_000
# What it costs to ask a pattern that only looks at a name's end, and one that has to look further.
GLANCE_STEPS, LOOK_STEPS = 2, 5
# Answers that a pattern remembers; a model with many more kinds of names is slower to plan.
MAX_KNOWN = 1024

# Without a repeat, a choice or a group there are only characters to compare.
_PLAIN = re.compile(r"(?:[\w.-]|\\\.)*", re.ASCII)
_ALL_ZERO = str.maketrans("123456789", "0" * 9)


class Budget:
    """The steps that some patterns may take together, in all that they are ever asked."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps


@dataclass(frozen=True, slots=True)
class _Plain:
    """Characters, of which some accept any but a line's end."""

    text: str
    wildcards: frozenset[int]
    is_suffix: bool
    tail: str
    """What it ends with after its last wildcard."""

    @classmethod
    def parse(cls, source: str, *, is_suffix: bool) -> _Plain:
        parts = re.findall(r"\\?.", source)
        wildcards = frozenset(index for index, part in enumerate(parts) if part == ".")
        text = "".join(part[-1] for part in parts)
        return cls(text, wildcards, is_suffix, text[max(wildcards, default=-1) + 1 :])

    def matches(self, name: str) -> bool:
        begin = len(name) - len(self.text)
        if begin and not (self.is_suffix and begin > 0 and name[begin - 1] == "." and "\n" not in name[:begin]):
            return False
        found = name[begin:]
        # A dot almost always stands for a dot.
        return found == self.text or (
            bool(self.wildcards)
            and all(
                char != "\n" if index in self.wildcards else char == self.text[index]
                for index, char in enumerate(found)
            )
        )


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that is matched against whole names."""

    source: str
    _root: Node | None
    _plain: _Plain | None
    _budget: Budget = field(compare=False)
    _ignores_digits: bool
    _known: dict[str, bool] = field(default_factory=dict, compare=False)

    @classmethod
    def compile(cls, source: str, budget: Budget | None = None) -> Pattern:
        """Parses the expression; without a budget it gets one of its own.

        Raises AdapterRefused for what is no expression or is not served here.
        """
        if len(source) > MAX_PATTERN_CHARS:
            raise AdapterRefused([f"pattern {shown(source)}: expected at most {MAX_PATTERN_CHARS} characters"])
        budget = budget or Budget()
        if _PLAIN.fullmatch(source):
            return cls(source, None, _Plain.parse(source, is_suffix=False), budget, False)
        root = Parser(source).parse()
        return cls(source, root, None, budget, not root.tells_digits_apart)

    @classmethod
    def compile_suffix(cls, source: str, budget: Budget | None = None) -> Pattern:
        """PEFT's `get_pattern_key`: the expression must match the name's end, at its beginning or after a dot."""
        inner = cls.compile(source, budget)
        if inner._root is None:
            return cls(source, None, _Plain.parse(source, is_suffix=True), inner._budget, False)
        root = Sequence((Parser(r"(.*\.)?").parse(), inner._root))
        return cls(source, root, None, inner._budget, inner._ignores_digits)

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing that repeats or chooses, so that matching it costs nothing to speak of."""
        return self._plain is not None

    def matches(self, name: str) -> bool:
        """Whether the whole name matches. Raises AdapterRefused when that takes too many steps to say."""
        if self._plain is not None:
            is_close = name.endswith(self._plain.tail)
            self._spend(LOOK_STEPS + len(self._plain.wildcards) if is_close else GLANCE_STEPS)
            return is_close and self._plain.matches(name)
        # A model's layers and experts differ in their numbers, and few patterns ask which.
        key = name.translate(_ALL_ZERO) if self._ignores_digits else name
        self._spend(LOOK_STEPS)
        if key not in self._known:
            answer = self._run(key)
            if len(self._known) == MAX_KNOWN:
                return answer
            self._known[key] = answer
        return self._known[key]

    def _run(self, name: str) -> bool:
        assert self._root is not None
        steps = min(MAX_NAME_STEPS, self._budget.left)
        run = Run(self.source, name, steps=steps)
        try:
            return bool(self._root.ends(run, 1) >> len(name) & 1)
        finally:
            self._spend(steps - run.left)

    def _spend(self, steps: int) -> None:
        self._budget.left -= steps
        if self._budget.left < 0:
            raise AdapterRefused([f"pattern {shown(self.source)}: takes too long to match"])
