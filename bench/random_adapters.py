"""Random LoRA adapters for load tests: standard PEFT folders that nudge a model without breaking it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapter.base_model import read_modules

# The norm of a delta relative to an initialised weight's: small enough for text to stay coherent, large enough to tell.
STRENGTH = 0.02
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapters(
    folder: Path, model: Path, *, count: int, rank: int, targets: tuple[str, ...] = LINEARS
) -> list[Path]:
    """`count` folders under `folder`, each seeded by its number; those already there are kept."""
    modules = {name: shape for name, shape in read_modules(model).items() if name.rsplit(".", 1)[-1] in targets}
    made = []
    for number in range(count):
        made.append(folder / f"rank{rank}-{number:04d}")
        if not (made[-1] / "adapter_model.safetensors").exists():
            _make(made[-1], modules, rank=rank, seed=number)
    return made


def _make(folder: Path, modules: dict[str, tuple[int, int]], *, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out_features, in_features) in modules.items():
        a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        b = torch.randn(out_features, rank, generator=generator) * STRENGTH / rank**0.5
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.bfloat16()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / "adapter_model.safetensors")
