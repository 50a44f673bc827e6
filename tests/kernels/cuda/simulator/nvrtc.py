"""Compiles CUDA C++ by the NVRTC wheel: no GPU, no driver, no CuPy. Reads what ptxas and nvdisasm say of the result.

Knows nothing of our kernels. The wheels nvidia-cuda-nvrtc, -runtime (headers), -crt and -nvdisasm are pinned together.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class CompileError(Exception):
    """NVRTC refused the source; the text is its log."""


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel; bytes of stack and shared memory are static ones."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared_bytes: int


def compile_ptx(source: str, architecture: str, options: Sequence[str], *, name: str = "kernels.cu") -> str:
    """PTX for a virtual architecture such as compute_90."""
    code, _ = _compile(source, architecture, tuple(options), name)
    return code.rstrip(b"\0").decode()


def compile_cubin(
    source: str, architecture: str, options: Sequence[str], *, name: str = "kernels.cu"
) -> tuple[bytes, dict[str, Resources]]:
    """Machine code for a real architecture such as sm_90, and each kernel's resources."""
    code, log = _compile(source, architecture, (*options, "--ptxas-options=-v"), name)
    return code, _resources(log)


def sass(cubin: bytes) -> dict[str, Counter[str]]:
    """How often each kernel has each instruction, by its full mnemonic."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_root() / "bin" / "nvdisasm"), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels: dict[str, Counter[str]] = {}
    current: Counter[str] = Counter()
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([\w$]+)", line):
            current = kernels.setdefault(section.group(1), Counter())
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line):
            current[instruction.group(1)] += 1
    return kernels


@functools.cache
def _compile(source: str, architecture: str, options: tuple[str, ...], name: str) -> tuple[bytes, str]:
    library, program, size = _library(), ctypes.c_void_p(), ctypes.c_size_t()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None):
        raise CompileError("nvrtcCreateProgram failed")

    def take(what: str) -> bytes:
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    words = [f"-arch={architecture}", "-lineinfo", f"-I{_root() / 'include'}", *options]
    try:
        failed = library.nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*[word.encode() for word in words])
        )
        log = take("ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(f"{architecture}:\n{log}")
        return take("CUBIN" if architecture.startswith("sm_") else "PTX"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _root() -> Path:
    spec = importlib.util.find_spec("nvidia.cu13")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    assert locations, "the NVRTC wheels are not installed"
    return Path(locations[0])


@functools.cache
def _library() -> ctypes.CDLL:
    for builtins in sorted((_root() / "lib").glob("libnvrtc-builtins.so.13*")):  # NVRTC 13.0 asks by bare name only
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(_root() / "lib" / "libnvrtc.so.13"))


def _resources(log: str) -> dict[str, Resources]:
    pattern = (
        r"Compiling entry function '([^']+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    found = {}
    for name, stack, stores, loads, registers, rest in re.findall(pattern, log, re.DOTALL):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = Resources(
            registers=int(registers),
            spill_stores=int(stores),
            spill_loads=int(loads),
            stack=int(stack),
            shared_bytes=int(shared.group(1)) if shared else 0,
        )
    return found
