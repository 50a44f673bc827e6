"""Keys and values of every position, in blocks. Memory without policy: `blocks` decides who has which block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """One allocation for all L layers: [L, 2, num_blocks, block_size, H_kv, D] in the model's dtype.

    It takes memory as blocks are first written. What a free block holds is unspecified, and nobody reads it.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.block_size = block_size
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads, head_dim)
        self._memory = torch.empty(shape, dtype=dtype, device=device)
        self._layers: list[tuple[Tensor, Tensor]] = [(memory[0], memory[1]) for memory in self._memory]

    def k(self, layer: int) -> Tensor:
        """Keys of one layer, [num_blocks, block_size, H_kv, D]."""
        return self._layers[layer][0]

    def v(self, layer: int) -> Tensor:
        """Values of one layer, [num_blocks, block_size, H_kv, D]."""
        return self._layers[layer][1]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Gives each (from, to) block the contents of the other, in every layer; no block is in two pairs' `to`, and
        none is read after it was written."""
        if copies:
            sources, targets = torch.tensor(copies, device=self._memory.device).unbind(1)
            self._memory[:, :, targets] = self._memory[:, :, sources]

    @property
    def device(self) -> torch.device:
        return self._memory.device

    @property
    def num_bytes(self) -> int:
        return self._memory.numel() * self._memory.itemsize


def block_bytes(*, num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """What one block takes over all layers: divides a budget of bytes into a number of blocks."""
    return num_layers * 2 * block_size * num_kv_heads * head_dim * dtype.itemsize
