"""Runs the PTX of a kernel on the host, checking everything: the one way in.

    Simulator(ptx).launch("shrink", grid, block, arguments, buffers, shared_bytes=...)

`arguments` are scalars as a launch packs them, addresses among them; `buffers` are the bytes behind the addresses. The
launch's own rules are checked here: the grid's limits, the number of arguments, the width of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.kernels.cuda.simulator.machine import Machine
from tests.kernels.cuda.simulator.memory import Buffer, Traffic
from tests.kernels.cuda.simulator.ptx import SIZES, PtxError, parse
from tests.kernels.cuda.simulator.scheduler import Scheduler

MAX_THREADS = 1024
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_SHARED_BYTES = 48 * 1024  # what a launch gets without asking the driver for more


class Simulator:
    """The kernels of one module."""

    def __init__(self, ptx: str) -> None:
        self._entries = parse(ptx)

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[np.generic],
        buffers: Sequence[Buffer],
        *,
        shared_bytes: int = 0,
    ) -> Traffic:
        """Runs one launch to its end. Mutates: buffers. Raises PtxError for whatever a GPU would not forgive."""
        if name not in self._entries:
            raise PtxError(f"expected one of {sorted(self._entries)}, found {name}")
        entry = self._entries[name]
        whole_grid, whole_block = _three(grid), _three(block)
        if min(whole_grid + whole_block) < 1 or any(a > b for a, b in zip(whole_grid, MAX_GRID, strict=True)):
            raise PtxError(f"{name}: invalid grid {whole_grid} of blocks {whole_block}")
        if int(np.prod(whole_block)) > MAX_THREADS:
            raise PtxError(f"{name}: expected at most {MAX_THREADS} threads in a block, found {whole_block}")
        if entry.static_shared_bytes + shared_bytes > MAX_SHARED_BYTES:
            raise PtxError(f"{name}: more than {MAX_SHARED_BYTES} bytes of shared memory")
        if len(arguments) != len(entry.parameters):
            raise PtxError(f"{name} takes {len(entry.parameters)} arguments, found {len(arguments)}")
        values = {}
        for (kind, parameter), value in zip(entry.parameters, arguments, strict=True):
            if value.itemsize != SIZES[kind]:
                raise PtxError(f"{parameter} is .{kind} ({SIZES[kind]} bytes), found {type(value).__name__}")
            values[parameter] = value
        machine = Machine(entry, whole_grid, whole_block, values, buffers, shared_bytes)
        return Scheduler(machine).run()


def _three(extent: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*extent, 1, 1)[:3]
    return x, y, z
