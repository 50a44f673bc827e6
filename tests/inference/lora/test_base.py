from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import BaseCopy
from inference.lora import base
from inference.lora.base import BaseWeights

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
def test_a_copy_is_equal_in_whatever_dtype_it_was_kept(kept_in, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "BLOCK_BYTES", 5 * 32 * 4)
    folder, path = tiny_model_dir("llama"), tmp_path / "adapter_model.safetensors"
    copy = BaseCopy("model.embed_tokens", "copy", (96, 32))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].to(kept_in)
    weights = BaseWeights(folder, torch.bfloat16)
    save_file({"copy": embedding}, path)
    weights.check_copy(path, read_header(path), copy)
    embedding[95, 31] += 1.0
    save_file({"copy": embedding}, path)
    with pytest.raises(AdapterRefused, match="'copy': expected a copy of the base model's, found one that was changed"):
        weights.check_copy(path, read_header(path), copy)
