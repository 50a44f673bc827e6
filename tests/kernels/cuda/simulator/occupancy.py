"""How many threads of a kernel fit a processor at once, by calculation from what ptxas gave it.

Source: the CUDA C++ programming guide, "Compute capabilities", table of technical specifications.
"""

from __future__ import annotations

from tests.kernels.cuda.simulator.nvrtc import Resources

REGISTERS, MAX_WARPS, MAX_BLOCKS, WARP = 65536, 64, 32, 32
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
RESERVED_BYTES = 1024  # of shared memory, by the system for each block


def blocks_per_processor(
    resources: Resources, *, num_threads: int, capability: int, dynamic_shared_bytes: int = 0
) -> int:
    warps = -(-num_threads // WARP)
    registers = -(-resources.registers // 8) * 8 * WARP * warps  # given out 256 at a time
    shared = resources.shared_bytes + dynamic_shared_bytes + RESERVED_BYTES
    return min(REGISTERS // registers, MAX_WARPS // warps, SHARED_BYTES[capability] // shared, MAX_BLOCKS)
