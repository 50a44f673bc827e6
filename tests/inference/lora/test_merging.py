"""An adapter merged into the base model: the same answers up to rounding, and nobody else's change by a bit."""

from __future__ import annotations

import asyncio
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter.base_model import read_modules
from inference.lora.base import BaseWeights
from inference.lora.reading import Reader
from inference.models.linear import PackedLinear
from inference.models.llama import Llama

# PEFT 0.21 asks transformers 5.23 for a property that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "all linears": {"target_modules": LINEARS, "rank_pattern": {"v_proj": 3}},
    "some": {"target_modules": ["v_proj", "up_proj"], "use_rslora": True, "layers_to_transform": [0, 2]},
    "dora": {"target_modules": LINEARS, "use_dora": True},
    "lora_bias": {"target_modules": ["q_proj", "down_proj"], "lora_bias": True},
    "ends and norms": {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "modules_to_save": ["model.norm"]},
}
SITES = {"all linears": 12, "some": 4, "dora": 12, "lora_bias": 6, "ends and norms": 3}
NAME = "llama with biases"  # where PEFT can merge a bias


@pytest.fixture
def write_peft(tiny_model_dir, tmp_path):
    """Writes an adapter of random weights by PEFT itself; returns its folder and PEFT's model."""

    def write(folder_name, **settings):
        torch.manual_seed(0)  # for what PEFT itself draws
        base = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir(NAME), dtype=torch.float32, attn_implementation="eager"
        )
        generator = torch.Generator().manual_seed(len(folder_name))
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about merging lora_bias: known
            model = get_peft_model(base, LoraConfig(**{"r": 8, "lora_alpha": 12, **settings})).eval()
            for parameter_name, parameter in model.named_parameters():
                if "magnitude" in parameter_name:
                    parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
                elif "lora_" in parameter_name or "modules_to_save" in parameter_name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            model.save_pretrained(tmp_path / folder_name)
        return tmp_path / folder_name, model

    return write


@pytest.fixture
def make(make_worker, tiny_model_dir):
    """A worker over the model, and what merges an adapter's folder into it."""
    folder = tiny_model_dir(NAME)

    def make(dtype="float32"):
        model = Llama.load(folder, dtype)
        worker = make_worker(model=model, base_folder=folder)
        reader = Reader(
            sites=model.sites,
            modules=read_modules(folder),
            base=BaseWeights(folder, model.dtype),
            dtype=model.dtype,
            check_fits=lambda sizes: None,
        )
        return model, worker, reader

    return make


def parameters_of(model):
    """Every weight of the model's linear layers, as it lies in memory."""
    linears = [linear for layer in model._weights.layers for linear in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    return [linear._linear._weight for linear in linears]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
async def test_merged_is_on_the_fly_and_pefts_own_merge(
    kind, dtype, make, write_peft, files_of, paged, prompt_ids, close
):
    model, worker, reader = make(dtype)
    folder, theirs = write_peft("special", **KINDS[kind])
    lease = await worker.adapters.acquire(files_of(folder))
    merged = reader.merge(files_of(folder), PackedLinear)
    assert len(merged.linears) == SITES[kind]
    ids = prompt_ids(13)
    rows = [(13, [(lease.slot, 1.0)])]
    before = [weight.clone() for weight in map(torch.Tensor.to_dense, parameters_of(model))]
    found = {}
    for name, which in (("on the fly", None), ("merged", merged), ("un-merged", None)):
        worker.bank.merge(which)
        found[name] = paged(model).step([("a", ids)], lora=worker.bank.lora_batch(rows).send("cpu"))
    assert torch.equal(found["un-merged"], found["on the fly"])
    assert all(map(torch.equal, map(torch.Tensor.to_dense, parameters_of(model)), before)), "the originals are kept"
    torch.testing.assert_close(found["merged"], found["on the fly"], **close[model.dtype])
    with torch.inference_mode():
        expected = theirs.merge_and_unload()(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found["merged"], expected, **close[model.dtype])
    lease.release()


async def test_a_merged_weight_is_rounded_once(make, write_peft, files_of):
    _, _, reader = make("bfloat16")
    folder, theirs = write_peft("special", target_modules=["down_proj"])
    packed = {}
    reader.merge(files_of(folder), lambda weight, bias: packed.setdefault(len(packed), (weight, bias)))
    theirs.model.to(torch.float32)
    for layer, (weight, bias) in enumerate(packed.values()):
        linear = theirs.model.model.layers[layer].mlp.down_proj
        base = linear.base_layer.weight.to(torch.bfloat16).float()
        exact = base + linear.scaling["default"] * linear.lora_B["default"].weight @ linear.lora_A["default"].weight
        assert torch.equal(weight, exact.to(torch.bfloat16))
        assert torch.equal(bias, linear.base_layer.bias.to(torch.bfloat16))


async def test_traffic_of_every_kind_is_answered_as_alone_while_one_is_merged_and_after(
    make, write_peft, files_of, prompt_ids
):
    _, worker, reader = make()
    folder, _ = write_peft("special", **KINDS["all linears"])
    other, _ = write_peft("other", **KINDS["dora"])
    kinds = ([(folder, 1.0)], [(other, 1.0)], [], [(folder, 0.5)])
    requests = [(prompt_ids(4 + n, seed=n), kinds[n % 4]) for n in range(12)]
    alone = [await worker.generate(prompt, uses) for prompt, uses in requests]
    merged = reader.merge(files_of(folder), PackedLinear)
    for which in (merged, None):
        await asyncio.wrap_future(worker.engine.run_between_steps(lambda which=which: worker.bank.merge(which)))
        together = await asyncio.gather(*(worker.generate(prompt, uses) for prompt, uses in requests))
        single = [await worker.generate(prompt, uses) for prompt, uses in requests]
        for answers in (together, single):
            for found, expected in zip(answers, alone, strict=True):
                assert [token.token_id for token in found] == [token.token_id for token in expected]
                logprobs = torch.tensor([[token.logprob for token in answer] for answer in (found, expected)])
                torch.testing.assert_close(logprobs[0], logprobs[1], rtol=0, atol=1e-3)


async def test_steps_with_other_rows_do_not_use_the_merged_layers(make, write_peft, files_of):
    _, worker, reader = make()
    folder, _ = write_peft("special", **KINDS["all linears"])
    lease = await worker.adapters.acquire(files_of(folder))
    worker.bank.merge(reader.merge(files_of(folder), PackedLinear))
    mine = (2, [(lease.slot, 1.0)])
    plan = worker.bank.lora_batch([mine, mine])
    assert plan.merged is not None
    assert not any(plan.max_ranks)
    for others in ((1, []), (1, [(lease.slot, 0.5)]), (1, [(lease.slot, 1.0), (lease.slot, 1.0)])):
        assert worker.bank.lora_batch([mine, others]).merged is None
    again = reader.merge(files_of(folder), PackedLinear)
    worker.bank.merge(again)
    assert worker.bank.lora_batch([mine, mine]).key != plan.key, "a captured step never means freed memory"
    lease.release()


async def test_what_merging_costs_is_the_size_of_the_layers(make, write_peft, files_of):
    _, _, reader = make("bfloat16")
    folder, _ = write_peft("special", target_modules=["down_proj"])
    assert reader.merge(files_of(folder), PackedLinear).num_bytes == 3 * 32 * 40 * 2
