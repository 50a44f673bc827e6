"""Configurations of old, new and unknown PEFT versions: served with PEFT's meaning, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from adapter.config import MAX_CONFIG_BYTES, PeftConfig, parse_config, read_config
from adapter.errors import AdapterRefused

OLDEST = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def parse(**changes: Any) -> PeftConfig:
    return parse_config(json.dumps({**OLDEST, **changes}).encode())


def refusal(**changes: Any) -> str:
    with pytest.raises(AdapterRefused) as caught:
        parse(**changes)
    return "\n".join(caught.value.reasons)


def reasons_of(**changes: Any) -> tuple[str, ...]:
    """Why the changes are refused; nothing if they are not."""
    try:
        parse(**changes)
    except AdapterRefused as refused:
        return refused.reasons
    return ()


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "features"),
    [
        ("pirate", 4, 8, ()),
        ("sql", 16, 32, ()),
        ("json", 8, 16, ("rslora",)),
        ("classify", 64, 64, ("layers_to_transform",)),
    ],
)
def test_the_example_adapters_are_read(name: str, rank: int, alpha: float, features: tuple[str, ...]) -> None:
    config = read_config(Path("examples/adapters") / name / "adapter_config.json")
    assert (config.rank, config.alpha, config.features) == (rank, alpha, features)


def test_a_configuration_of_an_old_peft_takes_the_defaults() -> None:
    config = parse_config(
        b'{"peft_type": "LORA", "target_modules": ["q_proj"], "enable_lora": null, "merge_weights": false}'
    )
    assert (config.rank, config.alpha, config.use_rslora) == (8, 8.0, False)


# What each release added to the fields that it writes, with its defaults.
RELEASES: dict[str, dict[str, Any]] = {
    "0.3": {
        "base_model_name_or_path": "base", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "lora_dropout": 0.05, "modules_to_save": None, "task_type": "CAUSAL_LM",
    },
    "0.5": {"auto_mapping": None, "layers_pattern": None, "layers_to_transform": None, "revision": None},
    "0.8": {
        "alpha_pattern": {}, "loftq_config": {}, "megatron_config": None, "megatron_core": "megatron.core",
        "rank_pattern": {}, "use_rslora": False,
    },
    "0.10": {"layer_replication": None, "use_dora": False},
    "0.14": {"eva_config": None, "exclude_modules": None, "lora_bias": False},
    "0.15": {"corda_config": None, "trainable_token_indices": None},
    "0.17": {"qalora_group_size": 16, "target_parameters": None, "use_qalora": False},
    "0.18": {"alora_invocation_tokens": None, "arrow_config": None, "ensure_weight_tying": False, "peft_version": "1"},
}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
def test_the_defaults_of_every_release_mean_the_same(release: str) -> None:
    written: dict[str, Any] = {}
    for name, fields in RELEASES.items():
        written |= fields
        if name == release:
            break
    assert parse(**written) == parse()


def test_every_field_of_the_installed_peft_is_known() -> None:
    written = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]).to_dict()  # type: ignore[no-untyped-call]  # PEFT gives it no types
    known = {"peft_type": "LORA", "target_modules": sorted(written["target_modules"])}
    assert parse(**written | known) == parse()
    for key in written.keys() - known.keys():
        value = {"an unknown shape": [[{"of": key}]]}
        assert all("an unknown setting" not in reason for reason in reasons_of(**{key: value})), key


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "x", "unsloth_fixed": True}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_dropout": 0, "task_type": None, "use_rslora": None, "use_dora": None, "bias": "none"},
        {"rank_pattern": None, "alpha_pattern": None, "init_lora_weights": None, "layers_pattern": []},
        {"runtime_config": {"ephemeral_gpu_offload": True}, "velora_config": {"num_groups": 64}},
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"},
    ],
)
def test_what_trainers_write_beside_it_changes_nothing(settings: dict[str, Any]) -> None:
    assert parse(**settings) == parse()


@pytest.mark.parametrize("value", [None, False, 0, 0.0, "", [], {}, {"a": None, "b": {"c": False}}])
def test_an_unknown_setting_that_says_nothing_is_accepted(value: object) -> None:
    assert parse(some_future_variant=value).rank == 4


@pytest.mark.parametrize("value", [True, 1, "x", [0], {"a": 1}])
def test_an_unknown_setting_that_says_something_is_refused_by_name(value: object) -> None:
    assert "'some_future_variant': an unknown setting" in refusal(some_future_variant=value)


@pytest.mark.parametrize(
    ("key", "value", "feature"),
    [
        ("alora_invocation_tokens", [1, 2], "aLoRA"),
        ("use_bdlora", {"nblocks": 2}, "block-diagonal"),
        ("use_qalora", True, "QA-LoRA"),
        ("layer_replication", [[0, 4], [2, 5]], "layer replication"),
        ("megatron_config", {"hidden_size": 8}, "Megatron"),
        ("target_parameters", ["experts.gate_up_proj"], "bare parameters"),
        ("arrow_config", {"top_k": 3}, "Arrow"),
        ("kasa_config", {"beta": 1e-4}, "KaSA"),
        ("monteclora_config", {"num_samples": 8}, "MonteCLoRA"),
        ("bias", "some", "'lora_only'"),
        ("bias", ["none"], "'lora_only'"),
        ("init_lora_weights", "pissa", "keeps the base model's weights"),
        ("init_lora_weights", "pissa_niter_16", "keeps the base model's weights"),
        ("init_lora_weights", "olora", "keeps the base model's weights"),
        ("init_lora_weights", "corda", "keeps the base model's weights"),
        ("init_lora_weights", "loftq", "keeps the base model's weights"),
        ("init_lora_weights", "lora_ga", "keeps the base model's weights"),
        ("init_lora_weights", 1, "keeps the base model's weights"),
        ("peft_type", "ADALORA", "'LORA'"),
        ("peft_type", None, "'LORA'"),
        ("peft_type", ["LORA"], "'LORA'"),
    ],
)
def test_a_feature_that_is_not_served_is_refused_by_name(key: str, value: object, feature: str) -> None:
    text = refusal(**{key: value})
    assert f"{key}: expected" in text
    assert feature in text


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_an_initialisation_that_keeps_the_base_model_is_served(init: object) -> None:
    assert parse(init_lora_weights=init).rank == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0), ("r", -1), ("r", 8.0), ("r", "8"), ("r", True), ("r", None), ("r", 10**30),
        ("lora_alpha", "16"), ("lora_alpha", None), ("lora_alpha", True), ("lora_alpha", 10**40),
        ("target_modules", None), ("target_modules", []), ("target_modules", ""), ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}), ("target_modules", "(q_proj"),
        ("exclude_modules", [None]), ("exclude_modules", "*"), ("exclude_modules", 3),
        ("layers_to_transform", [-1]), ("layers_to_transform", ["0"]), ("layers_to_transform", [True]),
        ("layers_pattern", "(h|layers)"), ("layers_pattern", [1]),
        ("rank_pattern", {"q_proj": 0}), ("rank_pattern", {"(": 4}), ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"q_proj": "x"}), ("alpha_pattern", {f"{i}": 1 for i in range(5000)}),
        ("use_rslora", 1), ("use_rslora", "true"), ("use_dora", 1), ("lora_bias", "all"),
        ("modules_to_save", [1]), ("modules_to_save", {"norm": 1}), ("modules_to_save", ["norm"] * 5000),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(key: str, value: object) -> None:
    assert f"{key}: " in refusal(**{key: value})


def test_every_reason_is_listed() -> None:
    text = refusal(use_qalora=True, r=0, bias="some")
    assert all(key in text for key in ("use_qalora", "r:", "bias"))


def test_layers_go_with_names_and_not_with_an_expression() -> None:
    assert parse(layers_to_transform=3).layers == frozenset({3})
    assert parse(layers_to_transform=[]).layers is None
    assert "layers_to_transform: expected nothing beside a regular expression" in refusal(
        target_modules=".*q_proj", layers_to_transform=[0]
    )


def test_dora_biases_and_saved_modules_are_read_and_a_bias_beside_dora_is_refused_as_in_peft() -> None:
    assert parse(use_dora=True).features == ("dora",)
    assert parse(lora_bias=True).features == ("lora_bias",)
    assert parse(modules_to_save=["norm", "norm"]).modules_to_save == ("norm",)
    assert parse(modules_to_save=["norm"]).features == ("modules_to_save",)
    assert "lora_bias: expected no bias on lora_B beside DoRA" in refusal(use_dora=True, lora_bias=True)


def test_trained_tokens_are_those_of_the_embedding_unless_it_says_whose() -> None:
    assert parse(trainable_token_indices=[4, 2]).trained_tokens == (("embed_tokens", (4, 2)),)
    by_module = {"embed_tokens": [1], "lm_head": [2, 3]}
    found = parse(trainable_token_indices=by_module)
    assert found.trained_tokens == (("embed_tokens", (1,)), ("lm_head", (2, 3)))
    assert found.features == ("trained_tokens",)
    nothings: tuple[object, ...] = (None, [], {})
    for nothing in nothings:
        assert parse(trainable_token_indices=nothing).trained_tokens == ()


@pytest.mark.parametrize("value", [[-1], [1, 1], ["a"], [1.0], [True], {"embed_tokens": 3}, {"lm_head": [2, 2]}, "1"])
def test_trained_tokens_are_distinct_ids(value: object) -> None:
    with pytest.raises(AdapterRefused, match="trainable_token_indices: expected token ids from 0, each once"):
        parse(trainable_token_indices=value)


def test_scales_follow_ranks_patterns_and_rslora() -> None:
    config = parse(rank_pattern={r"layers\.1\..*": 16, "q_proj": 2}, alpha_pattern={"v_proj": 5.5})
    assert [config.rank_of(f"model.layers.{layer}.self_attn.q_proj") for layer in (0, 1)] == [2, 16]
    assert config.rank_of("model.layers.0.self_attn.v_proj") == 4
    assert config.scale("model.layers.0.self_attn.q_proj", 2) == 4.0
    assert config.scale("model.layers.0.self_attn.v_proj", 4) == 5.5 / 4
    assert parse(use_rslora=True).scale("q_proj", 16) == 8 / math.sqrt(16)
    assert config.features == ("alpha_pattern", "rank_pattern")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected an object"),
        (b"\xff\xfe{}", "expected JSON"),
        (b'{"r": 1, "r": 2}', "comes twice"),
        (b'{"lora_alpha": Infinity}', "Infinity is not a JSON number"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b" " * (MAX_CONFIG_BYTES + 1), "expected at most"),
    ],
)
def test_what_is_no_configuration_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(AdapterRefused, match=why):
        parse_config(raw)


def test_many_regular_expressions_are_refused() -> None:
    assert "at most 16 regular expressions" in refusal(rank_pattern={f".*{i}": 4 for i in range(17)})
    assert len(parse(rank_pattern={f"layers.{i}.q_proj": 4 for i in range(500)}).rank_pattern) == 500


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="cannot be read"):
        read_config(tmp_path / "adapter_config.json")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*json.loads(Path("examples/adapters/sql/adapter_config.json").read_text()), "some_future_variant"]
)


@settings(max_examples=400, deadline=None)
@given(changes=st.dictionaries(KEYS, ANY, max_size=4))
def test_any_values_give_a_configuration_or_a_refusal(changes: dict[str, Any]) -> None:
    try:
        config = parse(**changes)
    except AdapterRefused:
        return
    assert config.rank > 0
    assert math.isfinite(config.scale("model.layers.0.self_attn.q_proj", config.rank))


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 800), st.integers(0, 7)), max_size=6), length=st.integers(0, 1100))
def test_a_damaged_configuration_gives_one_or_a_refusal(flips: list[tuple[int, int]], length: int) -> None:
    raw = bytearray(Path("examples/adapters/sql/adapter_config.json").read_bytes())
    for position, bit in flips:
        raw[position] ^= 1 << bit
    try:
        config = parse_config(bytes(raw[:length]))
    except AdapterRefused:
        return
    assert config.rank > 0
