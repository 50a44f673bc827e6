"""A folder that lives as long as the process: what is half done, or was never meant to stay, lies there.

The lock beside it is the kernel's and ends with the process however that ends, so the next start removes what a killed
one left behind and nothing of a process that still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK_SUFFIX = ".lock"


@contextlib.contextmanager
def open_scratch(root: Path) -> Iterator[Path]:
    """A new empty folder under `root`, removed at the end; those of processes that have ended are removed now."""
    root.mkdir(parents=True, exist_ok=True)
    for lock in root.glob(f"*{LOCK_SUFFIX}"):
        if (descriptor := _take(lock)) is not None:
            _remove(lock, descriptor)
    lock, descriptor = _make(root)
    folder = lock.with_suffix("")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(lock, descriptor)


def _make(root: Path) -> tuple[Path, int]:
    while True:
        descriptor, name = tempfile.mkstemp(dir=root, suffix=LOCK_SUFFIX)
        os.close(descriptor)
        # Another process that starts now may have taken it for one that was left behind.
        if (taken := _take(Path(name))) is not None:
            return Path(name), taken


def _take(lock: Path) -> int | None:
    """The file, locked; None when another process has it or it is gone."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _remove(lock: Path, descriptor: int) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
    os.close(descriptor)
