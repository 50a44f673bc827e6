"""The names that tensors have in a file, brought to those that PEFT's own `save_pretrained` writes.

    base_model.model.MODULE.lora_A.weight          what PEFT writes, and the rest of this package reads
    base_model.model.MODULE.lora_A.default.weight  the state of a model as it trains, saved without PEFT's help
    base_model.model._orig_mod.MODULE.lora_A.…     the same of a model that torch.compile had wrapped
    MODULE.lora_A.weight                           the base model's own names, without PEFT's two wrappers

Only names change, and only where each has one meaning: a file in which two would become one is left as it is, and so
refused for the names that it has.
"""

from __future__ import annotations

import dataclasses
import re

from adapter.header import Header

KEY_PREFIX = "base_model.model."
COMPILED = "_orig_mod."
# What PEFT puts the adapter's own name behind, and drops it again when it saves.
_NAMED = re.compile(
    r"(?P<before>.*\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save|trainable_tokens_delta))"
    r"\.(?P<name>[^.]+)(?P<after>\.weight|\.bias)?"
)


def with_known_names(header: Header) -> Header:
    """The same header under PEFT's names, as far as there is one adapter in it."""
    renamed = {key: key.replace(COMPILED, "") for key in header.tensors}
    if not any(key.startswith(KEY_PREFIX) for key in renamed.values()):
        renamed = {key: f"{KEY_PREFIX}{name}" for key, name in renamed.items()}
    matches = {key: match for key, name in renamed.items() if (match := _named(name)) is not None}
    if len({match["name"] for match in matches.values()}) == 1:
        renamed |= {key: _without_name(match) for key, match in matches.items()}
    if len(set(renamed.values())) < len(renamed):
        return header
    return dataclasses.replace(header, tensors={renamed[key]: info for key, info in header.tensors.items()})


def _named(key: str) -> re.Match[str] | None:
    match = _NAMED.fullmatch(key)
    return None if match is None or match["name"] in ("weight", "bias") else match


def _without_name(match: re.Match[str]) -> str:
    before, after = match["before"], match["after"] or ""
    if before.endswith(".lora_magnitude_vector"):
        return before  # which has no .weight in a file, and one in a model
    if before.endswith(".modules_to_save"):
        return before.removesuffix(".modules_to_save") + after
    return before + after
