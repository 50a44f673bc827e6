"""What a model is, from its config.json: the numbers and the flags that make one architecture of the Llama family.

Knows the keys of Hugging Face configurations, those of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`)
and of transformers 5 (`rope_parameters`, `dtype`). Knows no weights. Whatever is not understood is refused by name:
a model that is served although one of its options was overlooked would be silently wrong.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.errors import BaseModelRefused


class Windows(enum.Enum):
    """What `sliding_window` means to an architecture."""

    NEVER = "no layer has one, whatever the configuration carries"
    ALWAYS = "every layer has it"
    BY_LAYER = "the layers that layer_types or max_window_layers name have it, if use_sliding_window"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture fixes; None means that its config.json says."""

    qkv_bias: bool | None
    o_bias: bool | None
    mlp_bias: bool | None
    qk_norm: bool
    windows: Windows


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture(None, None, None, qk_norm=False, windows=Windows.NEVER),
    "MistralForCausalLM": Architecture(False, False, False, qk_norm=False, windows=Windows.ALWAYS),
    "Qwen2ForCausalLM": Architecture(True, False, False, qk_norm=False, windows=Windows.BY_LAYER),
    "Qwen3ForCausalLM": Architecture(None, None, False, qk_norm=True, windows=Windows.BY_LAYER),
}

DEFAULT_ROPE_THETA = 10_000.0  # of the RoFormer paper, and of every configuration that does not say


class RopeKind(enum.Enum):
    """How the rotary frequencies are stretched for longer contexts."""

    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding; what is beyond theta matters only to the kinds that name it.

    `attention_factor` multiplies cosines and sines. `beta_fast` and `beta_slow` are turns in the original context:
    pairs of features that make more than the first are kept, those that make fewer than the second are stretched.
    """

    kind: RopeKind = RopeKind.DEFAULT
    theta: float = DEFAULT_ROPE_THETA
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    """Whether the pairs at which stretching begins and ends are whole numbers."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family. `windows` has one entry per layer: positions seen, or None for all before."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    has_tied_head: bool
    dtype: str
    """The dtype that the weights were published in: "bfloat16", "float16" or "float32"."""


def read_config(folder: Path) -> ModelConfig:
    """The configuration in `folder`/config.json. Raises BaseModelRefused with every reason found."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelRefused(f"{folder} holds no config.json") from None
    except ValueError as error:
        raise BaseModelRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BaseModelRefused(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return parse_config(raw)


def parse_config(raw: Mapping[str, object]) -> ModelConfig:
    """The configuration that a config.json's object means. Raises BaseModelRefused with every reason found."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BaseModelRefused(f"architectures: expected one of {', '.join(ARCHITECTURES)}, found {names}")
    architecture = ARCHITECTURES[name]
    keys = _Keys(raw)
    hidden_size, num_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    num_layers, max_positions = keys.size("num_hidden_layers"), keys.size("max_position_embeddings")
    attention_bias = keys.flag("attention_bias", default=False)
    rope = _rope(keys, max_positions)
    if rope.kind is RopeKind.YARN:  # whose published configurations keep the original length and name the factor
        max_positions = max(max_positions, int(rope.factor * rope.original_max_positions))
    config = ModelConfig(
        architecture=name,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=keys.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.size("num_key_value_heads", default=num_heads),
        head_dim=keys.size("head_dim", default=max(1, hidden_size // num_heads)),
        max_positions=max_positions,
        rms_norm_eps=keys.number("rms_norm_eps", default=1e-6),
        rope=rope,
        windows=_windows(keys, architecture.windows, num_layers),
        qkv_bias=attention_bias if architecture.qkv_bias is None else architecture.qkv_bias,
        o_bias=attention_bias if architecture.o_bias is None else architecture.o_bias,
        mlp_bias=keys.flag("mlp_bias", default=False) if architecture.mlp_bias is None else architecture.mlp_bias,
        qk_norm=architecture.qk_norm,
        has_tied_head=keys.flag("tie_word_embeddings", default=False),
        dtype=_dtype(keys),
    )
    _refuse_what_is_not_served(keys, config)
    if keys.reasons:
        raise BaseModelRefused(f"config.json of a {name}: " + "; ".join(keys.reasons), reasons=tuple(keys.reasons))
    return config


class _Keys:
    """Typed reads from a config.json that collect every reason to refuse it; null means absent, as in transformers."""

    def __init__(self, raw: Mapping[str, object], *, prefix: str = "", reasons: list[str] | None = None) -> None:
        self.raw = raw
        self.prefix = prefix
        self.reasons: list[str] = [] if reasons is None else reasons

    def refuse(self, key: str, expected: str) -> None:
        self.reasons.append(f"{self.prefix}{key}: expected {expected}, found {self.raw.get(key)!r}")

    def size(self, key: str, *, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.refuse(key, "a positive integer")
        return 1  # stands in until the reasons are raised

    def number(self, key: str, *, default: float) -> float:
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        self.refuse(key, "a positive number")
        return default

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.refuse(key, "true or false")
        return default

    def inner(self, key: str) -> _Keys | None:
        """The object under `key`, sharing this one's reasons."""
        value = self.raw.get(key)
        if isinstance(value, dict):
            return _Keys(value, prefix=f"{self.prefix}{key}.", reasons=self.reasons)
        if value is not None:
            self.refuse(key, "an object")
        return None


def _rope(keys: _Keys, max_positions: int) -> RopeConfig:
    theta = keys.number("rope_theta", default=DEFAULT_ROPE_THETA)
    scaling = keys.inner("rope_parameters") or keys.inner("rope_scaling")
    if scaling is None:
        return RopeConfig(theta=theta)
    kind = scaling.raw.get("rope_type") or scaling.raw.get("type") or RopeKind.DEFAULT.value
    kinds = [known.value for known in RopeKind]
    if kind not in kinds:
        scaling.reasons.append(f"{scaling.prefix}rope_type: expected one of {', '.join(kinds)}, found {kind!r}")
        return RopeConfig(theta=theta)
    if scaling.number("partial_rotary_factor", default=1.0) != 1.0:
        scaling.refuse("partial_rotary_factor", "1, the whole head")
    needed = {
        RopeKind.LINEAR: ["factor"],
        RopeKind.LLAMA3: ["factor", "low_freq_factor", "high_freq_factor"],
        RopeKind.YARN: ["factor"],
    }
    for key in needed.get(RopeKind(kind), []):
        if scaling.raw.get(key) is None:
            scaling.refuse(key, "a positive number")
    factor = scaling.number("factor", default=1.0)
    return RopeConfig(
        kind=RopeKind(kind),
        theta=scaling.number("rope_theta", default=theta),
        factor=factor,
        low_freq_factor=scaling.number("low_freq_factor", default=1.0),
        high_freq_factor=scaling.number("high_freq_factor", default=4.0),
        # The key beside rope_scaling goes before the one in it, as in transformers.
        original_max_positions=keys.size(
            "original_max_position_embeddings",
            default=scaling.size("original_max_position_embeddings", default=max_positions),
        ),
        attention_factor=_attention_factor(scaling, factor) if kind == RopeKind.YARN.value else 1.0,
        beta_fast=scaling.number("beta_fast", default=32.0),
        beta_slow=scaling.number("beta_slow", default=1.0),
        is_truncated=scaling.flag("truncate", default=True),
    )


def _attention_factor(scaling: _Keys, factor: float) -> float:
    """YaRN's, 0.1 ln(factor) + 1 unless the configuration says otherwise, in one of two ways."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    default = scale(1.0)
    if scaling.raw.get("mscale") and scaling.raw.get("mscale_all_dim"):
        default = scale(scaling.number("mscale", default=1.0)) / scale(scaling.number("mscale_all_dim", default=1.0))
    return scaling.number("attention_factor", default=default)


def _windows(keys: _Keys, windows: Windows, num_layers: int) -> tuple[int | None, ...]:
    raw, no_window = keys.raw, (None,) * num_layers
    if windows is Windows.ALWAYS and "sliding_window" not in raw:
        keys.reasons.append("sliding_window: expected a positive integer or null, found neither")
    if windows is Windows.NEVER or raw.get("sliding_window") is None:
        return no_window
    window = keys.size("sliding_window")
    if windows is Windows.ALWAYS:
        return (window,) * num_layers
    if not keys.flag("use_sliding_window", default=False):
        return no_window
    layer_types = raw.get("layer_types")
    if layer_types is None:
        first = keys.size("max_window_layers", default=28)  # transformers' default for both Qwen models
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        keys.refuse("layer_types", f"{num_layers} names")
        return no_window
    if unknown := set(map(str, layer_types)) - {"full_attention", "sliding_attention"}:
        keys.reasons.append(f"layer_types: expected full_attention or sliding_attention, found {sorted(unknown)}")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _dtype(keys: _Keys) -> str:
    known = ("bfloat16", "float16", "float32")
    key = "dtype" if keys.raw.get("dtype") is not None else "torch_dtype"
    value = keys.raw.get(key) or "float32"
    if value not in known:
        keys.refuse(key, f"one of {', '.join(known)}")
        return "float32"
    return str(value)


def _refuse_what_is_not_served(keys: _Keys, config: ModelConfig) -> None:
    raw = keys.raw
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        keys.refuse("hidden_act", "silu")
    if raw.get("quantization_config") is not None:
        keys.reasons.append("quantization_config: expected none, quantized weights are not served")
    if raw.get("partial_rotary_factor") not in (None, 1, 1.0):
        keys.refuse("partial_rotary_factor", "1, the whole head")
    if config.num_heads % config.num_kv_heads != 0:
        keys.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {config.num_heads}")
    if config.head_dim % 2 != 0:
        keys.refuse("head_dim", "an even number")
