"""Which modules of a base model a configuration targets. Knows PEFT's matching rules; does not know tensors.

Source: `check_target_module_exists` and `_maybe_include_all_linear_layers` of PEFT 0.21 (tuners/tuners_utils.py), and
`_set_trainable` (utils/other.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from adapter.config import PeftConfig

# Names by which embeddings and output heads go in the architectures of transformers.
_EMBEDDING = re.compile(r"(?:.*\.)?(?:\w*embed_tokens\w*|\w+_embeddings|embed_positions|wte|wpe)")
_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out)")
_NORM = re.compile(r"(?:.*\.)?\w*norm")
# Qwen3's, over the heads of q and k.
_HEAD_NORM = re.compile(r".*\.[qk]_norm")
# PEFT's pattern for `layers_to_transform` without `layers_pattern`: the first number that is a part of the name.
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


def is_embedding(module: str) -> bool:
    """Whether the module looks up rows instead of multiplying."""
    return _EMBEDDING.fullmatch(module) is not None


def is_head(module: str) -> bool:
    """Whether the module turns features into logits."""
    return _HEAD.fullmatch(module) is not None


def is_norm(module: str) -> bool:
    """Whether the module scales features, each by a weight of its own."""
    return _NORM.fullmatch(module) is not None


def is_head_norm(module: str) -> bool:
    """Whether the module is a norm within each attention head."""
    return _HEAD_NORM.fullmatch(module) is not None


def saved(config: PeftConfig, modules: Iterable[str]) -> dict[str, list[str]]:
    """The base model's modules that each name of `modules_to_save` takes, in their order.

    PEFT compares ends of names, not parts: "norm" is the end of every input_layernorm too.
    """
    names = list(modules)
    return {entry: [name for name in names if name.endswith(entry)] for entry in config.modules_to_save}


def targeted(config: PeftConfig, modules: Iterable[str]) -> list[str]:
    """The targeted ones among the base model's modules, in their order. Raises AdapterRefused for a runaway pattern."""
    return [module for module in modules if _is_targeted(config, module)]


def _is_targeted(config: PeftConfig, module: str) -> bool:
    if config.excluded is not None and config.excluded.matches(module):
        return False
    if config.targets_all_linear:
        # PEFT lists the linear layers by their full names here, so `layers_to_transform` does not narrow them.
        return not is_embedding(module) and not is_head(module) and not is_norm(module)
    if config.targets.expression is not None or module in config.targets.names:
        return config.targets.matches(module)
    return config.targets.matches_suffix(module) and _is_in_layers(config, module)


def _is_in_layers(config: PeftConfig, module: str) -> bool:
    if config.layers is None:
        return True
    if not config.layers_patterns:
        found = _FIRST_INDEX.match(module)
    else:
        tried = (re.match(rf"(?:^|.*?\.){name}\.(?P<index>\d+)\.", module) for name in config.layers_patterns)
        found = next((match for match in tried if match is not None), None)
    return found is not None and int(found["index"]) in config.layers
