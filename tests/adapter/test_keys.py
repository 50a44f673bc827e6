from __future__ import annotations

import pytest

from adapter.header import Header, TensorInfo
from adapter.keys import with_known_names

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def names(*keys: str) -> list[str]:
    tensors = {key: TensorInfo("F32", (1,), 4 * n, 4 * n + 4) for n, key in enumerate(keys)}
    found = with_known_names(Header(tensors, 100, {}))
    assert list(found.tensors.values()) == list(tensors.values()), "each name keeps its tensor"
    return list(found.tensors)


WRITTEN = [
    f"{Q}.lora_A.weight",
    f"{Q}.lora_B.weight",
    f"{Q}.lora_B.bias",
    f"{Q}.lora_magnitude_vector",
    "base_model.model.model.embed_tokens.lora_embedding_A",
    "base_model.model.model.embed_tokens.lora_embedding_B",
    "base_model.model.model.embed_tokens.base_layer.weight",
    "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
    "base_model.model.lm_head.weight",
    "base_model.model.lm_head.modules_to_save.weight",
    "base_model.model.lm_head.original_module.weight",
    "base_model.model.model.norm.weight",
]


def test_what_peft_writes_keeps_its_names() -> None:
    assert names(*WRITTEN) == WRITTEN


@pytest.mark.parametrize("name", ["default", "sft"])
def test_the_name_of_the_adapter_in_a_models_state_is_dropped(name: str) -> None:
    held = [
        f"{Q}.lora_A.{name}.weight",
        f"{Q}.lora_B.{name}.weight",
        f"{Q}.lora_B.{name}.bias",
        f"{Q}.lora_magnitude_vector.{name}.weight",
        f"base_model.model.model.embed_tokens.lora_embedding_A.{name}",
        f"base_model.model.model.embed_tokens.lora_embedding_B.{name}",
        "base_model.model.model.embed_tokens.base_layer.weight",
        f"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.{name}",
        f"base_model.model.lm_head.modules_to_save.{name}.weight",
    ]
    assert names(*held) == WRITTEN[:9]


def test_the_names_of_wrappers_are_dropped_and_added() -> None:
    assert names("base_model.model._orig_mod.lm_head.lora_A.weight") == ["base_model.model.lm_head.lora_A.weight"]
    assert names("model.layers.0.mlp.up_proj.lora_A.weight", "lm_head.weight") == [
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model.lm_head.weight",
    ]


@pytest.mark.parametrize(
    "keys",
    [
        [f"{Q}.lora_A.one.weight", f"{Q}.lora_A.other.weight"],
        [f"{Q}.lora_A.one.weight", f"{Q}.lora_A.weight"],
        [f"{Q}._orig_mod.lora_A.weight", f"{Q}.lora_A.weight"],
    ],
)
def test_two_adapters_in_one_file_keep_their_names_and_so_have_none(keys: list[str]) -> None:
    assert names(*keys) == keys
