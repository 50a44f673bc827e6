"""The worker's state folder, which one worker at a time owns: its id, what it knew last, its adapters' files.

Two workers of one folder would report under one id, so that a promotion is believed to be everywhere when half of them
serve it, and would remove each other's transfers. The lock is the kernel's and ends with the process however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from inference.errors import InvalidRequest, StateFolderInUse

LOCK_FILE = "lock"
WORKER_ID_FILE = "worker_id"


@contextlib.contextmanager
def own_state_folder(folder: Path) -> Iterator[None]:
    """Makes the folder where it is missing, and keeps other workers out of it.

    Raises InvalidRequest for a folder that cannot be written to, and StateFolderInUse.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(
            f"state_dir: expected a folder to write to, found {folder}: {error.strerror}", field="state_dir"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StateFolderInUse(
                f"{folder} is in use by another worker (process {owner}); stop it, or give this one a --state-dir"
            ) from error
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_worker_id(folder: Path) -> str:
    """The same after every restart with the same state folder."""
    path = folder / WORKER_ID_FILE
    # Empty is what a power cut leaves, and a worker without an id is no worker to the registry.
    if not path.exists() or not path.read_text().strip():
        folder.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(uuid.uuid4().hex[:12])
        new.replace(path)
    return path.read_text().strip()
