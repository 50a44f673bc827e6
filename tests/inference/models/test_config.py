"""What a config.json means, and that nothing in it is overlooked."""

from __future__ import annotations

import json
import math

import pytest

from inference.errors import BaseModelRefused
from inference.models.config import RopeKind, parse_config, read_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 64}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_what_a_configuration_leaves_out_takes_the_values_of_transformers():
    config = parse_config(LLAMA)
    assert (config.num_kv_heads, config.head_dim, config.rms_norm_eps) == (4, 8, 1e-6)
    assert (config.rope.kind, config.rope.theta) == (RopeKind.DEFAULT, 10_000.0)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (False, False, False, False)
    assert (config.has_tied_head, config.dtype) == (False, "float32")
    assert config.windows == (None,) * 4


def test_the_rope_of_transformers_4_and_of_transformers_5_mean_the_same():
    old = parse_config(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}})
    older = parse_config(LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}})
    new = parse_config(LLAMA | {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}})
    assert old.rope == older.rope == new.rope
    assert (new.rope.kind, new.rope.theta, new.rope.original_max_positions) == (RopeKind.LLAMA3, 5e5, 64)


def test_yarn_is_stretched_from_the_original_context_to_the_factor_s():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    config = parse_config(LLAMA | {"rope_scaling": yarn})
    assert (config.rope.kind, config.rope.original_max_positions, config.max_positions) == (RopeKind.YARN, 256, 1024)
    assert config.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    mscale = parse_config(LLAMA | {"rope_scaling": yarn | {"mscale": 2.0, "mscale_all_dim": 0.5}})
    assert mscale.rope.attention_factor == pytest.approx((0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    beside = parse_config(LLAMA | {"original_max_position_embeddings": 128, "rope_scaling": yarn})
    assert (beside.rope.original_max_positions, beside.max_positions) == (128, 512)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_published_dtype_has_an_old_and_a_new_key(key):
    assert parse_config(LLAMA | {key: "bfloat16"}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("raw", "windows"),
    [
        (LLAMA | {"sliding_window": 64}, (None, None, None, None)),
        (MISTRAL, (64, 64, 64, 64)),
        (MISTRAL | {"sliding_window": None}, (None, None, None, None)),
        (QWEN2, (None, None, None, None)),
        (QWEN2 | {"use_sliding_window": True}, (None, None, None, None)),
        (QWEN2 | {"use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 64)),
        (
            QWEN2
            | {
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            },
            (None, 64, 64, None),
        ),
    ],
)
def test_windows_hold_where_the_architecture_says(raw, windows):
    assert parse_config(raw).windows == windows


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "expected one of LlamaForCausalLM"),
        ({"architectures": None}, "architectures: expected one of"),
        ({"hidden_size": "32"}, "hidden_size: expected a positive integer, found '32'"),
        ({"vocab_size": None}, "vocab_size: expected a positive integer, found None"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected a positive integer, found True"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: expected a positive number"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu, found 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights are not served"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads, 4"),
        ({"head_dim": 7}, "head_dim: expected an even number"),
        ({"attention_bias": "yes"}, "attention_bias: expected true or false"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            "rope_scaling.rope_type: expected one of default, linear, llama3, yarn, found 'dynamic'",
        ),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "found 'longrope'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor: expected a positive number"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor: expected a positive number"),
        ({"rope_scaling": 3}, "rope_scaling: expected an object"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "the whole head"),
        ({"partial_rotary_factor": 0.5}, "the whole head"),
        ({"dtype": "float8_e4m3fn"}, "dtype: expected one of bfloat16"),
        ({"architectures": ["MistralForCausalLM"]}, "sliding_window: expected a positive integer or null"),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 4,
                "layer_types": ["full_attention", "chunked_attention", "full_attention", "full_attention"],
            },
            "layer_types: expected full_attention or sliding_attention, found ['chunked_attention']",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(change, expected):
    with pytest.raises(BaseModelRefused) as refused:
        parse_config(LLAMA | change)
    assert expected in str(refused.value)


def test_every_reason_is_told_at_once():
    with pytest.raises(BaseModelRefused) as refused:
        parse_config(LLAMA | {"vocab_size": 0, "hidden_act": "relu", "quantization_config": {}})
    assert len(refused.value.reasons) == 3


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "no config.json"), ("{", "not JSON"), ("[]", "expected a JSON object, found list")]
)
def test_a_folder_without_a_readable_configuration_is_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseModelRefused, match=expected):
        read_config(tmp_path)


def test_a_folder_is_read_as_its_object_says(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path) == parse_config(LLAMA)
