"""A model of three tiny layers as a Hugging Face folder, and adapters for it: enough to test a whole worker with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
# Of each kind of layer: (out_features, in_features).
WIDTHS = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
WIDTHS |= {"gate_proj": (40, 32), "up_proj": (40, 32), "down_proj": (32, 40)}


def write_model(folder: Path) -> None:
    """A random Llama in float32, with a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **BASE), dtype=torch.float32)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """Every token is one printable character."""
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: BASE["vocab_size"]]
    vocabulary = {character: number for number, character in enumerate(characters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_adapter(
    folder: Path, *, seed: int = 0, rank: int = 4, targets: Sequence[str] = ("q_proj", "v_proj"), **config: Any
) -> Path:
    """A random adapter, strong enough to change what the model answers; more keys of its configuration by name."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(BASE["num_hidden_layers"]):
        for target in targets:
            block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            key = f"base_model.model.model.layers.{layer}.{block}.{target}"
            out_features, in_features = WIDTHS[target]
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
            if config.get("use_dora"):
                tensors[f"{key}.lora_magnitude_vector"] = torch.rand(out_features, generator=generator) + 0.5
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    found = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(targets), **config}
    (folder / "adapter_config.json").write_text(json.dumps(found))
    return folder
