"""The Llama family as one decoder: Llama, SmolLM2, Mistral, Qwen2 and Qwen3 differ by flags of ModelConfig.

Knows a batch's tensors and a paged KV cache; knows no requests. One forward pass, T rows:

    token_ids ─► embedding ─┬► norm ► qkv ► rotary ► write_kv ► attend ► o ─┐
                            │  norm ► gate_up ► silu · up ► down ◄──────────┘ added to the residual, L times
                            └► norm ► head, on the rows whose logits are wanted ─► float32 [B_sampled, V]

The norms take the residual with them, so that adding and norming is one op. Roundings are where transformers has them,
except inside the ops of `kernels`, which compute in float32 and round once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

import kernels
from inference.models.config import ModelConfig, read_config
from inference.models.layers import RotaryAngles
from inference.models.linear import LoraHead, LoraLinear, PackedLinear
from inference.models.norm import LoraNorm
from inference.models.precision import choose_precision
from inference.models.sites import SitePart, SiteShape
from inference.models.weights import Checkpoint

if TYPE_CHECKING:
    from inference.engine.batch import Batch

log = logging.getLogger(__name__)
NORMS = ("input", "post_attention")  # of a layer


class KVCache(Protocol):
    """Keys and values of every layer, [num_blocks, block_size, H_kv, D] each, in the model's dtype."""

    def k(self, layer: int) -> Tensor: ...
    def v(self, layer: int) -> Tensor: ...


class Llama:
    """A decoder ready to run. `sites` says where adapters act; a site's index is its place in it."""

    def __init__(self, config: ModelConfig, weights: Weights, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.sites = sites(config)
        self._ends = _ends(config)
        self._weights = weights
        self._angles = RotaryAngles(config.rope, head_dim=config.head_dim, dtype=dtype, device=device)

    @classmethod
    def load(
        cls, folder: Path, dtype: str = "auto", device: str = "cpu", *, linear: type[PackedLinear] = PackedLinear
    ) -> Llama:
        """Read a Hugging Face folder and pack its weights. Raises BaseModelRefused with every reason."""
        config = read_config(folder)
        target = torch.device(device)
        precision = choose_precision(dtype, published=config.dtype, device=target)
        checkpoint = Checkpoint(folder, config)
        weights = load_weights(checkpoint, config, dtype=precision.dtype, device=target, make_linear=linear)
        log.info("%s runs in %s because %s", folder, precision.dtype, precision.reason)
        return cls(config, weights, dtype=precision.dtype, device=target)

    def forward(self, batch: Batch, kv: KVCache) -> Tensor:
        """Compute every row, fill their places in the cache, and return the logits of `batch.logit_rows`.

        Shapes: returns float32 [B_sampled, V], wider where an adapter of these rows adds tokens to the vocabulary.
        Mutates: kv. The caller holds torch.inference_mode.
        """
        weights, lora = self._weights, batch.lora
        known = batch.token_ids if lora is None else batch.token_ids.clamp(max=self.config.vocab_size - 1)
        residual = torch.nn.functional.embedding(known, weights.embedding)
        if lora is not None:
            lora.add_tokens(self._ends.embedding, batch.token_ids, residual)
        cos, sin = self._angles(batch.positions)
        x = weights.layers[0].input_norm(residual, lora)
        for index, layer in enumerate(weights.layers):
            if index > 0:
                x = layer.input_norm(x, lora, residual)
            x = self._attention(layer, x, batch, cos=cos, sin=sin, k_cache=kv.k(index), v_cache=kv.v(index))
            x = layer.post_attention_norm(x, lora, residual)
            x = layer.down(kernels.silu_mul(layer.gate_up(x, lora)), lora)
        if batch.logit_rows.shape[0] == 0:
            return x.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        if lora is not None:
            lora = lora.of_logits()
        x = weights.norm(x[batch.logit_rows], lora, residual[batch.logit_rows])
        return weights.head(x, lora)

    def _attention(
        self, layer: Layer, x: Tensor, batch: Batch, *, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor
    ) -> Tensor:
        config = self.config
        q, k, v = (
            layer.qkv(x, batch.lora)
            .view(x.shape[0], -1, config.head_dim)
            .split_with_sizes([config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        )
        if layer.q_norm is not None and layer.k_norm is not None:
            q = kernels.rms_norm(q.reshape(-1, config.head_dim), layer.q_norm, config.rms_norm_eps).view(q.shape)
            k = kernels.rms_norm(k.reshape(-1, config.head_dim), layer.k_norm, config.rms_norm_eps).view(k.shape)
        kernels.rotary(q, k, cos, sin)
        kernels.write_kv(k, v, k_cache, v_cache, batch.write_index)
        seen = kernels.attend(
            q,
            k_cache,
            v_cache,
            query_starts=batch.query_starts,
            context_lens=batch.context_lens,
            block_tables=batch.block_tables,
            scale=config.head_dim**-0.5,
            window=layer.window,
        )
        return layer.o(seen.view(x.shape[0], -1), batch.lora)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one decoder layer. The norms of q and k are Qwen3's, over the head size."""

    input_norm: LoraNorm
    qkv: LoraLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: LoraLinear
    post_attention_norm: LoraNorm
    gate_up: LoraLinear
    down: LoraLinear
    window: int | None


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model. A tied head is packed from the embedding, which stays plain for the look-up."""

    embedding: Tensor
    layers: tuple[Layer, ...]
    norm: LoraNorm
    head: LoraHead


def sites(config: ModelConfig) -> tuple[SiteShape, ...]:
    """Every place where an adapter may act, in this order: qkv, o, gate_up and down of each layer; the norms before the
    attention and after it of each layer; the embedding, the norm before the head, and the head.
    """
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    found = []
    for layer in range(config.num_layers):
        name = f"model.layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        qkv = (
            SitePart(f"{attention}.q_proj", q_width, has_bias=config.qkv_bias),
            SitePart(f"{attention}.k_proj", kv_width, has_bias=config.qkv_bias),
            SitePart(f"{attention}.v_proj", kv_width, has_bias=config.qkv_bias),
        )
        o = SitePart(f"{attention}.o_proj", hidden, has_bias=config.o_bias)
        gate_up = tuple(SitePart(f"{mlp}.{name}_proj", inner, has_bias=config.mlp_bias) for name in ("gate", "up"))
        down = SitePart(f"{mlp}.down_proj", hidden, has_bias=config.mlp_bias)
        found += [
            SiteShape(f"{attention}.qkv", hidden, qkv),
            SiteShape(f"{attention}.o", q_width, (o,)),
            SiteShape(f"{mlp}.gate_up", hidden, gate_up),
            SiteShape(f"{mlp}.down", inner, (down,)),
        ]
    norms = [f"model.layers.{n}.{norm}_layernorm" for n in range(config.num_layers) for norm in NORMS]
    embedding, head = SitePart("model.embed_tokens", hidden), SitePart("lm_head", config.vocab_size)
    return (
        *found,
        *(_norm_site(name, hidden) for name in norms),
        SiteShape(embedding.module, config.vocab_size, (embedding,)),
        _norm_site("model.norm", hidden),
        SiteShape(head.module, hidden, (head,)),
    )


def _norm_site(module: str, width: int) -> SiteShape:
    """A norm has a weight for each feature, as one column."""
    return SiteShape(module, 1, (SitePart(module, width),))


class Ends(NamedTuple):
    """Sites before and after the layers. The embedding's features are the vocabulary."""

    embedding: int
    norm: int
    head: int


def _ends(config: ModelConfig) -> Ends:
    first = 6 * config.num_layers
    return Ends(first, first + 1, first + 2)


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    make_linear: type[PackedLinear],
) -> Weights:
    """Fuse, convert and pack, one projection at a time, so that at most one is in memory both plain and packed."""

    def tensor(name: str) -> Tensor:
        return checkpoint.take(name, dtype).to(device)

    def linear(index: int) -> LoraLinear:
        shape = shapes[index]
        modules, has_bias = [part.module for part in shape.parts], shape.parts[0].has_bias
        weight = checkpoint.take_fused([f"{module}.weight" for module in modules], dtype).to(device)
        bias = checkpoint.take_fused([f"{module}.bias" for module in modules], dtype).to(device) if has_bias else None
        return LoraLinear(make_linear(weight, bias), site_index=index, shape=shape)

    def norm(name: str, index: int) -> LoraNorm:
        return LoraNorm(tensor(f"{name}.weight"), config.rms_norm_eps, site_index=index)

    shapes, ends, first_norm = sites(config), _ends(config), 4 * config.num_layers
    layers = []
    for index, window in enumerate(config.windows):
        name = f"model.layers.{index}"
        qkv, o, gate_up, down = range(4 * index, 4 * index + 4)
        layers.append(
            Layer(
                input_norm=norm(f"{name}.input_layernorm", first_norm + 2 * index),
                qkv=linear(qkv),
                q_norm=tensor(f"{name}.self_attn.q_norm.weight") if config.qk_norm else None,
                k_norm=tensor(f"{name}.self_attn.k_norm.weight") if config.qk_norm else None,
                o=linear(o),
                post_attention_norm=norm(f"{name}.post_attention_layernorm", first_norm + 2 * index + 1),
                gate_up=linear(gate_up),
                down=linear(down),
                window=window,
            )
        )
    embedding = tensor("model.embed_tokens.weight")
    head = make_linear(embedding if config.has_tied_head else tensor("lm_head.weight"))
    adapted_head = LoraHead(head, site_index=ends.head, shape=shapes[ends.head])
    return Weights(embedding, tuple(layers), norm("model.norm", ends.norm), adapted_head)
