"""Adapters through the sites of a model are PEFT's, on every linear layer of every architecture."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from inference.models.llama import Llama
from kernels import reference
from kernels.segments import group
from kernels.site import Site

# PEFT 0.21 asks transformers 5.23 for a property that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTED = [
    "llama",
    "llama with biases",
    "llama with yarn rope",
    "mistral with a window",
    "qwen2",
    "qwen2 with windows",
    "qwen3",
    "qwen3 with biases and a tied head",
]
IDS = [(7 * place * place + 3 * place) % 96 for place in range(19)]


class OneAdapter:
    """A LoraBatch of the reference ops: the rows that `uses` gives slot 0 get one PEFT model's adapter."""

    def __init__(self, model, peft_model, uses):
        weights = dict(peft_model.named_modules())
        self.arena = torch.empty(0)
        self.sites = []
        for shape in model.sites:
            layers = [weights.get(f"base_model.model.{part.module}") for part in shape.parts]
            adapted = [layer if hasattr(layer, "lora_A") else None for layer in layers]
            a_start = self._append([layer.lora_A["default"].weight for layer in adapted if layer])
            b_start = [self._append([layer.lora_B["default"].weight.T]) if layer else 0 for layer in adapted]
            ranks = [layer.r["default"] if layer else 0 for layer in adapted]
            scales = [layer.scaling["default"] if layer else 0.0 for layer in adapted]
            self.sites.append(
                Site(
                    in_features=shape.in_features,
                    columns=shape.columns,
                    a_start=torch.tensor([a_start]),
                    ranks=torch.tensor([ranks], dtype=torch.int32),
                    b_start=torch.tensor([b_start]),
                    scales=torch.tensor([scales]),
                )
            )
        self.segments = group(uses)

    def add(self, site_index, x, y):
        site = self.sites[site_index]
        rank = int(site.ranks.sum())
        if rank > 0:
            s = reference.shrink(x, self.arena, site, self.segments, max_rank=rank)
            reference.expand(s, self.arena, site, self.segments, y)

    def add_tokens(self, site_index, token_ids, y):
        assert not self.sites[site_index].ranks.any(), "expected no adapter on the embedding"

    def merged(self, site_index):
        return None

    def has_whole_rows(self, site_index, num_rows):
        return False

    def replace_logits(self, site_index, x, logits, multiply):
        return logits

    def renorm(self, site_index, h, eps, y):
        assert not self.sites[site_index].ranks.any(), "expected no adapter on a norm"

    def of_logits(self):
        assert not any(site.ranks.any() for site in self.sites[-2:]), "expected no adapter on the head or its norm"

    def _append(self, tensors):
        start = self.arena.numel()
        self.arena = torch.cat([self.arena, *(tensor.detach().flatten() for tensor in tensors)])
        return start


def random_adapter(folder, **settings):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=12, **settings)).eval()
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("name", ADAPTED)
def test_an_adapter_on_every_linear_layer_equals_peft_and_merged_weights(name, tiny_model_dir, tmp_path, paged, close):
    folder, ids = tiny_model_dir(name), IDS
    model, peft_model = Llama.load(folder, "float32"), random_adapter(folder, target_modules=LINEARS)
    uses = [[(0, 1.0)]] * len(ids)
    ours = paged(model).step([("a", ids)], lora=OneAdapter(model, peft_model, uses))
    with torch.inference_mode():
        expected = peft_model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, expected, **close[torch.float32])
    assert not torch.allclose(ours, paged(model).step([("a", ids)]), atol=0.1), "the adapter changes something"

    peft_model.merge_and_unload().save_pretrained(tmp_path)
    merged = paged(Llama.load(tmp_path, "float32")).step([("a", ids)])
    torch.testing.assert_close(ours, merged, **close[torch.float32])


def test_ranks_may_differ_between_the_parts_of_a_fused_projection(tiny_model_dir, paged, close):
    folder, ids = tiny_model_dir("llama"), IDS
    model = Llama.load(folder, "float32")
    settings = {"target_modules": ["q_proj", "v_proj", "up_proj"], "rank_pattern": {"v_proj": 3}, "use_rslora": True}
    peft_model = random_adapter(folder, **settings, layers_to_transform=[0, 2])
    ours = paged(model).step([("a", ids)], lora=OneAdapter(model, peft_model, [[(0, 1.0)]] * len(ids)))
    with torch.inference_mode():
        expected = peft_model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, expected, **close[torch.float32])


def test_a_row_without_an_adapter_keeps_the_base_models_logits_in_a_mixed_batch(tiny_model_dir, paged, close):
    folder, ids = tiny_model_dir("llama"), IDS[:8]
    model, peft_model = Llama.load(folder, "float32"), random_adapter(folder, target_modules=LINEARS)
    adapter = OneAdapter(model, peft_model, [[(0, 1.0)]] * 8 + [[]] * 8)
    mixed = paged(model).step([("adapted", ids), ("base", ids)], lora=adapter)
    torch.testing.assert_close(mixed[8:], paged(model).step([("a", ids)]), **close[torch.float32])
    with torch.inference_mode():
        expected = peft_model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(mixed[:8], expected, **close[torch.float32])
