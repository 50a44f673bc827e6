"""Our choice of modules is PEFT's, whatever the rules in the configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapter.config import parse_config
from adapter.targets import is_embedding, is_head, targeted

MODULES = [
    "lm_head",
    "model.embed_tokens",
    *(
        f"model.layers.{layer}.{module}"
        for layer in (0, 1, 2, 10, 11)
        for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "mlp.experts.1.up_proj")
    ),
    "model.vision.blocks.1.attn.q_proj",
]


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.down_proj"]},
        {"target_modules": ["proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "nothing_like_it"]},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": "q_proj"},
        {"target_modules": r"model\.layers\.\d\..*(q|down)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 10]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "model.layers.0.mlp.down_proj"], "layers_to_transform": [2]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["blocks", "h"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1], "layers_pattern": ["experts"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj", "attn.q_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*vision.*"},
        {"target_modules": r".*_proj", "exclude_modules": ["up_proj"]},
    ],
)
def test_the_targets_are_those_of_peft(choice: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    theirs = LoraConfig(**choice)
    expected = []
    for name in MODULES:
        answer = check_target_module_exists(theirs, name)
        if answer and not isinstance(answer, _ExcludedModule):
            expected.append(name)
    ours = parse_config(json.dumps({"peft_type": "LORA", **choice}).encode())
    assert targeted(ours, MODULES) == expected


def test_all_linear_leaves_out_embeddings_and_the_head() -> None:
    ours = parse_config(b'{"peft_type": "LORA", "target_modules": "All-Linear", "exclude_modules": ["up_proj"]}')
    assert targeted(ours, MODULES) == [
        name for name in MODULES if name.endswith("_proj") and not name.endswith("up_proj")
    ]


def test_embeddings_and_heads_are_known_by_their_names() -> None:
    embeddings = [
        "model.embed_tokens",
        "embeddings.word_embeddings",
        "transformer.wte",
        "model.decoder.embed_positions",
    ]
    assert all(is_embedding(name) for name in embeddings)
    assert not any(is_embedding(name) for name in ("lm_head", "model.layers.0.self_attn.q_proj"))
    assert is_head("lm_head")
    assert is_head("model.lm_head")
    assert not is_head("model.layers.0.mlp.down_proj")
