"""A base model's folder is described by its shapes and digests, whether in one file or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapter.base_model import describe_base_model
from adapter.errors import BaseModelRefused

CONFIG = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
EMBEDDING = {"model.embed_tokens.weight": ("BF16", [32, 8], bytes(512))}
LAYER = {
    "model.layers.0.self_attn.q_proj.weight": ("BF16", [8, 8], bytes(128)),
    "model.layers.0.self_attn.k_proj.weight": ("BF16", [4, 8], bytes(64)),
    "model.layers.0.self_attn.q_proj.bias": ("BF16", [8], bytes(16)),
    "model.layers.0.input_layernorm.weight": ("BF16", [8], bytes(16)),
}
MODULES = {
    "lm_head": (32, 8),
    "model.embed_tokens": (32, 8),
    "model.layers.0.input_layernorm": (8, 1),
    "model.layers.0.self_attn.k_proj": (4, 8),
    "model.layers.0.self_attn.q_proj": (8, 8),
}


def test_a_single_file_and_shards_have_the_same_modules(tmp_path: Path, write_safetensors: Any) -> None:
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    for folder in (single, sharded):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CONFIG))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "README.md").write_text(folder.name)
    write_safetensors(single / "model.safetensors", EMBEDDING | LAYER)
    write_safetensors(sharded / "model-00001-of-00002.safetensors", EMBEDDING)
    write_safetensors(sharded / "model-00002-of-00002.safetensors", LAYER)
    one, two = describe_base_model(single), describe_base_model(sharded)
    assert one.architecture == "LlamaForCausalLM"
    assert one.modules == two.modules == MODULES
    assert list(one.modules) == sorted(MODULES)
    assert one.config_digest == two.config_digest != ""
    assert one.tokenizer_digest == two.tokenizer_digest != ""
    assert one.weights_digest != two.weights_digest
    assert [file.path for file in one.manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert one.digest == one.manifest.digest


def test_a_head_of_its_own_is_kept(tmp_path: Path, write_safetensors: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(tmp_path / "model.safetensors", EMBEDDING | {"lm_head.weight": ("BF16", [16, 8], bytes(256))})
    description = describe_base_model(tmp_path)
    assert description.modules["lm_head"] == (16, 8)
    assert description.tokenizer_digest == ""


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (None, "config.json: cannot be read"),
        ("[", "expected JSON"),
        ("[]", "expected `architectures`"),
        ("{}", "expected `architectures`"),
        ('{"architectures": [7]}', "expected `architectures`"),
        (json.dumps(CONFIG), "expected two-dimensional weights"),
        (json.dumps({**CONFIG, "x": "y" * 2**20}), "expected at most"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, config: str | None, why: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(BaseModelRefused, match=why):
        describe_base_model(tmp_path)


def test_broken_weights_are_refused(tmp_path: Path, write_safetensors: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    path = write_safetensors(tmp_path / "model.safetensors", EMBEDDING)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BaseModelRefused, match="truncated"):
        describe_base_model(tmp_path)
    write_safetensors(path, EMBEDDING)
    write_safetensors(tmp_path / "again.safetensors", EMBEDDING)
    with pytest.raises(BaseModelRefused, match="in two files"):
        describe_base_model(tmp_path)
