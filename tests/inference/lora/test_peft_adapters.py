"""Folders that PEFT wrote, loaded and served: the logits are PEFT's and those of merged weights, whoever is beside.

What is beyond plain LoRA is loaded beside it into one bank, and every batch mixes it with plain rows and base rows.
"""

from __future__ import annotations

import asyncio
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter.base_model import describe_base_model
from inference.errors import AdapterLoadFailed, InvalidRequest
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import HostCache
from inference.lora.lease import check_composition
from inference.lora.loader import Adapters
from inference.lora.reading import Reader
from inference.lora.slots import Slots
from inference.models.llama import Llama

# PEFT 0.21 asks transformers 5.23 for a property that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CAPACITY = 1 << 20
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARCHITECTURES = ["llama", "llama with a tied head", "llama with biases", "qwen2", "qwen3 with biases and a tied head"]
FEATURES = {
    "dora": {"target_modules": LINEARS, "use_dora": True},
    "dora on some": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"v_proj": 3},
        "layers_to_transform": [0, 2],
    },
    "lora_bias": {"target_modules": LINEARS, "lora_bias": True},
    "patterns": {
        "target_modules": "all-linear",
        "exclude_modules": r".*\.1\.mlp\..*",
        "rank_pattern": {r"layers\.[01]\.self_attn\.q_proj": 5, "down_proj": 1},
        "alpha_pattern": {r"^model\.layers\.2\..*": 3, "o_proj": 40},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"], "r": 3},
    "saved norms": {"target_modules": ["q_proj"], "modules_to_save": ["layernorm", "model.norm"]},
    "a saved norm": {"target_modules": ["o_proj"], "modules_to_save": ["layers.1.input_layernorm"]},
    "everything": {
        "target_modules": [*LINEARS, "lm_head"],
        "use_dora": True,
        "modules_to_save": ["model.norm", "post_attention_layernorm"],
    },
    "dora on the embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True, "r": 5},
    "tied ends": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "dora on the head": {"target_modules": ["lm_head", "down_proj"], "use_dora": True},
}
UNMERGEABLE = {"lora_bias"}  # PEFT merges it only where the base model has a bias
EXCLUSIVE = {
    "dora",
    "dora on some",
    "dora on the embedding",
    "dora on the head",
    "saved norms",
    "a saved norm",
    "everything",
}


class Served:
    """A tiny model with room for adapters, without an engine."""

    def __init__(self, folder, dtype="float32"):
        self.model = Llama.load(folder, dtype)
        self.bank = Bank(self.model.sites, capacity_bytes=CAPACITY, dtype=self.model.dtype, max_slots=16)
        self.bank._arena.fill_(torch.nan)
        slots = Slots(CAPACITY)
        reader = Reader(
            sites=self.model.sites,
            modules=describe_base_model(folder).modules,
            base=BaseWeights(folder, self.model.dtype),
            dtype=self.model.dtype,
            check_fits=slots.check_fits,
        )
        self.adapters = Adapters(self.bank, slots, reader, host=HostCache(0))

    def lora(self, rows, logit_rows=None):
        """The adapters of a batch: (number of rows, uses) of each sequence; all logits are wanted, or some."""
        wanted = None if logit_rows is None else np.array(logit_rows)
        return self.bank.lora_batch(rows, logit_rows=wanted).send("cpu")


@pytest.fixture
async def serve(tiny_model_dir):
    made = []

    def make(name="llama", dtype="float32"):
        made.append(Served(tiny_model_dir(name), dtype))
        return made[-1]

    yield make
    for served in made:
        served.adapters.check_integrity()
        await served.adapters.close()


@pytest.fixture
def write_peft(tiny_model_dir, tmp_path):
    """Writes an adapter of random weights by PEFT itself; returns its folder and PEFT's model."""

    def write(name, model_name="llama", **settings):
        torch.manual_seed(0)  # for what PEFT itself draws
        base = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir(model_name), dtype=torch.float32, attn_implementation="eager"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about merging lora_bias and about tied weights: known
            model = get_peft_model(base, LoraConfig(**{"r": 8, "lora_alpha": 12, **settings})).eval()
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "magnitude" in parameter_name:
                    parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
                elif "lora_" in parameter_name or "modules_to_save" in parameter_name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the embedding is saved too
            model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return write


def logits_of(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("feature", FEATURES)
async def test_each_row_of_a_mixed_batch_is_pefts_and_base_rows_keep_every_bit(
    feature, name, serve, write_peft, files_of, paged, prompt_ids, close
):
    served = serve(name)
    folder, special = write_peft("special", name, **FEATURES[feature])
    plain_folder, plain = write_peft("plain", name, target_modules=["q_proj", "down_proj"], r=4)
    leases = [await served.adapters.acquire(files_of(one)) for one in (folder, plain_folder)]
    texts = [prompt_ids(length, seed=length) for length in (9, 12, 5, 7)]
    uses = [[(leases[0].slot, 1.0)], [(leases[1].slot, 1.0)], [], [(leases[0].slot, 1.0)]]
    rows = [(len(ids), pairs) for ids, pairs in zip(texts, uses, strict=True)]
    chunks = [(f"{n}", ids) for n, ids in enumerate(texts)]
    parts = paged(served.model).step(chunks, lora=served.lora(rows)).split([len(ids) for ids in texts])
    base = paged(served.model).step(chunks).split([len(ids) for ids in texts])
    for n, model in enumerate([special, plain, None, special]):
        if model is None:
            assert torch.equal(parts[n], base[n])
        else:
            torch.testing.assert_close(parts[n], logits_of(model, texts[n]), **close[torch.float32])
            assert not torch.allclose(parts[n], base[n], atol=0.1), "the adapter changes something"
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("feature", sorted(FEATURES.keys() - UNMERGEABLE))
async def test_it_equals_merged_weights(feature, serve, write_peft, files_of, paged, prompt_ids, close, tmp_path):
    served, ids = serve(), prompt_ids(13)
    folder, model = write_peft("special", **FEATURES[feature])
    lease = await served.adapters.acquire(files_of(folder))
    ours = paged(served.model).step([("a", ids)], lora=served.lora([(13, [(lease.slot, 1.0)])]))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = paged(Llama.load(tmp_path / "merged", "float32")).step([("a", ids)])
    torch.testing.assert_close(ours, merged, **close[torch.float32])
    lease.release()


@pytest.mark.parametrize("feature", FEATURES)
async def test_in_bfloat16_it_is_close_to_peft(feature, serve, write_peft, files_of, paged, prompt_ids, close):
    served, ids = serve(dtype="bfloat16"), prompt_ids(13)
    folder, model = write_peft("special", **FEATURES[feature])
    lease = await served.adapters.acquire(files_of(folder))
    ours = paged(served.model).step([("a", ids)], lora=served.lora([(13, [(lease.slot, 1.0)])]))
    torch.testing.assert_close(ours, logits_of(model, ids), **close[torch.bfloat16])
    lease.release()


@pytest.mark.parametrize("feature", FEATURES)
async def test_evicted_and_reloaded_into_other_memory_it_answers_the_same_bits(
    feature, serve, write_peft, files_of, paged, prompt_ids
):
    served, ids = serve(), prompt_ids(11)
    folder, _ = write_peft("special", **FEATURES[feature])
    other, _ = write_peft("other", target_modules=LINEARS)
    answers, slots = [], []
    for _ in range(2):
        lease = await served.adapters.acquire(files_of(folder))
        slots.append(lease.slot)
        answers.append(paged(served.model).step([("a", ids)], lora=served.lora([(11, [(lease.slot, 1.0)])])))
        lease.release()
        served.adapters.evict(lease.digest)
        (await served.adapters.acquire(files_of(other))).release()
    assert slots[0] != slots[1]
    assert torch.equal(*answers)


async def test_under_traffic_that_evicts_it_each_answer_is_the_answer_alone(
    make_worker, write_peft, tiny_model_dir, prompt_ids
):
    names = ["everything", "embedding", "lora_bias"]
    folders = [write_peft(name, **FEATURES[name])[0] for name in names]
    options = {"model": Llama.load(tiny_model_dir("llama"), "float32"), "base_folder": tiny_model_dir("llama")}
    calm = make_worker(**options)
    requests = [(prompt_ids(4 + n, seed=n), [(folder, 1.0)]) for n in range(4) for folder in folders]
    requests += [(prompt_ids(9, seed=n), []) for n in range(3)]
    alone = [await calm.generate(prompt, uses) for prompt, uses in requests]
    sizes = sorted(loaded.size_bytes for loaded in calm.adapters.loaded())
    worker = make_worker(**options, adapter_bytes=sizes[-1] + sizes[0], max_step_tokens=16)
    together = await asyncio.gather(*(worker.generate(prompt, uses) for prompt, uses in requests))
    for found, expected in zip(together, alone, strict=True):
        assert [token.token_id for token in found] == [token.token_id for token in expected]
        logprobs = torch.tensor([[token.logprob for token in answer] for answer in (found, expected)])
        torch.testing.assert_close(logprobs[0], logprobs[1], rtol=0, atol=1e-3)
    assert len(worker.adapters.loaded()) < len(names), "nothing was evicted"


async def test_an_adapter_takes_its_true_size(serve, write_peft, files_of):
    served = serve(dtype="bfloat16")
    plain = await served.adapters.acquire(files_of(write_peft("plain", target_modules=["q_proj"], r=8)[0]))
    dora = await served.adapters.acquire(files_of(write_peft("dora", target_modules=["q_proj"], r=8, use_dora=True)[0]))
    norm = await served.adapters.acquire(
        files_of(write_peft("norm", target_modules=["q_proj"], r=8, modules_to_save=["model.norm"])[0])
    )
    assert plain.size_bytes == 3 * 8 * (32 + 32) * 2
    assert dora.size_bytes == plain.size_bytes + 3 * 32 * 4
    assert norm.size_bytes == plain.size_bytes + 32 * 4
    for lease in (plain, dora, norm):
        lease.release()


async def test_what_scales_the_base_model_is_used_alone_and_at_the_weight_one(serve, write_peft, files_of):
    served, leases = serve(), {}
    for feature, settings in FEATURES.items():
        leases[feature] = await served.adapters.acquire(files_of(write_peft(feature, **settings)[0]))
    for feature, lease in leases.items():
        check_composition([(lease, 1.0)])
        assert lease.is_composable == (feature not in EXCLUSIVE)
    bias, dora = leases["lora_bias"], leases["dora"]
    check_composition([(bias, 0.5), (bias, 2.0)])
    with pytest.raises(InvalidRequest, match=r"expected sha256:\w+ alone and at the weight 1.*found the weight 0\.5"):
        check_composition([(dora, 0.5)])
    with pytest.raises(InvalidRequest, match="found 2 adapters"):
        check_composition([(bias, 1.0), (dora, 1.0)])
    for lease in leases.values():
        lease.release()


async def test_biases_compose_by_weight(serve, write_peft, files_of, close):
    served, leases = serve(), []
    for name in ("one", "another"):
        folder, _ = write_peft(name, target_modules=["q_proj"], lora_bias=True)
        leases.append(await served.adapters.acquire(files_of(folder)))
    both = [(leases[0].slot, 0.5), (leases[1].slot, -2.0)]
    site = served.model.sites[0]
    x, outputs = torch.randn(1, site.in_features), []
    for uses in ([(leases[0].slot, 1.0)], [(leases[1].slot, 1.0)], both):
        outputs.append(torch.zeros(1, site.out_features))
        served.lora([(1, uses)]).add(0, x, outputs[-1])
    torch.testing.assert_close(outputs[2], 0.5 * outputs[0] - 2.0 * outputs[1], **close[torch.float32])
    for lease in leases:
        lease.release()


async def test_only_the_rows_whose_logits_are_wanted_pass_the_head_each_with_its_own_adapters(
    serve, write_peft, files_of, paged, prompt_ids, close
):
    served, leases, models = serve(), [], []
    for name, r in (("one", 4), ("another", 9)):
        folder, model = write_peft(name, target_modules=["lm_head"], r=r)
        models.append(model)
        leases.append(await served.adapters.acquire(files_of(folder)))
    slots, ids = [lease.slot for lease in leases], [prompt_ids(5, seed=n) for n in range(4)]
    rows = [(5, [(slots[1], 1.0)]), (5, []), (5, [(slots[0], 1.0)]), (5, [(slots[0], 0.5), (slots[1], 2.0)])]
    chunks = [(f"{n}", one) for n, one in enumerate(ids)]
    found = paged(served.model).step(chunks, lora=served.lora(rows, [4, 9, 14, 19]), rows=[4, 9, 14, 19])
    base = paged(served.model).step(chunks, rows=[4, 9, 14, 19])
    assert torch.equal(found[1], base[1])
    torch.testing.assert_close(found[0], logits_of(models[1], ids[0])[-1], **close[torch.float32])
    torch.testing.assert_close(found[2], logits_of(models[0], ids[2])[-1], **close[torch.float32])
    deltas = [logits_of(model, ids[3])[-1] - base[3] for model in models]
    torch.testing.assert_close(found[3], base[3] + 0.5 * deltas[0] + 2 * deltas[1], rtol=1e-4, atol=1e-4)
    assert served.lora(rows, [9]).of_logits() is None
    for lease in leases:
        lease.release()


async def test_without_the_base_models_weights_dora_is_refused_by_name(serve, write_peft, files_of, tmp_path):
    served = serve()
    served.adapters._staging._reader._base = BaseWeights(tmp_path, torch.float32)
    folder, _ = write_peft("dora", **FEATURES["dora"])
    with pytest.raises(AdapterLoadFailed, match=r"the base model's folder has no tensor 'model\.layers\.0\.self_attn"):
        await served.adapters.acquire(files_of(folder))
