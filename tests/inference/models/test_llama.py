"""A model of ours is the model of transformers, in one piece, in chunks, and token by token."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference.models.llama import Llama

ARCHITECTURES = [
    "llama",
    "llama with a tied head",
    "llama without grouped heads",
    "llama with one key head",
    "llama with biases",
    "llama with wide heads",
    "llama with llama3 rope",
    "llama with linear rope",
    "llama with yarn rope",
    "mistral",
    "mistral with a window",
    "qwen2",
    "qwen2 with windows",
    "qwen2 with yarn rope",
    "qwen3",
    "qwen3 with biases and a tied head",
]


def expected_logits(folder, token_ids, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prefill_in_one_piece_gives_the_logits_of_transformers(name, tiny_model_dir, paged, prompt_ids, close):
    folder, ids = tiny_model_dir(name), prompt_ids(41)
    logits = paged(Llama.load(folder, "float32")).step([("a", ids)])
    torch.testing.assert_close(logits, expected_logits(folder, ids), **close[torch.float32])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_in_bfloat16_the_logits_stay_close_to_those_of_transformers(name, tiny_model_dir, paged, prompt_ids, close):
    folder, ids = tiny_model_dir(name), prompt_ids(41)
    logits = paged(Llama.load(folder, "bfloat16")).step([("a", ids)])
    torch.testing.assert_close(logits, expected_logits(folder, ids, torch.bfloat16), **close[torch.bfloat16])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_chunked_prefill_and_decode_in_mixed_batches_equal_one_prefill(name, tiny_model_dir, paged, prompt_ids, close):
    model = Llama.load(tiny_model_dir(name), "float32")
    first, second, third = prompt_ids(23, seed=1), prompt_ids(9, seed=2), prompt_ids(17, seed=3)
    sequences = paged(model)
    got = {"first": [], "second": [], "third": []}
    steps = [
        [("first", first[:10])],
        [("first", first[10:13]), ("second", second[:1])],
        [("second", second[1:6]), ("first", first[13:22]), ("third", third[:16])],
        [("third", third[16:]), ("first", first[22:]), ("second", second[6:7])],
        [("second", second[7:8])],
        [("second", second[8:])],
    ]
    for chunks in steps:
        logits = sequences.step(chunks)
        for name_, rows in zip([n for n, _ in chunks], logits.split([len(ids) for _, ids in chunks]), strict=True):
            got[name_].append(rows)
    for name_, ids in {"first": first, "second": second, "third": third}.items():
        torch.testing.assert_close(torch.cat(got[name_]), paged(model).step([("a", ids)]), **close[torch.float32])


@pytest.mark.parametrize("name", ["llama", "mistral with a window", "qwen2 with windows"])
def test_decoding_token_by_token_equals_one_pass(name, tiny_model_dir, paged, prompt_ids, close):
    model, ids = Llama.load(tiny_model_dir(name), "float32"), prompt_ids(33)
    sequences = paged(model)
    steps = torch.cat([sequences.step([("a", [token_id])]) for token_id in ids])
    torch.testing.assert_close(steps, paged(model).step([("a", ids)]), **close[torch.float32])


def test_only_the_rows_asked_for_get_logits_in_their_order(tiny_model_dir, paged, prompt_ids, close):
    model, ids = Llama.load(tiny_model_dir(), "float32"), prompt_ids(12)
    every = paged(model).step([("a", ids)])
    some = paged(model).step([("a", ids)], rows=[11, 0, 5])
    torch.testing.assert_close(some, every[[11, 0, 5]], **close[torch.float32])


def test_a_step_that_wants_no_logits_still_fills_the_cache(tiny_model_dir, paged, prompt_ids, close):
    model, ids = Llama.load(tiny_model_dir(), "float32"), prompt_ids(12)
    sequences = paged(model)
    assert sequences.step([("a", ids[:11])], rows=[]).shape == (0, model.config.vocab_size)
    last = sequences.step([("a", ids[11:])])
    torch.testing.assert_close(last, paged(model).step([("a", ids)])[11:], **close[torch.float32])


def test_logits_are_float32_in_every_dtype(tiny_model_dir, paged, prompt_ids):
    for dtype in ("float32", "bfloat16"):
        assert paged(Llama.load(tiny_model_dir(), dtype)).step([("a", prompt_ids(3))]).dtype is torch.float32


def test_sites_name_every_linear_layer_with_its_shape_the_norms_and_the_embedding(tiny_model_dir):
    folder = tiny_model_dir("llama with wide heads")
    sites = Llama.load(folder).sites
    named = {part.module: (part.width, site.in_features) for site in sites for part in site.parts}
    modules = AutoModelForCausalLM.from_pretrained(folder).named_modules()
    linears = {name: tuple(m.weight.shape) for name, m in modules if isinstance(m, torch.nn.Linear)}
    norms = [f"model.layers.{layer}.{norm}_layernorm" for layer in range(3) for norm in ("input", "post_attention")]
    assert named == linears | {"model.embed_tokens": (32, 96)} | dict.fromkeys([*norms, "model.norm"], (32, 1))
    assert "lm_head" in named
    assert [site.name for site in sites[4:8]] == [
        f"model.layers.1.{name}" for name in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")
    ]
    assert sites[0].columns == (0, 64, 96, 128)
    assert sites[0].out_features == 128
