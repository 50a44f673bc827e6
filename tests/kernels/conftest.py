"""Arenas, caches and tolerances for the tests of the kernels. Memory that no op may read is poisoned with NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import Site

# What two correct orders of a float32 sum may differ by; else one step for either rounding, of 8 bits or of 11.
TOLERANCES = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (1.6e-2, 1.6e-2), torch.float16: (2e-3, 2e-3)}

GAP = 8  # elements between two extents, the least that keeps every start a multiple of 8


@dataclass(frozen=True)
class Adapters:
    """An arena with the adapters of one site."""

    arena: Tensor
    site: Site

    @property
    def max_rank(self) -> int:
        return int(self.site.ranks.sum(dim=1).max())


@dataclass(frozen=True)
class Paged:
    """A batch of sequences over a paged cache; `arguments` are those of attend."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    arguments: dict[str, object]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Tensor, Tensor, torch.dtype], None]:
    """Equality within the tolerance of the dtype that the inputs had; a NaN equals nothing."""

    def check(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
        rtol, atol = TOLERANCES[dtype]
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)

    return check


@pytest.fixture(scope="session")
def make_adapters() -> Callable[..., Adapters]:
    """Builds adapters from `ranks`, one tuple per slot with a rank per part."""

    def make(
        ranks: Sequence[Sequence[int]], in_features: int, widths: Sequence[int], dtype: torch.dtype, *, gap: int = GAP
    ) -> Adapters:
        pieces, start = [torch.full((gap,), float("nan"))], gap
        a_start, b_start = [], []

        def place(rank: int, width: int) -> int:
            nonlocal start
            here, size = start, rank * width
            pieces.append(torch.randn(size) / width**0.5)
            pieces.append(torch.full((gap + -size % gap,), float("nan")))
            start += size + pieces[-1].numel()
            return here

        for slot in ranks:
            a_start.append(place(sum(slot), in_features))
            b_start.append([place(rank, width) for rank, width in zip(slot, widths, strict=True)])
        columns = [0]
        for width in widths:
            columns.append(columns[-1] + width)
        site = Site(
            in_features=in_features,
            columns=tuple(columns),
            a_start=torch.tensor(a_start),
            ranks=torch.tensor(ranks, dtype=torch.int32),
            b_start=torch.tensor(b_start),
            scales=0.5 + torch.rand(len(ranks), len(widths)),
        )
        return Adapters(torch.cat(pieces).to(dtype), site)

    return make


@pytest.fixture(scope="session")
def make_paged() -> Callable[..., Paged]:
    """Builds sequences from (queries, context) pairs over shuffled blocks."""

    def make(
        sequences: Sequence[tuple[int, int]],
        *,
        heads: tuple[int, int],
        size: int,
        block_size: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> Paged:
        num_heads, num_key_heads = heads
        blocks = [-(-context // block_size) for _, context in sequences]
        free = torch.randperm(sum(blocks) + 2).tolist()
        k_cache = torch.full((len(free), block_size, num_key_heads, size), float("nan"))
        v_cache = k_cache.clone()
        tables = torch.full((len(sequences), max(blocks, default=0) + 1), -1, dtype=torch.int32)
        for b, (_, context) in enumerate(sequences):
            for i in range(blocks[b]):
                block, filled = free.pop(), min(block_size, context - i * block_size)
                tables[b, i] = block
                k_cache[block, :filled] = torch.randn(filled, num_key_heads, size)
                v_cache[block, :filled] = torch.randn(filled, num_key_heads, size)
        starts = torch.tensor([0, *(queries for queries, _ in sequences)]).cumsum(0).int()
        return Paged(
            q=torch.randn(int(starts[-1]), num_heads, size).to(dtype),
            k_cache=k_cache.to(dtype),
            v_cache=v_cache.to(dtype),
            arguments={
                "query_starts": starts,
                "context_lens": torch.tensor([context for _, context in sequences], dtype=torch.int32),
                "block_tables": tables,
                "scale": size**-0.5,
                "window": window,
            },
        )

    return make
