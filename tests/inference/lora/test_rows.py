"""Adapters with rows of the embedding and the head of their own, written by PEFT: the logits are PEFT's, whoever is
beside, and nobody else ever sees their tokens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapter.base_model import describe_base_model
from inference.engine.batch import lay_out
from inference.engine.graphs import DecodeGraphs, eager
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams
from inference.engine.sequence import Chunk, Sequence
from inference.errors import AdapterLoadFailed, AdapterTooLarge, InvalidRequest
from inference.lora.bank import Bank
from inference.lora.base import BaseWeights
from inference.lora.host_cache import HostCache
from inference.lora.lease import check_composition
from inference.lora.loader import Adapters
from inference.lora.reading import Reader
from inference.lora.slots import Slots
from inference.lora.weights import ALIGNMENT
from inference.models.linear import PackedLinear, TiledLinear
from inference.models.llama import Llama

# PEFT 0.21 asks transformers 5.23 for a property that the latter deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CAPACITY = 1 << 20
TIED, UNTIED = "llama with a tied head", "llama"
LORA = {"target_modules": ["q_proj", "down_proj"]}
# 96 tokens are the base model's; "vocab_size" resizes before the adapter is made.
KINDS = {
    "a saved embedding": {"modules_to_save": ["embed_tokens"]},
    "a saved head": {"modules_to_save": ["lm_head"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both saved and tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "trained tokens": {"trainable_token_indices": [7, 3, 90]},
    "trained tokens of the head": {"trainable_token_indices": {"lm_head": [5, 80]}},
    "the same trained tokens": {"trainable_token_indices": {"embed_tokens": [2, 95], "lm_head": [2, 95]}},
    "other trained tokens": {"trainable_token_indices": {"embed_tokens": [2, 95], "lm_head": [95, 4]}},
    "added tokens": {"vocab_size": 99},
    "added and trained tokens": {"vocab_size": 99, "trainable_token_indices": [96, 97, 98, 1]},
    "added tokens, both saved": {"vocab_size": 99, "modules_to_save": ["embed_tokens", "lm_head"]},
    "added tokens, a saved embedding": {"vocab_size": 99, "modules_to_save": ["embed_tokens"]},
    "added tokens under LoRA": {"vocab_size": 99, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "a cut vocabulary": {"vocab_size": 90},
    "a cut vocabulary under LoRA": {"vocab_size": 90, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "LoRA on the head beside a saved embedding": {
        "target_modules": ["q_proj", "lm_head"],
        "modules_to_save": ["embed_tokens"],
    },
    "everything else too": {
        "vocab_size": 97,
        "modules_to_save": ["embed_tokens", "lm_head", "model.norm"],
        "use_dora": True,
    },
}


@pytest.fixture
async def serve(tiny_model_dir):
    """`serve(name)`: a tiny model with room for adapters, without an engine."""
    made = []

    class Served:
        def __init__(self, folder, dtype, capacity_bytes, linear):
            self.model = Llama.load(folder, dtype, linear=linear)
            self.bank = Bank(self.model.sites, capacity_bytes=capacity_bytes, dtype=self.model.dtype, max_slots=16)
            self.bank._arena.fill_(torch.nan)
            slots = Slots(capacity_bytes)
            reader = Reader(
                sites=self.model.sites,
                modules=describe_base_model(folder).modules,
                base=BaseWeights(folder, self.model.dtype),
                dtype=self.model.dtype,
                check_fits=slots.check_fits,
            )
            self.adapters = Adapters(self.bank, slots, reader, host=HostCache(0))

        def lora(self, rows):
            """The adapters of a batch: (number of rows, uses) of each sequence; the logits of all are wanted."""
            return self.bank.lora_batch(rows).send("cpu")

    def make(name, dtype="float32", capacity_bytes=CAPACITY, linear=PackedLinear):
        made.append(Served(tiny_model_dir(name), dtype, capacity_bytes, linear))
        return made[-1]

    yield make
    for served in made:
        served.adapters.check_integrity()
        await served.adapters.close()


@pytest.fixture
def write_peft(tiny_model_dir, tmp_path):
    """Writes an adapter of random weights by PEFT itself; returns its folder and PEFT's model."""

    def write(folder_name, model_name, *, vocab_size=96, **settings):
        torch.manual_seed(0)  # for what PEFT itself draws
        base = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir(model_name), dtype=torch.float32, attn_implementation="eager"
        )
        generator = torch.Generator().manual_seed(len(folder_name))
        if vocab_size != 96:
            base.resize_token_embeddings(vocab_size, mean_resizing=False)
            with torch.no_grad():
                for end in (base.get_input_embeddings(), base.get_output_embeddings()):
                    end.weight[96:].normal_(std=0.2, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied weights: known
            model = get_peft_model(base, LoraConfig(**{"r": 8, "lora_alpha": 12, **LORA, **settings})).eval()
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    if "magnitude" in parameter_name:
                        parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
                    elif parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            model.save_pretrained(tmp_path / folder_name)
        return tmp_path / folder_name, model

    return write


def logits_of(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("name", [TIED, UNTIED])
@pytest.mark.parametrize("kind", KINDS)
async def test_each_row_of_a_mixed_batch_is_pefts_and_knows_its_own_tokens_only(
    kind, name, serve, write_peft, files_of, paged, prompt_ids, close
):
    served, settings = serve(name), KINDS[kind]
    size = settings.get("vocab_size", 96)
    folder, special = write_peft("special", name, **settings)
    plain_folder, plain = write_peft("plain", name, r=4)
    lease, other = [await served.adapters.acquire(files_of(one)) for one in (folder, plain_folder)]
    assert lease.vocab_size == (size if size != 96 else lease.vocab_size)
    texts = [prompt_ids(length, seed=length) for length in (9, 12, 5, 7)]
    for text in (texts[0], texts[3]):
        text[:] = [min(token_id, size - 1) for token_id in [*text, 2, 95, 7, size - 1, size - 2]]
    uses = [[(lease.slot, 1.0)], [(other.slot, 1.0)], [], [(lease.slot, 1.0)]]
    rows = [(len(ids), pairs) for ids, pairs in zip(texts, uses, strict=True)]
    chunks = [(f"{n}", ids) for n, ids in enumerate(texts)]
    parts = paged(served.model).step(chunks, lora=served.lora(rows)).split([len(ids) for ids in texts])
    base = paged(served.model).step([("alone", texts[2])])
    for part, ids, model in zip(parts, texts, [special, plain, None, special], strict=True):
        known = size if model is special else 96
        assert torch.isneginf(part[:, known:]).all(), "a token that the row does not know can never be chosen"
        expected = base if model is None else logits_of(model, ids)
        torch.testing.assert_close(part[:, :known], expected, **close[torch.float32])
    alone = paged(served.model).step([("0", texts[0])], lora=served.lora(rows[:1]))
    torch.testing.assert_close(alone[:, :size], parts[0][:, :size], **close[torch.float32])
    assert not torch.allclose(alone[:, :90], paged(served.model).step([("0", [1] * len(texts[0]))])[:, :90], atol=0.1)
    lease.release()
    other.release()


async def test_a_resized_embedding_whose_head_was_not_saved_is_served_where_they_are_tied(
    serve, write_peft, files_of, paged, prompt_ids, close
):
    settings = {"vocab_size": 99, "target_modules": ["q_proj", "embed_tokens"]}
    served, ids = serve(TIED), [*prompt_ids(7), 97, 98]
    folder, model = write_peft("special", TIED, **settings)
    lease = await served.adapters.acquire(files_of(folder))
    ours = paged(served.model).step([("a", ids)], lora=served.lora([(9, [(lease.slot, 1.0)])]))
    torch.testing.assert_close(ours, logits_of(model, ids), **close[torch.float32])
    lease.release()
    folder, _ = write_peft("other", UNTIED, **settings)
    with pytest.raises(AdapterLoadFailed, match="as many rows in the embedding as in the head, found"):
        await serve(UNTIED).adapters.acquire(files_of(folder))


@pytest.mark.parametrize("kind", ["both saved", "added tokens under LoRA", "trained tokens"])
async def test_in_bfloat16_it_is_close_to_peft(kind, serve, write_peft, files_of, paged, prompt_ids, close):
    served, ids = serve(TIED, "bfloat16"), prompt_ids(13)
    folder, model = write_peft("special", TIED, **KINDS[kind])
    lease = await served.adapters.acquire(files_of(folder))
    ours = paged(served.model).step([("a", ids)], lora=served.lora([(13, [(lease.slot, 1.0)])]))
    torch.testing.assert_close(ours, logits_of(model, ids), **close[torch.bfloat16])
    lease.release()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_with_tiled_products_a_row_has_the_same_bits_alone_and_in_any_batch(
    dtype, serve, write_peft, files_of, paged, prompt_ids
):
    served = serve("llama with a wide middle", dtype, linear=TiledLinear)
    folder, _ = write_peft("special", "llama with a wide middle", **KINDS["added tokens under LoRA"])
    lease = await served.adapters.acquire(files_of(folder))
    texts, uses = [prompt_ids(n, seed=n) for n in (9, 1, 24)], [(lease.slot, 1.0)]
    alone = [paged(served.model).step([("a", ids)], lora=served.lora([(len(ids), uses)])) for ids in texts]
    rows = [(len(ids), uses) for ids in texts] + [(3, [])]
    chunks = [(f"{n}", ids) for n, ids in enumerate([*texts, [1, 2, 3]])]
    parts = paged(served.model).step(chunks, lora=served.lora(rows)).split([9, 1, 24, 3])
    assert all(map(torch.equal, alone, parts))
    lease.release()


async def test_only_the_rows_that_differ_take_memory(serve, write_peft, files_of):
    served, leases = serve(TIED), {}
    for kind in ("added tokens", "added and trained tokens", "both saved"):
        leases[kind] = await served.adapters.acquire(files_of(write_peft(kind, TIED, **KINDS[kind])[0]))
    plain = await served.adapters.acquire(files_of(write_peft("plain", TIED)[0]))
    more = {kind: (lease.size_bytes - plain.size_bytes) for kind, lease in leases.items()}
    ids_bytes = 4 * ALIGNMENT  # of a few tokens, and a gap
    assert more["added tokens"] == 2 * (3 * 32 * 4 + ids_bytes)
    assert more["added and trained tokens"] == 2 * (4 * 32 * 4 + ids_bytes)
    assert more["both saved"] == 2 * 96 * 32 * 4
    for lease in (*leases.values(), plain):
        lease.release()


async def test_a_whole_head_that_does_not_fit_is_refused_with_the_numbers(serve, write_peft, files_of):
    served = serve(UNTIED, capacity_bytes=16384)
    folder, _ = write_peft("special", UNTIED, **KINDS["both saved"])
    with pytest.raises(AdapterTooLarge, match=r"takes \d+ bytes and all memory for adapters is 16384"):
        await served.adapters.acquire(files_of(folder))


async def test_rows_of_its_own_are_used_alone_and_at_the_weight_one(serve, write_peft, files_of):
    served = serve(TIED)
    for kind in ("a saved head", "trained tokens", "added tokens"):
        lease = await served.adapters.acquire(files_of(write_peft(kind, TIED, **KINDS[kind])[0]))
        check_composition([(lease, 1.0)])
        with pytest.raises(InvalidRequest, match=r"alone and at the weight 1.*found the weight 0\.5"):
            check_composition([(lease, 0.5)])
        lease.release()


async def test_a_slot_that_is_used_again_keeps_no_rows_of_the_adapter_before(
    serve, write_peft, files_of, paged, prompt_ids, close
):
    served, ids = serve(TIED), prompt_ids(11)
    first = await served.adapters.acquire(files_of(write_peft("first", TIED, **KINDS["added tokens, both saved"])[0]))
    first.release()
    served.adapters.evict(first.digest)
    folder, model = write_peft("second", TIED)
    second = await served.adapters.acquire(files_of(folder))
    assert second.slot == first.slot
    found = paged(served.model).step([("a", ids)], lora=served.lora([(11, [(second.slot, 1.0)])]))
    torch.testing.assert_close(found, logits_of(model, ids), **close[torch.float32])
    second.release()


async def test_a_decode_with_rows_of_its_own_is_not_captured_and_is_the_same(serve, write_peft, files_of):
    served = serve(TIED)
    folder, _ = write_peft("special", TIED, **KINDS["added tokens, both saved"])
    lease = await served.adapters.acquire(files_of(folder))
    config = served.model.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=4,
        block_size=4,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=served.model.dtype,
    )
    sequence = Sequence(Request("a", (98,), SamplingParams(max_tokens=4)), number=0)
    sequence.blocks = [2]
    host = lay_out([Chunk(sequence, 0, 1, samples=True)], block_size=4)
    host = dataclasses.replace(host, lora=served.bank.lora_batch([(1, [(lease.slot, 1.0)])]))
    graphs = DecodeGraphs(served.model, cache, eager, vocab_size=96, max_rows=4, max_blocks=4)
    with torch.inference_mode():
        assert torch.equal(graphs.logits(host), served.model.forward(host.send("cpu"), cache))
    assert len(graphs) == 0
    lease.release()


async def test_under_traffic_that_evicts_them_each_answer_is_the_answer_alone(
    make_worker, write_peft, tiny_model_dir, prompt_ids
):
    names = ["added tokens under LoRA", "both saved", "trained tokens", "a cut vocabulary"]
    folders = [write_peft(name, TIED, **KINDS[name])[0] for name in names]
    sizes = [99, 96, 96, 90]
    options = {"model": Llama.load(tiny_model_dir(TIED), "float32"), "base_folder": tiny_model_dir(TIED)}
    requests = [
        ([*(min(token_id, size - 1) for token_id in prompt_ids(5 + n, seed=n)), size - 1], [(folder, 1.0)])
        for n in range(3)
        for folder, size in zip(folders, sizes, strict=True)
    ]
    requests += [(prompt_ids(9, seed=n), []) for n in range(4)]
    calm = make_worker(**options)
    alone = [await calm.generate(prompt, uses) for prompt, uses in requests]
    held = sorted(loaded.size_bytes for loaded in calm.adapters.loaded())
    worker = make_worker(**options, adapter_bytes=held[-1] + held[0], max_step_tokens=16)
    together = await asyncio.gather(*(worker.generate(prompt, uses) for prompt, uses in requests))
    for found, expected in zip(together, alone, strict=True):
        assert [token.token_id for token in found] == [token.token_id for token in expected]
        logprobs = torch.tensor([[token.logprob for token in answer] for answer in (found, expected)])
        torch.testing.assert_close(logprobs[0], logprobs[1], rtol=0, atol=1e-3)
    assert len(worker.adapters.loaded()) < len(names), "nothing was evicted"


def changed(folder, key, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[key] = change(tensors[key])
    save_file(tensors, path)


async def test_two_copies_that_differ_where_the_base_model_ties_them_are_refused(serve, write_peft, files_of):
    folder, _ = write_peft("special", TIED, **KINDS["added tokens"])
    changed(folder, "base_model.model.lm_head.weight", lambda weight: weight + 1)
    with pytest.raises(AdapterLoadFailed, match=r"lm_head.weight': expected what .*embed_tokens.weight' holds, as the"):
        await serve(TIED).adapters.acquire(files_of(folder))


async def test_what_peft_cannot_apply_to_one_weight_is_refused(serve, write_peft, files_of):
    settings = {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [3]}}
    folder, _ = write_peft("special", UNTIED, **settings)
    lease = await serve(UNTIED).adapters.acquire(files_of(folder))
    lease.release()
    with pytest.raises(AdapterLoadFailed, match="full training beside trained tokens of its tie is not served"):
        await serve(TIED).adapters.acquire(files_of(folder))


async def test_dora_on_a_head_whose_rows_changed_is_refused(serve, write_peft, files_of):
    folder, _ = write_peft("special", UNTIED, target_modules=["lm_head"], use_dora=True)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.base_layer.weight": torch.ones(96, 32)}, path)
    with pytest.raises(AdapterLoadFailed, match="DoRA or a bias beside rows that were changed is not served"):
        await serve(UNTIED).adapters.acquire(files_of(folder))


@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16])
async def test_a_copy_in_another_dtype_is_still_the_base_models(kept_in, serve, write_peft, files_of):
    served = serve(TIED)
    folder, _ = write_peft("special", TIED, target_modules=["q_proj", "embed_tokens"])
    changed(folder, "base_model.model.model.embed_tokens.base_layer.weight", lambda weight: weight.to(kept_in))
    lease = await served.adapters.acquire(files_of(folder))
    assert lease.is_composable, "nothing of the base model's was changed"
    lease.release()
