"""The order between the steps that read the arena and the loads that write to it. One place knows of streams.

    engine thread    step ─► mark        step ─► mark                      compute stream: the steps, one after another
                               ╎ event
    loader thread              └────► write ─► written, by the host ─► publish                 side stream: the writes

A write begins when the steps that were queued before it are over, since one of them may still read what the bytes held
before. No step waits for a write: whose weights are being written, nobody may name until they are published.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch


class Ordering(Protocol):
    """Called by the bank and, through it, by the runner."""

    def mark_step(self) -> None:
        """On the engine's thread, when all of a step is queued, or as much of it as there will be."""

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """On a loader's thread: what is queued inside comes after every step marked before, and is done at the end."""


class InTurn:
    """The Ordering of the CPU, where a step is over when it returns and what is written is written."""

    def mark_step(self) -> None:
        pass

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class BesideSteps:
    """The Ordering of a CUDA device: writes go to a stream of their own, which waits for an event of the last step.

    Only the loader's thread waits for a write. One event serves all steps: it stands for the last one recorded, and
    that one comes after all others of its stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
        self._last_step = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def mark_step(self) -> None:
        self._last_step.record()  # on torch's current stream, the one that steps are queued on

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self._side.wait_event(self._last_step)
        with torch.cuda.stream(self._side):
            yield
        self._side.synchronize()


def ordering_of(device: torch.device) -> Ordering:
    return InTurn() if device.type == "cpu" else BesideSteps(device)
