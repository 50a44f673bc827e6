"""The norms between the parts of a layer, and the same with an adapter's own weight for the rows that bring one."""

from __future__ import annotations

from torch import Tensor

import kernels
from inference.models.linear import LoraBatch


class LoraNorm:
    """y = weight · h / rms(h), h = residual + x where a residual is given, at one site of an adapter's own weights."""

    def __init__(self, weight: Tensor, eps: float, *, site_index: int) -> None:
        self._weight = weight
        self._eps = eps
        self._site_index = site_index

    def __call__(self, x: Tensor, lora: LoraBatch | None, residual: Tensor | None = None) -> Tensor:
        """Shapes: x, residual and the result [T, D]. Mutates: residual, which becomes h."""
        y = kernels.rms_norm(x, self._weight, self._eps, residual)
        if lora is not None:
            lora.renorm(self._site_index, x if residual is None else residual, self._eps, y)
        return y
