"""Which modules of a base model a configuration targets. Knows PEFT's matching rules; does not know tensors.

Source: `check_target_module_exists` and `_maybe_include_all_linear_layers` of PEFT 0.21 (tuners/tuners_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from adapter.config import PeftConfig

# Names by which embeddings and output heads go in the architectures of transformers.
_EMBEDDING = re.compile(r"(?:.*\.)?(?:\w*embed_tokens\w*|\w+_embeddings|embed_positions|wte|wpe)")
_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out)")
# PEFT's pattern for `layers_to_transform` without `layers_pattern`: the first number that is a part of the name.
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")


def is_embedding(module: str) -> bool:
    """Whether the module looks up rows instead of multiplying."""
    return _EMBEDDING.fullmatch(module) is not None


def is_head(module: str) -> bool:
    """Whether the module turns features into logits."""
    return _HEAD.fullmatch(module) is not None


def targeted(config: PeftConfig, modules: Iterable[str]) -> list[str]:
    """The targeted ones among the base model's modules, in their order. Raises AdapterRefused for a runaway pattern."""
    return [module for module in modules if _is_targeted(config, module)]


def _is_targeted(config: PeftConfig, module: str) -> bool:
    if config.excluded is not None and config.excluded.matches(module):
        return False
    if config.targets_all_linear:
        # PEFT lists the linear layers by their full names here, so `layers_to_transform` does not narrow them.
        return not is_embedding(module) and not is_head(module)
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
