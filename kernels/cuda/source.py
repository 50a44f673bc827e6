"""The text of the kernels: one string for each file, and what the compiler is told about the element.

CuPy's disk cache hashes the source and the options but not the files that a source includes, so local headers are
pasted in: a changed header is never served stale.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from kernels.errors import UnsupportedTensor

FOLDER = Path(__file__).parent

ELEMENTS = {torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that kernels compute with, by the number that element.cuh knows them by."""


@cache
def flatten(file: str, folder: Path = FOLDER) -> str:
    """A source with its local headers in place, each once. Line numbers stay those of the files."""
    return _flatten(file, folder, set())


def options(dtype: torch.dtype) -> tuple[str, ...]:
    """What the compiler is told for tensors of `dtype`. Raises UnsupportedTensor where no kernel computes with it."""
    if dtype not in ELEMENTS:
        names = " or ".join(str(known) for known in ELEMENTS)
        raise UnsupportedTensor(f"expected {names} on a CUDA device, found {dtype}")
    return ("-std=c++17", f"-DELEMENT={ELEMENTS[dtype]}")


def _flatten(file: str, folder: Path, seen: set[str]) -> str:
    if file in seen:
        return ""
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((folder / file).read_text().splitlines(), 1):
        if line == "#pragma once":
            lines.append("")
        elif include := re.fullmatch(r'#include "([^"]+)"', line):
            lines += [_flatten(include.group(1), folder, seen), f'#line {number + 1} "{file}"']
        else:
            lines.append(line)
    return "\n".join(lines)
