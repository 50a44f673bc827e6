"""Folders that PEFT itself wrote: what it would apply is what we plan, and what we cannot serve is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

from adapter.base_model import describe_base_model
from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import AdapterPlan, plan


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_model().save_pretrained(folder)
    return describe_base_model(folder).modules


def save(folder: Path, **choices: Any) -> Any:
    """Saves an adapter with these choices; returns PEFT's model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", **choices))
        model.save_pretrained(str(folder))
    return model


def plan_of(folder: Path, modules: dict[str, tuple[int, int]]) -> AdapterPlan:
    return plan(read_config(folder / "adapter_config.json"), read_header(folder / "adapter_model.safetensors"), modules)


@pytest.mark.parametrize(
    "choices",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "r": 2, "lora_alpha": 3},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"], "use_rslora": True},
        {"target_modules": r"model\.layers\.[12]\.(self_attn\.(q|k)|mlp\.up)_proj"},
        {"target_modules": ["o_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": ["gate_proj"], "layers_to_transform": 1},
        {
            "target_modules": ["q_proj", "k_proj"],
            "r": 4,
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 8, "k_proj": 2},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 40, "k_proj": 3},
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "bias": "none", "fan_in_fan_out": False},
        {"target_modules": ["q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "bias": "lora_only"},
        {"target_modules": ["q_proj"], "init_lora_weights": "mica", "r": 2},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear", "use_dora": True},
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"target_modules": r".*(embed_tokens|k_proj)", "use_rslora": True},
        {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens", "k_proj"], "ensure_weight_tying": True},
        {"target_modules": ["lm_head", "k_proj"], "ensure_weight_tying": True},
    ],
)
def test_the_plan_is_what_peft_applies(
    tmp_path: Path, modules: dict[str, tuple[int, int]], choices: dict[str, Any]
) -> None:
    theirs = save(tmp_path, **choices)
    expected: dict[str, Any] = {
        name.removeprefix("base_model.model."): (layer.r["default"], pytest.approx(layer.scaling["default"]))
        for name, layer in theirs.named_modules()
        if isinstance(layer, LoraLayer)
    }
    found = plan_of(tmp_path, modules)
    actual: dict[str, Any] = {module.name: (module.rank, module.scale) for module in found.modules}
    assert actual == expected


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["k_proj"]}, "full training of other modules"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "keeps the base model's weights"),
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 3]]}, "layer replication"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tmp_path: Path, modules: dict[str, tuple[int, int]], choices: dict[str, Any], words: str
) -> None:
    save(tmp_path, **choices)
    with pytest.raises(AdapterRefused) as caught:
        plan_of(tmp_path, modules)
    assert any(words in reason for reason in caught.value.reasons), caught.value.reasons


def test_saved_norms_are_planned_as_peft_wrote_them(tmp_path: Path, modules: dict[str, tuple[int, int]]) -> None:
    save(tmp_path, target_modules=["q_proj"], modules_to_save=["norm"])
    found = plan_of(tmp_path, modules)
    assert len(found.norms) == 7
    assert {norm.name.rpartition(".")[2] for norm in found.norms} == {
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }


@pytest.mark.parametrize(
    ("choices", "held"),
    [
        ({"modules_to_save": ["lm_head"]}, {"lm_head": "saved"}),
        ({"modules_to_save": ["embed_tokens"]}, {"model.embed_tokens": "saved"}),
        (
            {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
            {"model.embed_tokens": "saved", "lm_head": "copy"},
        ),
        ({"trainable_token_indices": [1, 2]}, {"model.embed_tokens": "tokens (1, 2)"}),
        ({"trainable_token_indices": {"lm_head": [3]}}, {"lm_head": "tokens (3,)"}),
        (
            {"trainable_token_indices": {"lm_head": [1], "embed_tokens": [1]}},
            {"model.embed_tokens": "tokens (1,)", "lm_head": "tokens (1,)"},
        ),
        (
            {"trainable_token_indices": {"lm_head": [1], "embed_tokens": [2]}},
            {"model.embed_tokens": "tokens (2,)", "lm_head": "tokens (1,)"},
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, {"model.embed_tokens": "copy"}),
    ],
)
def test_the_ends_are_planned_as_peft_wrote_them(
    tmp_path: Path, modules: dict[str, tuple[int, int]], choices: dict[str, Any], held: dict[str, str]
) -> None:
    save(tmp_path, **{"target_modules": ["q_proj"], **choices})
    found = {}
    for end in plan_of(tmp_path, modules).ends:
        assert (end.num_rows, end.width) == (32, 16)
        words = [word for word, key in (("saved", end.saved_key), ("copy", end.copy_key)) if key]
        found[end.name] = " ".join(words + ([f"tokens {end.tokens.token_ids}"] if end.tokens else []))
    assert found == held


def test_an_adapter_for_another_size_is_refused(tmp_path: Path, modules: dict[str, tuple[int, int]]) -> None:
    save(tmp_path, target_modules=["q_proj"])
    wider = {name: (rows * 2, columns) for name, (rows, columns) in modules.items()}
    with pytest.raises(AdapterRefused, match=r"expected \[32, 8\], found \[16, 8\]"):
        plan_of(tmp_path, wider)


def test_a_configuration_that_forgot_its_layers_is_refused(tmp_path: Path, modules: dict[str, tuple[int, int]]) -> None:
    save(tmp_path, target_modules=["q_proj"], layers_to_transform=[0])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layers_to_transform": None}))
    with pytest.raises(AdapterRefused, match="found no such tensor"):
        plan_of(tmp_path, modules)
