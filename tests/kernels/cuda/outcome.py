"""What a batch came to, and what makes it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Segments, Site

SAME_BITS = 0.97  # of y, at least: float32 sums in another order seldom round to another element


@dataclass(frozen=True)
class Outcome:
    """What the kernels made of a batch, and what the definition makes of it."""

    s: Tensor
    y: Tensor
    y_before: Tensor
    s_expected: Tensor
    y_expected: Tensor
    segments: Segments


def assert_right(outcome: Outcome, site: Site, assert_close: Callable[[Tensor, Tensor, torch.dtype], None]) -> None:
    """Equal to the definition where it is defined, and every other bit as it was."""
    segments, y, dtype = outcome.segments, outcome.y, outcome.y.dtype
    is_touched = torch.zeros_like(y, dtype=torch.bool)
    for m, segment in enumerate(segments.segment_of.tolist()):
        ranks = site.ranks[int(segments.slots[segment])].tolist()
        rank = sum(ranks)
        assert_close(outcome.s[:, m, :rank].sum(dim=0), outcome.s_expected[m, :rank], torch.float32)
        assert outcome.s[:, m, rank:].isnan().all(), f"entry {m}: written past its rank"
        for part, part_rank in enumerate(ranks):
            if part_rank:
                is_touched[int(segments.rows[m]), site.columns[part] : site.columns[part + 1]] = True
    assert_close(y, outcome.y_expected, dtype)
    assert torch.equal(_bits(y)[~is_touched], _bits(outcome.y_before)[~is_touched]), "an untouched element changed"
    same = _bits(y)[is_touched] == _bits(outcome.y_expected)[is_touched]
    assert same.float().mean() >= SAME_BITS, f"only {same.float().mean():.3f} of the elements have the same bits"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16)
