"""Decode steps that are captured once and replayed: one launch from the host for a whole step.

    HostBatch ─► padded to a bucket ─► one copy into the graph's own memory ─► replay ─► logits at a fixed place

A graph has for good which kernels run, on which grids, at which addresses. So batches are padded to few sizes, and what
a plan of adapters decides on the host (the ranks, whether rows are composed) is part of a graph's key. What adapters a
row has, where they lie in the arena and all of their weights a graph reads from the device's memory, each time anew.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from inference.engine.batch import Batch, HostBatch
from inference.engine.kv_cache import KVCache

log = logging.getLogger(__name__)

MAX_GRAPHS = 128  # kept: ten sizes, a few kinds of adapters and of contexts; one takes about a megabyte of its kernels
LEAST_BLOCKS = 16  # columns of a block table: 4096 positions, 64 bytes for a row
WHOLE_STEP = 64  # rows from which on sizes grow by as many: a product of 65 rows takes no longer than one of 128
ROWS_SHARED = 16  # entries of a segment, on average, from which on a step counts as one whose rows share adapters


class Model(Protocol):
    """A decoder: float32 logits [B_sampled, V] of the rows that a batch asks for."""

    def forward(self, batch: Batch, kv: KVCache) -> Tensor: ...


class Capture(Protocol):
    """Makes a computation on fixed memory repeatable."""

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Runs `compute` at least once; returns what runs it again on whatever its tensors then hold."""


def eager(compute: Callable[[], None]) -> Callable[[], None]:
    """The Capture of a device without graphs, which repeats the host's work too."""
    compute()
    return compute


class CudaCapture:
    """The Capture of torch's CUDA graphs. They share one pool for what they compute in between: one runs at a time.

    Without `torch.cuda.graph`, which waits for the whole device, loads of adapters included, and gives memory back to
    the driver: this may happen between any two steps. A capture takes the host about as long as a step that it queues.
    What torch or a library refuses to capture is computed like any other step, and the log says so.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        compute()  # libraries take memory of their own at their first call, which a capture does not allow
        try:
            return self._captured(compute)
        except RuntimeError:
            log.exception("a step cannot be captured; the host goes on to queue every kernel of its like")
            return compute

    def _captured(self, compute: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            # Threads that load adapters go on: only what this thread asks of the driver must be capturable.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                compute()
            finally:
                graph.capture_end()
        # What was captured has not run, and what ran before has the same result.
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass(frozen=True, slots=True)
class _Captured:
    """A decode of one bucket: where its batch must be sent, and what computes it."""

    memory: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The captured decodes of one model. Called from one thread, on one stream.

    max_rows: the most sequences of a step. max_blocks: the most blocks of a sequence.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        capture: Capture,
        *,
        vocab_size: int,
        max_rows: int,
        max_blocks: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._capture = capture
        self._max_blocks = max_blocks
        self._captured: OrderedDict[object, _Captured] = OrderedDict()  # the least recently used first
        # One for all graphs, as a graph's own would stay taken as long as the graph.
        shape = rounded_rows(max_rows), vocab_size
        self._logits = torch.empty(shape, dtype=torch.float32, device=kv_cache.device)

    def __len__(self) -> int:
        return len(self._captured)

    def logits(self, host: HostBatch) -> Tensor:
        """What the model computes for a decode, float32 [B, V]; true until the next call. Mutates: the KV cache.

        A plan that no graph can have is computed as it is, and V may be an adapter's own.
        """
        if host.lora is not None and not host.lora.is_capturable:
            return self._model.forward(host.send(self._kv_cache.device), self._kv_cache)
        padded = pad(host, max_blocks=self._max_blocks)
        key = _key(padded)
        found = self._captured.get(key)
        if found is None:
            memory = torch.empty(padded.num_bytes, dtype=torch.uint8, device=self._kv_cache.device)
            batch = padded.send(memory.device, into=memory)
            found = self._captured[key] = _Captured(memory, self._capture(partial(self._compute, batch)))
            log.debug("captured a decode of %d rows, the %dth", padded.num_rows, len(self._captured))
            if len(self._captured) > MAX_GRAPHS:
                self._captured.popitem(last=False)
        else:
            self._captured.move_to_end(key)
            padded.send(found.memory.device, into=found.memory)
            found.replay()
        return self._logits[: host.num_rows]

    def _compute(self, batch: Batch) -> None:
        logits = self._model.forward(batch, self._kv_cache)
        self._logits[: logits.shape[0]].copy_(logits)


def pad(host: HostBatch, *, max_blocks: int) -> HostBatch:
    """A decode at the sizes of its bucket."""
    num_rows = rounded_rows(host.num_rows)
    num_blocks = min(max_blocks, max(LEAST_BLOCKS, _power_of_two(host.block_tables.shape[1])))
    if host.lora is None:
        return host.padded(num_rows=num_rows, num_blocks=num_blocks)
    grouping = host.lora.grouping
    # A plain row has at most one entry, so that the rows' own bucket holds them all.
    num_entries = _power_of_two(grouping.num_entries) if grouping.is_composed else num_rows
    num_segments = num_entries // ROWS_SHARED
    if grouping.num_segments > num_segments:
        num_segments = num_entries
    return host.padded(num_rows=num_rows, num_blocks=num_blocks, num_entries=num_entries, num_segments=num_segments)


def rounded_rows(count: int) -> int:
    """The rows of the bucket for `count`: a power of two, then whole multiples of 64."""
    return _power_of_two(count) if count <= WHOLE_STEP else -(-count // WHOLE_STEP) * WHOLE_STEP


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _key(padded: HostBatch) -> tuple[object, ...]:
    shapes = tuple(array.shape for array in padded.arrays)
    return shapes, None if padded.lora is None else padded.lora.key
