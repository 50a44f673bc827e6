"""Compiled functions and the threads that run them; knows nothing of what they compute.

A native function takes one address: that of a row of 8-byte words, integers (addresses, sizes) and doubles. The first
word is a counter from which threads claim units of work, so a function runs on any number of threads, and each unit's
result is its own: the outcome never depends on who computes it.

The threads are torch's own OpenMP pool, entered through the GOMP_parallel of the very library that torch loaded. A
second pool (numba's) would fight the first for the cores: OpenMP threads spin for a while after their work.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba import cfunc, config, types

# Below this many multiply-adds (a few microseconds) entering the pool, about 2 microseconds, does not pay.
ALONE_BELOW = 1 << 15
# From this many on (about a millisecond) others may run Python meanwhile. Below, the interpreter lock is held: to get
# it back from a busy event loop would take longer than the work.
RELEASE_FROM = 1 << 26

_config: Any = config  # its attributes are made at run time
_log = logging.getLogger(__name__)
_SIGNATURE = types.void(types.int64)
_Parallel = Callable[[int, Any, int, int], None]


@dataclass(frozen=True, slots=True)
class NativeFunction:
    """A compiled function and the layout of its words."""

    words: struct.Struct
    address: int
    call: Callable[[Any], None]
    compiled: object  # owns the machine code

    def run(self, *words: int | float, work: int) -> None:
        """Runs over the words, with the counter put before them; `work`, in multiply-adds, decides on how many threads.

        Everything that a word points to must outlive the call, which is over when all threads are done.
        """
        buffer = ctypes.create_string_buffer(self.words.pack(0, *words), self.words.size)
        num_threads = torch.get_num_threads()
        if num_threads == 1 or work < ALONE_BELOW:
            self.call(buffer)
        else:
            holding, releasing = _pool()
            parallel = holding if work < RELEASE_FROM else releasing
            parallel(self.address, buffer, num_threads, 0)


def compile_native(function: Callable[[int], None], *, words: str) -> NativeFunction:
    """Compiles for this machine, or loads what an earlier process compiled.

    `words` are the struct characters of the words after the counter: q is an integer, d a double.
    """
    place = _cache_place()
    usual, _config.CACHE_DIR = _config.CACHE_DIR, place
    try:
        compiled: Any = cfunc(_SIGNATURE, cache=bool(place))(function)
    finally:
        _config.CACHE_DIR = usual
    call = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(compiled.address)
    return NativeFunction(struct.Struct("=q" + words), compiled.address, call, compiled)


@cache
def _cache_place() -> str:
    """Where machine code is kept, named by the digest of all sources here; "" where nothing can be written.

    Left to itself numba looks only at the file of the function that it compiles, and would run on with the old code of
    a changed `vector.py`.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()[:16]
    for base in (here / "__pycache__", Path("~/.cache/loraplex")):
        with contextlib.suppress(OSError, RuntimeError):  # a RuntimeError where the user has no home
            place = base.expanduser() / f"native-{digest}"
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return str(place)
    _log.warning("no directory for machine code can be written: the CPU kernels are compiled anew in each process")
    return ""


@cache
def _pool() -> tuple[_Parallel, _Parallel]:
    """How to run a function on every thread of torch's pool: with the interpreter lock held, and with it released."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # dlsym looks in the library and in what it was linked with: whatever the file is called, torch's own OpenMP.
        found = ctypes.PyDLL(str(library)).GOMP_parallel, ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError) as error:
        _log.warning("torch's OpenMP was not found (%s): the CPU kernels run on one thread", error)
        return _run_alone, _run_alone
    for function in found:
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return found


def _run_alone(address: int, buffer: Any, _num_threads: int, _flags: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(buffer)
