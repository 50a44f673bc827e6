"""Reads PTX text: the entries of a module, their parameters, registers, shared memory, labels and instructions.

Knows the syntax that NVRTC writes, and inline assembly in braces; what an instruction does is for others.
Source: the PTX ISA 9.0 manual, chapters 4 to 7.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

import numpy as np

TYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_,
    "b8": np.uint8,
    "u8": np.uint8,
    "s8": np.int8,
    "b16": np.uint16,
    "u16": np.uint16,
    "s16": np.int16,
    "f16": np.float16,
    "bf16": np.uint16,  # numpy has no bfloat16: bits, converted where a value is wanted
    "b32": np.uint32,
    "u32": np.uint32,
    "s32": np.int32,
    "f32": np.float32,
    "f16x2": np.uint32,
    "bf16x2": np.uint32,
    "b64": np.uint64,
    "u64": np.uint64,
    "s64": np.int64,
    "f64": np.float64,
}
SIZES = {name: np.dtype(kind).itemsize for name, kind in TYPES.items()}


_BRACE = re.compile("[{}]")


class PtxError(Exception):
    """The kernel did what it must not, or something the simulator does not know. Nothing is skipped silently."""


@dataclass(slots=True)
class Instruction:
    """`@!guard base.modifiers operands;` and the source line that it came from."""

    text: str
    line: str
    guard: str | None
    is_negated: bool
    base: str
    modifiers: list[str]
    operands: list[str]

    @property
    def type(self) -> str:
        return self.modifiers[-1]


@dataclass(slots=True)
class Entry:
    """One kernel. `shared` are the offsets of its shared arrays; those of unknown size begin after all others."""

    name: str
    parameters: list[tuple[str, str]]
    registers: dict[str, str] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    static_shared_bytes: int = 0
    has_dynamic_shared: bool = False


def parse(text: str) -> dict[str, Entry]:
    """The kernels of a module by name."""
    text = re.sub(r"/\*.*?\*/", "", re.sub(r"//[^\n]*", "", text), flags=re.DOTALL)
    parameter = r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?([\w$]+)"
    entries = {}
    for match in re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text):
        end, depth = match.end(), 1
        while depth:
            brace = _BRACE.search(text, end)
            assert brace is not None, f"the body of {match.group(1)} does not end"
            depth += 1 if brace.group() == "{" else -1
            end = brace.end()
        entry = Entry(match.group(1), re.findall(parameter, match.group(2)))
        body = text[match.end() : end - 1]
        _place_shared(entry, text, body)
        _Body(entry).read(body)
        entries[entry.name] = entry
    return entries


def _place_shared(entry: Entry, module: str, body: str) -> None:
    declaration = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)")
    outside = re.sub(r"\{.*?\n\}", "", module, flags=re.DOTALL)
    offset, open_ended = 0, []
    for align, kind, name, dims in declaration.findall(outside) + declaration.findall(body):
        sizes = re.findall(r"\[(\d*)\]", dims)
        if name not in body:
            continue
        if "" in sizes:
            open_ended.append(name)
            continue
        alignment = int(align or SIZES[kind])
        offset = -(-offset // alignment) * alignment
        entry.shared[name] = offset
        offset += SIZES[kind] * int(np.prod([int(size) for size in sizes], initial=1))
    entry.static_shared_bytes = offset
    entry.has_dynamic_shared = bool(open_ended)
    for name in open_ended:
        entry.shared[name] = -(-offset // 16) * 16


class _Body:
    """Reads one kernel's statements. Names declared within braces get the scope's number: `%p@3`."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._line = "?"
        self._scopes: list[dict[str, str]] = [{}]
        self._num_scopes = 0

    def read(self, body: str) -> None:
        body = re.sub(r"^\s*\.loc\s+([^\n]*)$", r" @LOC \1 ;", body, flags=re.MULTILINE)
        body = re.sub(r"^\s*\.pragma[^\n]*$", "", body, flags=re.MULTILINE)
        begin = 0
        for mark in re.finditer(r"[{}:;]", body):
            text = body[begin : mark.start()].strip()
            match mark.group():
                case "{" if not text:
                    self._num_scopes += 1
                    self._scopes.append({})
                case "}" if not text:
                    self._scopes.pop()
                case ":" if re.fullmatch(r"[\w$]+", text):
                    self._entry.labels[text] = len(self._entry.code)
                case ";":
                    self._statement(" ".join(text.split()))
                case _:  # within a statement: operands in braces, a hint such as L1::no_allocate
                    continue
            begin = mark.end()

    def _statement(self, text: str) -> None:
        if text.startswith("@LOC"):
            inlined = re.search(r"inlined_at (\d+) (\d+)", text)
            self._line = text.split()[2].rstrip(",") + (f" (inlined at {inlined.group(2)})" if inlined else "")
        elif text.startswith(".reg"):
            self._declare(text)
        elif text.startswith("."):
            if not text.startswith(".shared"):
                raise PtxError(f"unsupported declaration: {text}")
        elif text:
            self._instruction(text)

    def _declare(self, text: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text)
        assert match is not None, text
        for name in match.group(2).split(","):
            many = re.match(r"(.+)<(\d+)>", name.strip())
            names = [f"{many.group(1)}{i}" for i in range(int(many.group(2)))] if many else [name.strip()]
            for one in names:
                full = one if len(self._scopes) == 1 else f"{one}@{self._num_scopes}"
                self._scopes[-1][one] = full
                self._entry.registers[full] = match.group(1)

    def _instruction(self, text: str) -> None:
        for scope in reversed(self._scopes[1:]):
            for name, full in scope.items():
                text = re.sub(rf"(?<![\w%$@]){re.escape(name)}(?![\w@])", full, text)
        guard, is_negated, base, modifiers, operands = _split(text)
        instruction = Instruction(
            text=text,
            line=self._line,
            guard=guard,
            is_negated=is_negated,
            base=base,
            modifiers=list(modifiers),
            operands=list(operands),
        )
        self._entry.code.append(instruction)


@functools.cache
def _split(text: str) -> tuple[str | None, bool, str, tuple[str, ...], tuple[str, ...]]:
    """Guard, whether it is negated, base, modifiers and operands of a statement; faulty kernels share most of them."""
    guard = re.match(r"@(!?)(%?[\w$@]+)\s+(.*)", text)
    opcode, _, rest = (guard.group(3) if guard else text).partition(" ")
    base, *modifiers = opcode.split(".")
    operands = [o.strip() for o in re.findall(r"\s*\{[^}]*\}|\s*\[[^\]]*\]|[^,]+", rest) if o.strip()]
    is_negated = bool(guard and guard.group(1))
    return guard.group(2) if guard else None, is_negated, base, tuple(modifiers), tuple(operands)
