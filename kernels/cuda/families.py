"""Which kernels run: chosen on the host from counts that it already knows, so that nothing waits for the device.

ROWS streams weights through the CUDA cores: each element of A or B is loaded, widened and multiplied with the rows that
share it, up to 4. TILES multiplies 64 rows at a time on the tensor cores and reads a weight once for all of them, but
spends a tile on however few rows there are, and its copies wait in a pipeline that short slices never fill.

Where they cross follows from what a device can do while one element arrives from memory (boost clocks, data sheets):

                     memory    float32 FMA    FMA per 2-byte element
    A100  sm_80    2.04 TB/s      9.7 T/s             9.5
    H100  sm_90    3.35 TB/s     33.5 T/s            20.0
    B200  sm_100   8.00 TB/s     38.0 T/s             9.5

A widening costs about one FMA per element and per row's feature, so a row costs two: streaming stays at the memory's
pace up to half of these numbers of rows per segment, rounded down to whole units of 4. Not measured on any device.

Rows with several entries are chosen for alike, by the rows of a group (kernels.groups) in the place of a segment's.
One by one, T rows of n entries read B T times over, T * n * R * D_out * 2 bytes, by groups once per 64 rows: for a
prompt of 2048 tokens on two adapters of rank 16 and 4096 columns 537 MB against 8 MB, where y itself moves 34 MB.
"""

from __future__ import annotations

from enum import Enum

from kernels.cuda.module import Facts

MAX_ROWS_STREAMED = ((100, 4), (90, 8), (80, 4))
"""(from this architecture on, rows per segment up to which weights are streamed), the newest first."""

BLOCKS_PER_PROCESSOR = 4  # of 128 threads with 16 bytes x 4 in flight each: 32 KB, what a memory's latency asks for
MAX_SLICES = 64  # partial sums that expand adds up per value


class Family(Enum):
    ROWS = "rows"
    TILES = "tiles"


def choose(num_entries: int, num_segments: int, facts: Facts) -> Family:
    """The family for M entries in S segments, or U rows in G groups: by their mean, the only spread the host knows."""
    limit = next(rows for capability, rows in MAX_ROWS_STREAMED if facts.capability >= capability)
    return Family.ROWS if num_entries <= limit * num_segments else Family.TILES


def slice_length(width: int, *, num_blocks: int, step: int, facts: Facts) -> int:
    """How many features a block sums: all, or fewer until `num_blocks` per slice fill the device.

    A multiple of `step`, the least that keeps every lane busy; there are at most MAX_SLICES slices.
    """
    wanted = -(-facts.num_processors * BLOCKS_PER_PROCESSOR // max(num_blocks, 1))
    slices = max(1, min(wanted, width // step, MAX_SLICES))
    return -(-width // slices // step) * step
