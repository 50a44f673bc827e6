"""Reads the weights of a Hugging Face folder: safetensors in one file or in shards, mapped and not read ahead.

Knows the names and shapes of a Llama-family checkpoint. Every expected tensor must be there with its exact shape, and
every tensor of the files must be used: otherwise the folder is refused with the reasons before a weight is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inference.errors import BaseModelRefused
from inference.models.config import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOAT_DTYPES = ("BF16", "F16", "F32")
MOST_REASONS = 20  # enough to see what is wrong; a checkpoint of another model would give thousands
# Buffers that transformers once saved with the weights; they follow from the configuration.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

Shape = tuple[int, ...]


class _TensorFile(Protocol):
    """What is used of safetensors' reader, which carries no types."""

    def keys(self) -> Iterable[str]: ...
    def get_tensor(self, name: str) -> Tensor: ...
    def get_slice(self, name: str) -> _TensorView: ...


class _TensorView(Protocol):
    def get_shape(self) -> Iterable[int]: ...
    def get_dtype(self) -> str: ...


def expected_tensors(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a checkpoint, in the order of the layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}

    def add_linear(module: str, out_features: int, in_features: int, *, has_bias: bool) -> None:
        shapes[f"{module}.weight"] = (out_features, in_features)
        if has_bias:
            shapes[f"{module}.bias"] = (out_features,)

    for layer in range(config.num_layers):
        name = f"model.layers.{layer}"
        shapes[f"{name}.input_layernorm.weight"] = (hidden,)
        add_linear(f"{name}.self_attn.q_proj", q_width, hidden, has_bias=config.qkv_bias)
        add_linear(f"{name}.self_attn.k_proj", kv_width, hidden, has_bias=config.qkv_bias)
        add_linear(f"{name}.self_attn.v_proj", kv_width, hidden, has_bias=config.qkv_bias)
        if config.qk_norm:
            shapes[f"{name}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{name}.self_attn.k_norm.weight"] = (config.head_dim,)
        add_linear(f"{name}.self_attn.o_proj", hidden, q_width, has_bias=config.o_bias)
        shapes[f"{name}.post_attention_layernorm.weight"] = (hidden,)
        add_linear(f"{name}.mlp.gate_proj", inner, hidden, has_bias=config.mlp_bias)
        add_linear(f"{name}.mlp.up_proj", inner, hidden, has_bias=config.mlp_bias)
        add_linear(f"{name}.mlp.down_proj", hidden, inner, has_bias=config.mlp_bias)
    shapes["model.norm.weight"] = (hidden,)
    if not config.has_tied_head:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


class Checkpoint:
    """The tensors of a folder by name, checked against what the configuration expects when it is opened.

    Raises BaseModelRefused from the constructor, with every reason. The files are mapped, not read: each tensor comes
    to memory when it is taken, and what is taken is a copy, so that the files may change or go afterwards.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._files: dict[str, _TensorFile] = {}
        for file in _files(folder):
            self._open(file)
        expected = expected_tensors(config)
        if reasons := self._differences(expected, has_tied_head=config.has_tied_head):
            shown = reasons[:MOST_REASONS]
            if len(reasons) > len(shown):
                shown.append(f"and {len(reasons) - len(shown)} more")
            raise BaseModelRefused(f"{folder}: " + "; ".join(shown), reasons=tuple(shown))

    def take(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one tensor in `dtype`."""
        return self._files[name].get_tensor(name).to(dtype, copy=True)

    def take_fused(self, names: Sequence[str], dtype: torch.dtype) -> Tensor:
        """A copy of several tensors in `dtype`, one after the other along the first dimension."""
        return torch.cat([self._files[name].get_tensor(name).to(dtype) for name in names])

    def _open(self, path: Path) -> None:
        try:
            file: _TensorFile = safe_open(path, framework="pt")
            names = list(file.keys())
        except FileNotFoundError:
            raise BaseModelRefused(f"{path}: the file is missing") from None
        except (SafetensorError, OSError) as error:
            raise BaseModelRefused(f"{path}: {error}") from None
        for name in names:
            if name in self._files:
                raise BaseModelRefused(f"{path}: {name} is in another file too")
            self._files[name] = file

    def _differences(self, expected: Mapping[str, Shape], *, has_tied_head: bool) -> list[str]:
        reasons = [
            f"{name}: expected {list(shape)}, found none" for name, shape in expected.items() if name not in self._files
        ]
        for name, file in self._files.items():
            view = file.get_slice(name)
            shape = tuple(view.get_shape())
            if name not in expected:
                # Some tied models store their head once more; transformers ignores it, and so it is not read.
                if not (DERIVED.fullmatch(name) or (name == "lm_head.weight" and has_tied_head)):
                    reasons.append(f"{name}: not a tensor of this architecture")
            elif shape != expected[name]:
                reasons.append(f"{name}: expected {list(expected[name])}, found {list(shape)}")
            elif view.get_dtype() not in FLOAT_DTYPES:
                reasons.append(f"{name}: expected one of {', '.join(FLOAT_DTYPES)}, found {view.get_dtype()}")
        return reasons


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the single one, or those that the index names."""
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except FileNotFoundError:
        raise BaseModelRefused(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, found neither") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelRefused(f"{index}: not an index of safetensors files ({error!r})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise BaseModelRefused(f"{index}: expected names of .safetensors files beside it, found {name!r}")
    return [folder / name for name in names]
