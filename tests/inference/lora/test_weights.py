from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter.config import read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import plan
from inference.lora.base import BaseWeights
from inference.lora.weights import ALIGNMENT, lay_out, read_slab

BASE = BaseWeights(Path("no-folder"), torch.float32)
RANKS = {(0, "q"): 3, (0, "v"): 5, (0, "down"): 2, (1, "k"): 1, (1, "gate"): 7, (1, "up"): 1, (1, "o"): 4}


def open_adapter(folder, modules, sites, dtype=torch.float32):
    header = read_header(folder / "adapter_model.safetensors")
    planned = plan(read_config(folder / "adapter_config.json"), header, modules)
    return header, lay_out(planned, sites, dtype)


def test_every_rank_row_is_where_the_layout_says_and_b_is_transposed(write_adapter, modules, sites):
    folder = write_adapter("a", modules, RANKS)
    header, layout = open_adapter(folder, modules, sites)
    slab = read_slab(folder / "adapter_model.safetensors", header, layout, torch.float32, base=BASE)
    tensors = load_file(folder / "adapter_model.safetensors")
    seen = torch.zeros(layout.num_elements, dtype=torch.int32)
    part = 0
    for index, site in enumerate(sites):
        a_start = int(layout.a_start[index])
        for one in site.parts:
            rank, b_start = int(layout.ranks[part]), int(layout.b_start[part])
            if rank:
                a = tensors[f"base_model.model.{one.module}.lora_A.weight"]
                b = tensors[f"base_model.model.{one.module}.lora_B.weight"]
                assert torch.equal(slab[a_start : a_start + a.numel()].view_as(a), a)
                assert torch.equal(slab[b_start : b_start + b.numel()].view(rank, one.width), b.T)
                assert layout.scales[part] == np.float32(8 / rank)
                seen[a_start : a_start + a.numel()] += 1
                seen[b_start : b_start + b.numel()] += 1
                a_start += a.numel()
            part += 1
    assert int(seen.max()) == 1, "two tensors overlap"
    assert not slab[seen == 0].any(), "the gaps are zero"


def test_nothing_is_padded_but_starts_are_aligned(write_adapter, modules, sites):
    folder = write_adapter("a", modules, RANKS)
    _, layout = open_adapter(folder, modules, sites)
    numbers = sum(place.module.rank * (place.module.in_features + place.module.out_features) for place in layout.places)
    assert numbers <= layout.num_elements < numbers + 2 * ALIGNMENT * len(layout.places)
    used = layout.ranks > 0
    assert not (layout.b_start[used] % ALIGNMENT).any()
    assert not (layout.a_start % ALIGNMENT).any()


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_rounded_as_torch_rounds_them(write_adapter, modules, sites, source, target):
    folder = write_adapter("a", modules, {"q": 8}, dtype=source, seed=3)
    header, layout = open_adapter(folder, modules, sites, target)
    slab = read_slab(folder / "adapter_model.safetensors", header, layout, target, base=BASE)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert slab.dtype is target
    for place in layout.places:
        a = tensors[place.module.a_key].to(target).flatten()
        b = tensors[place.module.b_key].to(target).T.flatten()
        assert torch.equal(slab[place.a_start : place.a_start + a.numel()], a)
        assert torch.equal(slab[place.b_start : place.b_start + b.numel()], b)


def test_a_number_too_large_for_the_models_dtype_is_refused_by_name(write_adapter, modules, sites):
    folder = write_adapter("a", modules, {(0, "q"): 1})
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[key][0, 0] = 3.4e38
    save_file(tensors, path)
    header, layout = open_adapter(folder, modules, sites)
    assert read_slab(path, header, layout, torch.float32, base=BASE).max() == torch.tensor(3.4e38)
    with pytest.raises(AdapterRefused, match=r"q_proj\.lora_A.*bfloat16 can hold"):
        read_slab(path, header, layout, torch.bfloat16, base=BASE)


def test_a_file_that_shrank_is_refused(write_adapter, modules, sites):
    folder = write_adapter("a", modules, {"q": 4})
    path = folder / "adapter_model.safetensors"
    header, layout = open_adapter(folder, modules, sites)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AdapterRefused, match="5 more bytes"):
        read_slab(path, header, layout, torch.float32, base=BASE)


def test_a_module_where_no_site_is_is_refused(write_adapter, modules, sites):
    folder = write_adapter("a", modules, {"q": 4, "down": 4})
    header = read_header(folder / "adapter_model.safetensors")
    planned = plan(read_config(folder / "adapter_config.json"), header, modules)
    with pytest.raises(AdapterRefused, match=r"layers\.0\.mlp\.down_proj"):
        lay_out(planned, [site for site in sites if not site.name.endswith("down")], torch.float32)
