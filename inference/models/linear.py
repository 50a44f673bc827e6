"""Linear layers whose weights are packed once for the processor, and the same with adapters on top."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from inference.errors import InvalidRequest
from inference.models.sites import SiteShape

# Rows of every product of a TiledLinear: what one tile register of AMX holds, and little to waste on a single row.
ROW_TILE = 16
PACKED_FOR_ROWS = 32  # fits 1 to 1024 rows within noise; a layout asked for 1 row is 1.5 times slower at 32


Multiply = Callable[[Tensor, Tensor], Tensor]
"""x [T, D_in] and a weight [D_out, D_in] to x · weightᵀ."""


class LoraBatch(Protocol):
    """The adapters of one batch, by row."""

    def merged(self, site_index: int) -> Callable[[Tensor], Tensor] | None:
        """What takes the place of the base model's product and its adapters at one site, if one adapter is merged."""

    def add(self, site_index: int, x: Tensor, y: Tensor) -> None:
        """y [T, D_out] += each row's adapters applied to x [T, D_in], at one site. Mutates: y."""

    def add_tokens(self, site_index: int, token_ids: Tensor, y: Tensor) -> None:
        """`add` at the embedding, where a row's features are its token: int64 [T], beyond the base model's vocabulary
        where the row's adapter adds tokens. Rows of an adapter's own take the place of y's. Mutates: y."""

    def has_whole_rows(self, site_index: int, num_rows: int) -> bool:
        """Whether no row needs the base model's weight at this site, because its adapter brings all of its own."""

    def replace_logits(self, site_index: int, x: Tensor, logits: Tensor, multiply: Multiply) -> Tensor:
        """float32 [T, V'] from [T, V]: the rows' logits where adapters bring rows of the head, for x [T, D].

        `multiply` is the head's own way to a product. V' is the largest vocabulary among them; a token that a row does
        not know has the logit -inf. Mutates: logits.
        """

    def renorm(self, site_index: int, h: Tensor, eps: float, y: Tensor) -> None:
        """y [T, D] = w · h / rms(h) in the rows whose adapter has a norm's weight w of its own. Mutates: y."""

    def of_logits(self) -> LoraBatch | None:
        """The adapters of the rows whose logits are wanted, in their order; None if none of them has one."""


class PackedLinear:
    """y = x · Wᵀ + bias, W in oneDNN's own layout where the processor is the device; the plain W is not kept.

    Shapes: weight [D_out, D_in], bias [D_out] or None, x [T, D_in]; returns a new y [T, D_out] in x's dtype.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._is_packed = weight.device.type == "cpu" and can_pack(weight.dtype)
        self._weight: Tensor = (
            torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS) if self._is_packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self._is_packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
            return y
        return functional.linear(x, self._weight, self._bias)

    @staticmethod
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        """x · weightᵀ for a weight that is not packed, with what is promised of this layer's own product."""
        return functional.linear(x, weight)


class TiledLinear(PackedLinear):
    """The same product, whose rows are the same bits whatever other rows are computed with them.

    How a product is summed may depend on its number of rows, so all of them have ROW_TILE; see `in_tiles`. Raises
    InvalidRequest where a row's bits depend on its place even so.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        row = torch.linspace(-1.0, 1.0, self.in_features).to(weight)
        rows = super().__call__(row.repeat(ROW_TILE, 1))
        if not torch.equal(rows, rows[:1].expand_as(rows)):
            raise InvalidRequest(
                f"deterministic: expected equal rows of a product [{self.out_features}, {self.in_features}] on this "
                "processor, found rows that depend on their place",
                field="deterministic",
            )

    def __call__(self, x: Tensor) -> Tensor:
        return in_tiles(super().__call__, x)

    @staticmethod
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        return in_tiles(lambda tile: functional.linear(tile, weight), x)


def in_tiles(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """product(x) in tiles of ROW_TILE rows, the last one padded with zeros.

    Shapes: x [T, D_in], the product [T', D_out] for T' rows; returns a new [T, D_out].
    """
    count = x.shape[0]
    padded = functional.pad(x, (0, 0, 0, -count % ROW_TILE))
    tiles = [product(tile) for tile in torch.split(padded, ROW_TILE)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles))[:count]


class LoraLinear:
    """A fused projection at one site: the base model's product, then the adapters of the batch added in place."""

    def __init__(self, linear: PackedLinear, *, site_index: int, shape: SiteShape) -> None:
        assert (linear.in_features, linear.out_features) == (shape.in_features, shape.out_features), shape
        self._linear = linear
        self._site_index = site_index

    def __call__(self, x: Tensor, lora: LoraBatch | None) -> Tensor:
        if lora is None:
            return self._linear(x)
        if (merged := lora.merged(self._site_index)) is not None:
            return merged(x)
        y = self._linear(x)
        lora.add(self._site_index, x, y)
        return y


class LoraHead:
    """The projection to logits at one site: of the base model and adapters on top, or of an adapter's own rows."""

    def __init__(self, linear: PackedLinear, *, site_index: int, shape: SiteShape) -> None:
        self._linear = LoraLinear(linear, site_index=site_index, shape=shape)
        self._multiply = linear.multiply
        self._site_index = site_index
        self._vocab_size = shape.out_features

    def __call__(self, x: Tensor, lora: LoraBatch | None) -> Tensor:
        """Shapes: x [T, D]; returns float32 [T, V], or wider where an adapter adds tokens."""
        if lora is None:
            return self._linear(x, None).float()
        if lora.has_whole_rows(self._site_index, len(x)):
            logits = x.new_empty((len(x), self._vocab_size), dtype=torch.float32)
        else:
            logits = self._linear(x, lora).float()
        return lora.replace_logits(self._site_index, x, logits, self._multiply)


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of `dtype` for oneDNN: tried once on a small product, as no build flag tells.

    The ops are private to torch, so a later release may lack them; `torch.nn.functional.linear` then does the work.
    """
    weight, x = torch.ones(16, 16, dtype=dtype), torch.ones(2, 16, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return bool((y == 16).all())
