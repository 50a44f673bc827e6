"""A checkpoint is read whole and exactly, or refused with the reasons."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.errors import BaseModelRefused
from inference.models.config import read_config
from inference.models.llama import Llama
from inference.models.weights import Checkpoint


@pytest.fixture
def changed(tiny_model_dir, tmp_path):
    """Copies a tiny model's folder with its tensors changed: `changed(lambda tensors: tensors.pop(...))`."""

    def make(change, name="llama"):
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model_dir(name), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def refusal(folder):
    with pytest.raises(BaseModelRefused) as refused:
        Llama.load(folder)
    return str(refused.value)


def test_shards_hold_the_same_model_as_one_file(tiny_model_dir, paged, prompt_ids):
    whole, sharded = tiny_model_dir("qwen2"), tiny_model_dir("qwen2", max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    logits = [paged(Llama.load(folder, "float32")).step([("a", prompt_ids(9))]) for folder in (whole, sharded)]
    assert torch.equal(*logits)


def test_a_missing_tensor_is_named_with_its_shape(changed):
    message = refusal(changed(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")))
    assert "model.layers.1.mlp.up_proj.weight: expected [40, 32], found none" in message


def test_a_tensor_that_would_go_unused_is_refused(changed):
    message = refusal(changed(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})))
    assert "model.layers.0.self_attn.q_proj.bias: not a tensor of this architecture" in message


def test_a_tensor_of_another_shape_is_refused(changed):
    message = refusal(changed(lambda tensors: tensors.update({"model.norm.weight": torch.ones(33)})))
    assert "model.norm.weight: expected [32], found [33]" in message


def test_a_tensor_of_another_kind_is_refused(changed):
    message = refusal(changed(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})))
    assert "model.norm.weight: expected one of BF16, F16, F32, found I8" in message


def test_another_models_checkpoint_gives_the_first_reasons_only(changed):
    message = refusal(changed(lambda tensors: [tensors.pop(name) for name in list(tensors)[:-1]]))
    assert message.count("found none") == 20
    assert "more" in message


def test_a_head_stored_beside_a_tied_embedding_is_not_read(changed, tiny_model_dir, paged, prompt_ids):
    name = "llama with a tied head"
    folder = changed(lambda tensors: tensors.update({"lm_head.weight": torch.full((96, 32), torch.nan)}), name)
    logits = [paged(Llama.load(f, "float32")).step([("a", prompt_ids(5))]) for f in (folder, tiny_model_dir(name))]
    assert torch.equal(*logits)


def test_a_file_that_is_no_safetensors_file_is_refused(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir("llama"), tmp_path / "broken")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (None, "expected model.safetensors or model.safetensors.index.json, found neither"),
        ("{", "not an index"),
        ({"weight_map": ["model.safetensors"]}, "not an index"),
        ({"weight_map": {"model.norm.weight": "../other/model.safetensors"}}, "found '../other/model.safetensors'"),
        ({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}, "found 'pytorch_model.bin'"),
        ({"weight_map": {"model.norm.weight": "gone.safetensors"}}, "gone.safetensors: the file is missing"),
    ],
)
def test_an_index_names_files_beside_it(tiny_model_dir, tmp_path, index, expected):
    shutil.copy(tiny_model_dir("llama") / "config.json", tmp_path)
    if index is not None:
        text = index if isinstance(index, str) else json.dumps(index)
        (tmp_path / "model.safetensors.index.json").write_text(text)
    assert expected in refusal(tmp_path)


def test_what_is_taken_is_a_copy_of_the_file(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir("llama"), tmp_path / "copy")
    checkpoint = Checkpoint(folder, read_config(folder))
    taken = checkpoint.take("model.norm.weight", torch.float32)
    expected = taken.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-20_000, 2)
        file.write(bytes(20_000))
    assert torch.equal(taken, expected)
