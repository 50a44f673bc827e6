"""Which dtype a model runs in on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference.errors import BaseModelRefused

AUTO = "auto"
SERVED = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """A dtype for weights, activations and the KV cache; `reason` completes the sentence "... because"."""

    dtype: torch.dtype
    reason: str


def choose_precision(asked: str, *, published: str, device: torch.device) -> Precision:
    """The dtype to run in. `asked` is "auto", "bfloat16" or "float32"; `published` is the dtype of the weights.

    On a processor, "auto" is bfloat16 only where tiles (AMX) multiply it: with AVX-512 BF16 alone a product of 8 rows
    or more takes as long as in float32 or up to twice as long (measured with oneDNN 3.12 on a Sapphire Rapids whose
    AMX was hidden), and only single streams would gain. float16 becomes float32, which holds all of its values.
    Raises BaseModelRefused on any other name.
    """
    if asked in SERVED:
        return Precision(SERVED[asked], "it was asked for")
    if asked != AUTO:
        raise BaseModelRefused(f"dtype: expected one of {', '.join([AUTO, *SERVED])}, found {asked!r}")
    if published == "float32":
        return Precision(torch.float32, "the weights were published in it")
    if published == "float16":
        return Precision(torch.float32, "the weights were published in float16 and it holds every value of that")
    if device.type != "cpu":
        return Precision(torch.bfloat16, "the weights were published in it")
    if torch.cpu._is_amx_tile_supported():
        return Precision(torch.bfloat16, "the weights were published in it and this processor has AMX")
    return Precision(
        torch.float32, "this processor has no AMX, without which bfloat16 batches are slower than float32 ones"
    )
