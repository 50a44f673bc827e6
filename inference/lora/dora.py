"""DoRA at load: the gain of each output, from its magnitude and the norm that the merged weight has.

    y = m / ‖W + scale·B·A‖ · (W·x + scale·B·A·x) + bias        the norm of each row of a weight [D_out, D_in]

The fraction is all that a step needs. An embedding W [V, D] is looked up by rows, so its outputs are its columns, and
the norms are those of the columns of W + scale·(B·A)ᵀ.
Source: Liu et al. (arXiv 2402.09353); PEFT's tuners/lora/dora.py.
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
    return _divide(magnitude, norms, module)


def embedding_gains(
    blocks: Iterable[tuple[int, Floats]], a: Floats, b: Floats, *, scale: float, magnitude: Floats, module: str
) -> Floats:
    """`gains` of an embedding: m / ‖W + scale·(B·A)ᵀ‖ for each column of W [V, D], which comes in `blocks` of rows.

    Shapes: a [R, V]; b, transposed as in the arena, [R, D]; magnitude and the result [D]. Raises as gains.
    """
    squares = np.zeros(b.shape[1], np.float64)  # of as many numbers as tokens, where float32 would lose digits
    step = max(1, MAX_PRODUCT // b.size)
    for first, rows in blocks:
        for row in range(0, len(rows), step):
            part = rows[row : row + step]
            columns = np.ascontiguousarray(a[:, first + row : first + row + len(part)].T)
            merged = (np.float32(scale) * columns) @ b
            merged += part
            squares += np.einsum("ij,ij->j", merged, merged)
    return _divide(magnitude, np.sqrt(squares).astype(np.float32), module)


def _divide(magnitude: Floats, norms: Floats, module: str) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = magnitude / norms
    if not np.isfinite(found).all():
        raise AdapterRefused([f"module {module}: expected outputs of another norm than 0 for DoRA, found one"])
    return found
