"""What an adapter brings along for the model's two ends, its embedding and its head, whose rows are the vocabulary.

Knows the configuration, the header and the base model's shapes, and reads no data. PEFT writes up to three things for
an end, one on top of the other:

    copy      the weight that training began with, saved because the vocabulary was resized or the end was targeted:
              MODULE.weight, or with .base_layer, .token_adapter.base_layer or .original_module in between
    saved     the whole weight, fully trained (`modules_to_save`): MODULE.weight
    tokens    the rows of some tokens (`trainable_token_indices`): MODULE.token_adapter.trainable_tokens_delta, which
              despite its name takes the place of these rows

Where the base model ties its head to its embedding, a copy and trained tokens of the embedding hold for the head too,
unless the head has its own; a saved embedding does not. Whoever knows whether it does, applies that (see
`inference.lora.rows`). A copy or a saved weight may have another number of rows than the base model's: a vocabulary
with tokens added, or cut to those of the tokenizer.

Source: `set_additional_trainable_modules` (utils/other.py) and `get_peft_model_state_dict` (utils/save_and_load.py) of
PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapter.config import PeftConfig
from adapter.header import Header, shown
from adapter.keys import KEY_PREFIX
from adapter.targets import is_embedding, is_head, saved

COPIES = ("base_layer.", "token_adapter.base_layer.", "original_module.", "")  # between MODULE. and weight
TOKENS = "token_adapter.trainable_tokens_delta"
# The saved weight once more: PEFT 0.21 writes it beside the other where the vocabulary was resized.
SAVED_AGAIN = "modules_to_save.weight"


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Rows of some tokens: the key of the rows [len(token_ids), width], and whose they are, in that order."""

    key: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OwnEnd:
    """What the file holds for an end, by key; each weight is [num_rows, width]. None for what it does not hold."""

    name: str
    num_rows: int
    width: int
    copy_key: str | None
    saved_key: str | None
    tokens: TrainedTokens | None
    again_key: str | None
    """Of the saved weight once more."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the end with the shape that it must have."""
        keys = [key for key in (self.copy_key, self.saved_key, self.again_key) if key is not None]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(keys, (self.num_rows, self.width))
        if self.tokens is not None:
            shapes[self.tokens.key] = (len(self.tokens.token_ids), self.width)
        return shapes


def own_ends(
    config: PeftConfig, header: Header, modules: Mapping[str, tuple[int, int]], reasons: list[str]
) -> dict[str, OwnEnd]:
    """The ends for which the file holds anything, by name, in the order of the base model's modules.

    Adds a reason for each thing that has no one meaning; the shapes are checked by the caller.
    """
    is_saved = {name for names in saved(config, modules).values() for name in names}
    asked = _trained_tokens(config, modules, reasons)
    names = [name for name in modules if is_embedding(name) or is_head(name)]
    found = {name: _own_end(name, name in is_saved, asked, header, modules) for name in names}
    ends = {name: end for name, end in found.items() if end is not None}
    sizes = {name: ends[name].num_rows if name in ends else modules[name][0] for name in names}
    is_resized = any(size != modules[name][0] for name, size in sizes.items())
    # The copy of one end is enough where the model ties them, which only its own configuration tells.
    is_one_copy = len(ends) == 1 and all(end.copy_key is not None for end in ends.values())
    if is_resized and len(set(sizes.values())) > 1 and not is_one_copy:
        reasons.append(differing_sizes(sizes))
    for end in ends.values():
        _check_end(end, reasons)
    return ends


def differing_sizes(sizes: Mapping[str, int]) -> str:
    """The reason to refuse ends of different vocabularies."""
    return f"vocabulary: expected as many rows in the embedding as in the head, found {dict(sizes)}"


def _own_end(
    name: str,
    is_saved: bool,
    asked: Mapping[str, tuple[int, ...]],
    header: Header,
    modules: Mapping[str, tuple[int, int]],
) -> OwnEnd | None:
    prefix, tensors = f"{KEY_PREFIX}{name}.", header.tensors
    saved_key = f"{prefix}weight" if is_saved else None
    copies = [f"{prefix}{part}weight" for part in COPIES]
    copy_key = next((key for key in copies if key in tensors and key != saved_key), None)
    again_key = f"{prefix}{SAVED_AGAIN}" if is_saved and f"{prefix}{SAVED_AGAIN}" in tensors else None
    tokens, token_key = None, f"{prefix}{TOKENS}"
    if name in asked:
        # Where two tied ends train the same tokens, the rows are written once, with the embedding.
        twin = next((one for one, ids in asked.items() if one != name and ids == asked[name]), None)
        is_with_twin = token_key not in tensors and twin is not None and f"{KEY_PREFIX}{twin}.{TOKENS}" in tensors
        tokens = TrainedTokens(f"{KEY_PREFIX}{twin}.{TOKENS}" if is_with_twin else token_key, asked[name])
    elif token_key in tensors and len(ids := set(asked.values())) == 1:
        # A tied head that was resized: PEFT writes the embedding's rows once more.
        tokens = TrainedTokens(token_key, ids.pop())
    if copy_key is None and saved_key is None and tokens is None:
        return None
    num_rows, width = modules[name]
    whole = tensors.get(saved_key or copy_key or "")
    if whole is not None and len(whole.shape) == 2:
        num_rows = whole.shape[0]
    return OwnEnd(name, num_rows, width, copy_key, saved_key, tokens, again_key)


def _trained_tokens(
    config: PeftConfig, modules: Mapping[str, tuple[int, int]], reasons: list[str]
) -> dict[str, tuple[int, ...]]:
    """`trainable_token_indices` by module. PEFT compares ends of names, as in `modules_to_save`."""
    found: dict[str, tuple[int, ...]] = {}
    for entry, token_ids in config.trained_tokens:
        names = [name for name in modules if name.endswith(entry)]
        if len(names) != 1 or not (is_embedding(names[0]) or is_head(names[0])):
            reasons.append(f"trainable_token_indices: expected the embedding or the head, found {shown(entry)}")
        elif names[0] in found:
            reasons.append(f"trainable_token_indices: expected each module once, found {names[0]} twice")
        else:
            found[names[0]] = token_ids
    return found


def _check_end(end: OwnEnd, reasons: list[str]) -> None:
    if end.saved_key is not None and end.tokens is not None:
        reasons.append(f"module {end.name}: expected modules_to_save or trainable_token_indices, found both")
    if end.tokens is not None and max(end.tokens.token_ids) >= end.num_rows:
        reasons.append(
            f"trainable_token_indices: expected tokens below {end.num_rows}, the rows of {end.name}, found "
            f"{max(end.tokens.token_ids)}; an adapter with added tokens must hold the resized weights too"
        )
