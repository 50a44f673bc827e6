"""What adapters' own rows of the embedding and the head do to a step: plain torch, adapter by adapter.

Few adapters bring rows along, and each has a matrix product or a look-up of its own to be computed, so there is nothing
to share between them and no kernel. Nor are such steps captured: how many there are differs from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.models.linear import Multiply


@dataclass(frozen=True, slots=True)
class SlotRows:
    """A slot's own rows at one site, as parts of the arena: weight [K, D] of the tokens of token_ids.

    token_ids: int32 [K] ascending; None where they are all from 0. vocab_size: tokens beyond are never answered.
    """

    site_index: int
    vocab_size: int
    token_ids: Tensor | None
    weight: Tensor

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the base model's weight is left."""
        return self.token_ids is None


@dataclass(frozen=True, slots=True)
class RowsUse:
    """Own rows and the rows of the batch that use them, int64 [T'], ascending."""

    own: SlotRows
    rows: NDArray[np.int64]

    def of_logits(self, logit_rows: NDArray[np.int64]) -> RowsUse:
        """The same among the rows whose logits are wanted, numbered anew."""
        return RowsUse(self.own, np.flatnonzero(np.isin(logit_rows, self.rows)))


def replace_embedded(use: RowsUse, token_ids: Tensor, y: Tensor) -> None:
    """y[t] = the slot's own row of token t, where it has one, for the rows of the batch that use the slot.

    Shapes: token_ids int64 [T], y [T, D]. Mutates: y.
    """
    own, rows = use.own, _sent(use.rows, y.device)
    wanted = token_ids[rows]
    if own.token_ids is None:
        y[rows] = own.weight[wanted]
    elif own.token_ids.numel():
        place = torch.searchsorted(own.token_ids, wanted.int()).clamp(max=own.token_ids.numel() - 1)
        is_own = own.token_ids[place] == wanted
        y[rows] = torch.where(is_own[:, None], own.weight[place], y[rows])


def replace_logits(use: RowsUse, x: Tensor, logits: Tensor, multiply: Multiply) -> None:
    """logits[t] = the slot's own rows · x[t], for its tokens, and -inf for those that it does not know.

    Shapes: x [T, D]; logits float32 [T, at least the slot's vocabulary]. Mutates: logits.
    """
    own, rows = use.own, _sent(use.rows, x.device)
    found = multiply(x[rows], own.weight).float()  # rounded to the model's dtype, as the base model's are
    mine = logits[rows]
    if own.token_ids is None:
        mine[:, : found.shape[1]] = found
    else:
        mine[:, own.token_ids.long()] = found
    mine[:, own.vocab_size :] = -torch.inf
    logits[rows] = mine


def _sent(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device, non_blocking=True)
