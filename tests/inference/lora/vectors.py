"""Gives a loaded slot what few adapters have, by writing to the bank's tables: vectors, norms, the model's two ends."""

from __future__ import annotations

import torch

from inference.lora.bank import Bank

GAIN, GAIN_AND_SHIFT = 1, 3


def add_vectors(bank: Bank, slot: int, *, begin: int) -> None:
    """Gains and shifts at the first layer's sites, as of DoRA, a weight of its own for each norm, and rank 2 at the
    embedding and the head. The arena's elements from `begin` on become random and theirs."""
    bank._arena[begin:] = torch.randn(bank._arena.numel() - begin).div(8).to(bank.dtype)
    sites = list(zip(bank._sites, bank._affines, strict=True))
    for index, (site, affine) in enumerate(sites):
        if site.in_features == 1 or index < 4:
            affine.kinds[slot] = GAIN if site.in_features == 1 else GAIN_AND_SHIFT
            affine.starts[slot] = begin * bank.dtype.itemsize // 4 + 64
            bank._has_vectors[slot, index] = True
        elif index >= len(sites) - 3:
            site.ranks[slot], site.a_start[slot], site.b_start[slot] = 2, begin + 128, begin + 1024
            site.scales[slot], bank._rank_sums[slot, index] = 0.5, 2
