"""Every tensor is used and every expected one is there with its exact shape, or all reasons say why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.config import parse_config, read_config
from adapter.errors import AdapterRefused
from adapter.header import read_header
from adapter.plan import AdapterPlan, plan

Modules = dict[str, tuple[int, int]]
Tensors = dict[str, tuple[str, list[int], bytes]]
Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
PlanOf = Callable[..., AdapterPlan]


@pytest.fixture
def plan_of(tmp_path: Path, tiny_modules: Modules, write_safetensors: Any) -> PlanOf:
    def make(tensors: Tensors, **config: Any) -> AdapterPlan:
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
        header = read_header(write_safetensors(tmp_path / "adapter_model.safetensors", tensors))
        return plan(parse_config(json.dumps(settings).encode()), header, tiny_modules)

    return make


@pytest.fixture
def tensors(tiny_modules: Modules, lora_tensors: Any) -> Tensors:
    found: Tensors = lora_tensors(tiny_modules, {Q0: 4, Q1: 4})
    return found


def refusal(make: PlanOf, tensors: Tensors | list[str], **config: Any) -> str:
    with pytest.raises(AdapterRefused) as caught:
        make(tensors, **config)
    return "\n".join(caught.value.reasons)


def test_a_plan_names_both_tensors_of_every_module(plan_of: PlanOf, tensors: Tensors) -> None:
    found = plan_of(tensors)
    assert [module.name for module in found.modules] == [Q0, Q1]
    first = found.modules[0]
    assert (first.rank, first.scale, first.in_features, first.out_features) == (4, 2.0, 8, 8)
    assert first.a_key == f"base_model.model.{Q0}.lora_A.weight"
    assert first.b_key == f"base_model.model.{Q0}.lora_B.weight"
    assert (found.rank, found.target_modules, found.features) == (4, ("q_proj",), ())
    assert found.num_bytes == 2 * (4 * 8 + 8 * 4) * 4


def test_ranks_follow_the_pattern(plan_of: PlanOf, tiny_modules: Modules, lora_tensors: Any) -> None:
    tensors = lora_tensors(tiny_modules, {Q0: 4, Q1: 6}, "BF16")
    found = plan_of(tensors, rank_pattern={"layers.1.self_attn.q_proj": 6}, alpha_pattern={"layers.1.*q_proj": 3})
    assert [(module.rank, module.scale) for module in found.modules] == [(4, 2.0), (6, 0.5)]
    assert found.rank == 6


@pytest.mark.parametrize("name", ["pirate", "sql", "json", "classify"])
def test_the_example_adapters_fit_their_base_model(name: str) -> None:
    folder = Path("examples/adapters") / name
    header = read_header(folder / "adapter_model.safetensors")
    shapes = {key.removeprefix("base_model.model."): info.shape for key, info in header.tensors.items()}
    modules = {
        key.removesuffix(".lora_A.weight"): (shapes[key.replace("lora_A", "lora_B")][0], shape[1])
        for key, shape in shapes.items()
        if "lora_A" in key
    }
    found = plan(read_config(folder / "adapter_config.json"), header, modules)
    assert {module.name for module in found.modules} == modules.keys()


def test_a_missing_tensor_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    del tensors[f"base_model.model.{Q1}.lora_B.weight"]
    assert f"'base_model.model.{Q1}.lora_B.weight': expected [8, 4], found no such tensor" in refusal(plan_of, tensors)


def test_a_tensor_that_the_configuration_does_not_ask_for_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    assert "the configuration does not ask for it" in refusal(plan_of, tensors, layers_to_transform=[0])


def test_a_module_that_the_base_model_lacks_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    tensors["base_model.model.layers.0.self_attn.q_proj.lora_A.weight"] = ("F32", [1], bytes(4))
    assert "the base model has no module 'layers.0.self_attn.q_proj'" in refusal(plan_of, tensors)


def test_a_key_that_peft_would_not_write_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    tensors[f"base_model.model.{Q0}.lora_A.default.weight"] = ("F32", [1], bytes(4))
    tensors["stray"] = ("F32", [1], bytes(4))
    text = refusal(plan_of, tensors)
    assert "lora_A.default.weight' [1]: the configuration does not ask for it" in text
    assert "'stray' [1]: expected a name like" in text


@pytest.mark.parametrize("shape", [[8, 4], [4, 7], [3, 8], [32], [4, 8, 1]])
def test_a_wrong_shape_is_refused_with_both(plan_of: PlanOf, tensors: Tensors, shape: list[int]) -> None:
    count = 4
    for size in shape:
        count *= size
    tensors[f"base_model.model.{Q0}.lora_A.weight"] = ("F32", shape, bytes(count))
    assert f"expected [4, 8], found {shape}" in refusal(plan_of, tensors)


@pytest.mark.parametrize(("dtype", "size"), [("I8", 1), ("F64", 8)])
def test_a_dtype_that_is_not_served_is_refused(plan_of: PlanOf, tensors: Tensors, dtype: str, size: int) -> None:
    tensors[f"base_model.model.{Q0}.lora_A.weight"] = (dtype, [4, 8], bytes(32 * size))
    assert f"expected one of BF16, F16, F32, found {dtype}" in refusal(plan_of, tensors)


def test_a_rank_over_the_limit_is_refused(plan_of: PlanOf, tiny_modules: Modules, lora_tensors: Any) -> None:
    tensors = lora_tensors(tiny_modules, {Q0: 513, Q1: 513})
    assert "expected a rank of at most 512, found 513" in refusal(plan_of, tensors, r=513)


def test_a_scale_that_is_no_number_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    assert "alpha" in refusal(plan_of, tensors, lora_alpha=1e39)


@pytest.mark.parametrize(
    ("key", "feature"),
    [
        (f"base_model.model.{Q0}.lora_magnitude_vector", "the configuration does not ask for it"),
        (f"base_model.model.{Q0}.lora_B.bias", "the configuration does not ask for it"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "the configuration does not ask for it"),
        (f"base_model.model.{Q0}.base_layer.weight", "a copy of the base model's weights"),
        (f"base_model.model.{Q0}.base_layer.bias", "a trained bias is not served"),
        ("base_model.model.model.layers.0.self_attn.k_proj.bias", "a trained bias is not served"),
        ("base_model.model.lm_head.modules_to_save.weight", "a fully trained module"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trained tokens"),
        (f"base_model.model.{Q0}.lora_diag", "KaSA"),
        (f"base_model.model.{Q0}.lora_E", "AdaLoRA"),
    ],
)
def test_a_tensor_of_a_feature_that_is_not_served_is_refused_by_name(
    plan_of: PlanOf, tensors: Tensors, key: str, feature: str
) -> None:
    tensors[key] = ("F32", [1], bytes(4))
    assert feature in refusal(plan_of, tensors)


@pytest.mark.parametrize(
    ("config", "key"), [({"use_dora": True}, "lora_magnitude_vector"), ({"lora_bias": True}, "lora_B.bias")]
)
def test_a_vector_of_every_module_is_planned_or_missed(
    plan_of: PlanOf, tensors: Tensors, config: dict[str, bool], key: str
) -> None:
    keys = [f"base_model.model.{name}.{key}" for name in (Q0, Q1)]
    tensors |= {key: ("F32", [8], bytes(32)) for key in keys}
    found = plan_of(tensors, **config)
    assert [module.magnitude_key or module.bias_key for module in found.modules] == keys
    assert found.is_composable == (key != "lora_magnitude_vector")
    tensors[keys[0]] = ("F32", [7], bytes(28))
    del tensors[keys[1]]
    text = refusal(plan_of, tensors, **config)
    assert f"{keys[0]!r}: expected [8], found [7]" in text
    assert f"{keys[1]!r}: expected [8], found no such tensor" in text


@pytest.mark.parametrize(
    ("fused", "shape"), [("self_attn.qkv_proj", (16, 8)), ("mlp.gate_up_proj", (32, 8)), ("self_attn.W_pack", (16, 8))]
)
def test_an_adapter_of_a_model_with_fused_projections_is_refused_by_name(
    plan_of: PlanOf, tensors: Tensors, lora_tensors: Any, fused: str, shape: tuple[int, int]
) -> None:
    name = f"model.layers.0.{fused}"
    tensors |= lora_tensors({name: shape}, {name: 4})
    target = fused.rpartition(".")[2]
    text = refusal(plan_of, tensors, target_modules=["q_proj", target])
    assert f"the base model has no module {name!r}" in text


NORMS = [f"model.layers.{layer}.{name}_layernorm" for layer in range(2) for name in ("input", "post_attention")]


@pytest.fixture
def plan_norms(tmp_path: Path, tiny_modules: Modules, tensors: Tensors, write_safetensors: Any) -> PlanOf:
    """Plans q_proj beside saved norms, over a base model that has some."""
    modules = tiny_modules | dict.fromkeys([*NORMS, "model.norm", "model.layers.0.self_attn.q_norm"], (8, 1))

    def make(names: list[str], **config: Any) -> AdapterPlan:
        norms = {f"base_model.model.{name}.weight": ("F32", [8], bytes(32)) for name in names}
        header = read_header(write_safetensors(tmp_path / "adapter_model.safetensors", tensors | norms))
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
        return plan(parse_config(json.dumps(settings).encode()), header, modules)

    return make


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["model.norm"], ["model.norm"]),
        (["layernorm"], NORMS),
        (["layers.1.input_layernorm", "model.norm"], ["model.layers.1.input_layernorm", "model.norm"]),
    ],
)
def test_saved_norms_are_those_whose_names_end_so(plan_norms: PlanOf, entries: list[str], names: list[str]) -> None:
    found = plan_norms(names, modules_to_save=entries)
    assert [(norm.name, norm.key, norm.width) for norm in found.norms] == [
        (name, f"base_model.model.{name}.weight", 8) for name in names
    ]
    assert found.features == ("modules_to_save",)
    assert not found.is_composable


@pytest.mark.parametrize(
    ("entries", "names", "words"),
    [
        (["model.norm"], [], "'base_model.model.model.norm.weight': expected [8], found no such tensor"),
        (["layernorm"], NORMS[:3], f"'base_model.model.{NORMS[3]}.weight': expected [8], found no such tensor"),
        (["norm"], [*NORMS, "model.norm"], "module model.layers.0.self_attn.q_norm: full training of other modules"),
        (["up_proj"], [], "layers.0.mlp.up_proj: full training of other modules than a layer's norms, the embedding"),
        (["lm_head"], [], "'base_model.model.lm_head.weight': expected [32, 8], found no such tensor"),
        (["score"], [], "modules_to_save: expected names of the base model's modules, found 'score'"),
        ([], ["model.norm"], "'base_model.model.model.norm.weight' [8]: expected a name like"),
    ],
)
def test_saved_modules_that_cannot_be_served_are_refused_by_name(
    plan_norms: PlanOf, entries: list[str], names: list[str], words: str
) -> None:
    assert words in refusal(plan_norms, names, modules_to_save=entries)


def test_all_linear_takes_no_norm(plan_norms: PlanOf) -> None:
    assert "norm" not in refusal(plan_norms, [], target_modules="all-linear")


EMBEDDING = "base_model.model.model.embed_tokens"


@pytest.fixture
def ends(tensors: Tensors, tiny_modules: Modules, lora_tensors: Any) -> Tensors:
    """Tensors of q_proj, the head and the embedding, with the copy of the embedding that PEFT saves."""
    return {
        **tensors,
        **lora_tensors(tiny_modules, {"lm_head": 4}),
        f"{EMBEDDING}.lora_embedding_A": ("F32", [4, 32], bytes(512)),
        f"{EMBEDDING}.lora_embedding_B": ("F32", [8, 4], bytes(128)),
        f"{EMBEDDING}.base_layer.weight": ("BF16", [32, 8], bytes(512)),
    }


def test_an_embedding_is_looked_up_and_its_copy_is_one_of_its_own(plan_of: PlanOf, ends: Tensors) -> None:
    found = plan_of(ends, target_modules=["q_proj", "embed_tokens", "lm_head"])
    embedding, head = found.modules[:2]
    assert (embedding.name, embedding.in_features, embedding.out_features) == ("model.embed_tokens", 32, 8)
    assert (embedding.a_key, embedding.b_key) == (f"{EMBEDDING}.lora_embedding_A", f"{EMBEDDING}.lora_embedding_B")
    assert (head.name, head.in_features, head.out_features) == ("lm_head", 8, 32)
    assert found.features == ("embedding_lora", "head_lora")
    assert [(end.name, end.num_rows, end.copy_key) for end in found.ends] == [
        ("model.embed_tokens", 32, f"{EMBEDDING}.base_layer.weight")
    ]
    assert found.is_composable


def test_lora_goes_with_the_rows_of_a_resized_vocabulary(plan_of: PlanOf, ends: Tensors) -> None:
    ends[f"{EMBEDDING}.base_layer.weight"] = ("BF16", [33, 8], bytes(528))
    targets = {"target_modules": ["q_proj", "embed_tokens"]}
    del ends["base_model.model.lm_head.lora_A.weight"], ends["base_model.model.lm_head.lora_B.weight"]
    assert f"'{EMBEDDING}.lora_embedding_A': expected [4, 33], found [4, 32]" in refusal(plan_of, ends, **targets)
    ends[f"{EMBEDDING}.lora_embedding_A"] = ("F32", [4, 33], bytes(528))
    found = plan_of(ends, **targets)
    assert found.features == ("embedding_lora", "own_vocabulary")
    assert found.ends[0].num_rows == found.modules[0].in_features == 33


def test_what_is_not_served_at_the_ends_is_refused_by_name(plan_of: PlanOf, ends: Tensors) -> None:
    targets = {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    assert "a bias on an embedding's LoRA is not served" in refusal(plan_of, ends, lora_bias=True, **targets)
    saved = refusal(plan_of, ends, modules_to_save=["lm_head"], **targets)
    assert "module lm_head: expected LoRA or full training of it, found both" in saved


def test_an_end_that_is_tied_to_a_target_is_one_too_where_the_file_has_it(plan_of: PlanOf, ends: Tensors) -> None:
    targets = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    assert [module.name for module in plan_of(ends, **targets).modules][:2] == ["model.embed_tokens", "lm_head"]
    del ends["base_model.model.lm_head.lora_A.weight"], ends["base_model.model.lm_head.lora_B.weight"]
    assert [module.name for module in plan_of(ends, **targets).modules][:2] == ["model.embed_tokens", Q0]


def test_a_target_that_matches_nothing_is_refused(plan_of: PlanOf, tensors: Tensors) -> None:
    text = refusal(plan_of, tensors, target_modules=["query"])
    assert "found none that matches" in text


def test_targets_without_a_match_beside_others_are_harmless_as_in_peft(plan_of: PlanOf, tensors: Tensors) -> None:
    assert len(plan_of(tensors, target_modules=["q_proj", "query_key_value"]).modules) == 2


def test_an_empty_file_is_refused(plan_of: PlanOf) -> None:
    assert "found no such tensor" in refusal(plan_of, {})


def test_many_reasons_are_cut_and_counted(plan_of: PlanOf, tensors: Tensors) -> None:
    tensors |= {f"stray{i}": ("F32", [1], bytes(4)) for i in range(50)}
    text = refusal(plan_of, tensors)
    assert text.count("\n") == 11
    assert text.endswith("and 39 more")
