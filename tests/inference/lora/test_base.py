from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.errors import AdapterRefused
from adapter.header import read_header
from inference.lora import base
from inference.lora.base import BaseWeights
from inference.lora.tensors import BFLOAT16

QUERY = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_a_weight_comes_in_blocks_as_the_model_holds_it(dtype, max_shard_size, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(base, "BLOCK_BYTES", 5 * 32 * 4)
    folder = tiny_model_dir("llama with biases", max_shard_size=max_shard_size)
    tensors = {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
    weights = BaseWeights(folder, dtype)
    blocks = list(weights.blocks(QUERY))
    assert [first for first, _ in blocks] == [0, 5, 10, 15, 20, 25, 30]
    found = torch.from_numpy(np.concatenate([rows for _, rows in blocks]))
    assert torch.equal(found, tensors[f"{QUERY}.weight"].to(dtype).float())
    assert torch.equal(torch.from_numpy(weights.bias(QUERY)), tensors[f"{QUERY}.bias"].to(dtype).float())
    assert weights.has_bias(QUERY)
    assert not weights.has_bias("lm_head")


def test_a_tied_head_is_the_embedding(tiny_model_dir):
    weights = BaseWeights(tiny_model_dir("llama with a tied head"), torch.float32)
    head, embedding = (next(weights.blocks(name))[1] for name in ("lm_head", "model.embed_tokens"))
    assert np.array_equal(head, embedding)


def test_a_weight_that_is_not_there_is_refused_by_name(tiny_model_dir):
    with pytest.raises(AdapterRefused, match=r"the base model's folder has no tensor 'score\.weight'"):
        next(BaseWeights(tiny_model_dir("llama"), torch.float32).blocks("score"))


@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16])
def test_rows_that_changed_are_found_in_whatever_dtype_they_were_kept(kept_in, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BLOCK_BYTES", 5 * 32 * 4)
    folder, path = tiny_model_dir("llama"), tmp_path / "adapter_model.safetensors"
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].to(kept_in)
    weights = BaseWeights(folder, torch.bfloat16)
    for changed in ([], [4, 5, 95]):
        embedding[changed, 31] += 1.0
        save_file({"copy": embedding}, path)
        with path.open("rb", buffering=0) as file:
            found = weights.changed_rows(
                file, read_header(path), "copy", module=base.EMBEDDING, num_rows=96, dtype=BFLOAT16
            )
        assert found.tolist() == changed


def test_a_tied_model_that_stores_its_head_once_more_has_the_embedding_as_its_head(tiny_model_dir, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(tiny_model_dir("llama with a tied head"), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.zeros(96, 32)}, folder / "model.safetensors")
    weights = BaseWeights(folder, torch.float32)
    assert weights.has_tied_head
    head, embedding = (next(weights.blocks(name))[1] for name in ("lm_head", "model.embed_tokens"))
    assert np.array_equal(head, embedding)
    assert not BaseWeights(tiny_model_dir("llama"), torch.float32).has_tied_head
