"""DoRA at load: the gain of each output, from its magnitude and the norm that the merged weight has.

    y = m / ‖W + scale·B·A‖ · (W·x + scale·B·A·x) + bias        the norm of each row of a weight [D_out, D_in]

The fraction is all that a step needs. Source: Liu et al. (arXiv 2402.09353); PEFT's tuners/lora/dora.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from adapter.errors import AdapterRefused

Floats = NDArray[np.float32]

# Multiply-adds up to which numpy's OpenBLAS stays on the calling thread. Its own threads would fight the engine's: with
# them a load took ten times as long on a busy machine.
MAX_PRODUCT = 2**18


def gains(
    blocks: Iterable[tuple[int, Floats]], a: Floats, b: Floats, *, scale: float, magnitude: Floats, module: str
) -> Floats:
    """m / ‖W + scale·B·A‖ for each row of W, which comes in `blocks` of rows.

    Shapes: a [R, D_in]; b, transposed as in the arena, [R, D_out]; magnitude and the result [D_out].
    Raises AdapterRefused where a row has the norm 0 or the fraction is too large a number.
    """
    norms = np.empty_like(magnitude)
    scaled = np.ascontiguousarray(np.float32(scale) * b.T)
    step = max(1, MAX_PRODUCT // a.size)
    for first, rows in blocks:
        for row in range(0, len(rows), step):
            part = slice(first + row, first + min(row + step, len(rows)))
            merged = scaled[part] @ a
            merged += rows[row : row + step]
            norms[part] = np.sqrt(np.einsum("ij,ij->i", merged, merged))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = magnitude / norms
    if not np.isfinite(found).all():
        raise AdapterRefused([f"module {module}: expected rows of another norm than 0 for DoRA's magnitude, found one"])
    return found
