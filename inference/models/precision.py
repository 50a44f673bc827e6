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

    On a processor, "auto" is bfloat16 only where it multiplies that itself (AMX, AVX-512 BF16), and float32 elsewhere,
    as emulated products are several times slower. Decoding is bound by memory, so half the bytes win: with AVX-512 BF16
    alone a step takes 0.7 of float32's time at 1 row, 0.8 at 8, 1.1 at 32, but prefill 1.5 (SmolLM2-135M, Sapphire
    Rapids whose AMX was hidden). float16 becomes float32, which holds all of its values.
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
    feature = _bfloat16_feature()
    if feature is None:
        return Precision(torch.float32, "this processor cannot multiply bfloat16 itself")
    return Precision(torch.bfloat16, f"the weights were published in it and this processor has {feature}")


def _bfloat16_feature() -> str | None:
    """What the processor multiplies bfloat16 with."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 BF16" if torch.cpu._is_avx512_bf16_supported() else None
