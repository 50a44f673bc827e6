"""Which threads wait when there is more to compute than there are cores: those that load, not those that answer."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

# About a tenth of what an answering thread gets where they share a core; all of it on one that is idle.
LOADER_NICENESS = 10


def stand_back(niceness: int) -> None:
    """Lowers the priority of this thread; where the system has priorities of processes only, nothing happens."""
    if niceness and sys.platform == "linux":
        with contextlib.suppress(OSError):  # a system that forbids even this
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
