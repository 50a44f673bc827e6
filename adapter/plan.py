"""The plan of an adapter: which two tensors go to which module of a base model, or every reason why that cannot be.

Knows the configuration, the header and the base model's shapes, and reads no data. The promise it keeps: every tensor
of the file is used, every tensor that the configuration asks for is there, and each has exactly the shape that the
module gives it. The registry asks before it stores a version and the worker before it loads one.

A module W [D_out, D_in] is targeted by lora_A [R, D_in] and lora_B [D_out, R]: W·x + scale·B·(A·x). With lora_bias,
lora_B adds scale·bias [D_out] too. With DoRA, a magnitude [D_out] replaces the norm of each row of W + scale·B·A. An
embedding W [V, D] is targeted by lora_embedding_A [R, V] and lora_embedding_B [D, R], W[t] + scale·B·A[:, t]: the input
side only, also where the head is tied. A norm that was fully trained is in the file under its own name, and replaces
the base model's; what a file may hold for the embedding and the head is in `adapter.ends`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adapter.config import PeftConfig
from adapter.ends import OwnEnd, own_ends
from adapter.errors import AdapterRefused
from adapter.header import Header, TensorInfo, shown
from adapter.keys import KEY_PREFIX
from adapter.targets import is_embedding, is_head, is_head_norm, is_norm, saved, targeted

MAX_RANK = 512
DTYPES = ("BF16", "F16", "F32")

# What tensors of features that are not served are called, by a part of the key.
_FEATURE_OF_KEY = {
    "lora_diag": "KaSA's singular values",
    "lora_E": "AdaLoRA's singular values",
    "ranknum": "AdaLoRA's ranks",
    "trainable_tokens": "trained tokens",
    "base_layer.": "a copy of the base model's weights",
    "modules_to_save": "a fully trained module",
}

# Features that a target or the file makes, not the configuration.
EMBEDDING_LORA, HEAD_LORA = "embedding_lora", "head_lora"
OWN_VOCABULARY = "own_vocabulary"


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One targeted module: the keys of its A [rank, in_features] and B [out_features, rank], and its scale.

    An embedding has the features that it looks up, its vocabulary, and out_features, its width.
    magnitude_key: of DoRA's magnitude [out_features]; bias_key: of the bias [out_features] on B; None without.
    """

    name: str
    rank: int
    scale: float
    a_key: str
    b_key: str
    in_features: int
    out_features: int
    magnitude_key: str | None = None
    bias_key: str | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the module with the shape that it must have."""
        shapes: dict[str, tuple[int, ...]] = {
            self.a_key: (self.rank, self.in_features),
            self.b_key: (self.out_features, self.rank),
        }
        return shapes | {key: (self.out_features,) for key in (self.magnitude_key, self.bias_key) if key is not None}


@dataclass(frozen=True, slots=True)
class SavedNorm:
    """A norm of the adapter's own: the key of its weight [width]."""

    name: str
    key: str
    width: int


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """All modules of an adapter, in the order of the base model's."""

    modules: tuple[LoraModule, ...]
    norms: tuple[SavedNorm, ...]
    ends: tuple[OwnEnd, ...]
    features: tuple[str, ...]
    num_bytes: int

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules)

    @property
    def is_composable(self) -> bool:
        """Whether it has a meaning at another weight than 1 and beside other adapters: that a row's outputs are sums.

        DoRA's magnitude is the norm of all that a row applies, so there is none for a part or for a sum of it. A norm's
        weight takes the place of the base model's, and only one can; so do rows of the embedding and the head, of which
        a copy may hold none that differ: see `inference.lora.rows`.
        """
        has_rows = any(end.saved_key is not None or end.tokens is not None for end in self.ends)
        return not self.norms and not has_rows and all(module.magnitude_key is None for module in self.modules)

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The last parts of the modules' names, sorted, each once."""
        return tuple(sorted({module.name.rpartition(".")[2] for module in self.modules}))


def plan(
    config: PeftConfig, header: Header, modules: Mapping[str, tuple[int, int]], *, max_rank: int = MAX_RANK
) -> AdapterPlan:
    """Maps every tensor to a module; `modules` gives the base model's (out_features, in_features) by name.

    Raises AdapterRefused with all reasons.
    """
    reasons: list[str] = []
    found: list[LoraModule] = []
    features = set(config.features)
    ends = own_ends(config, header, modules, reasons)
    wanted = _with_ties(targeted(config, modules), config, header, modules)
    for name in wanted:
        out_features, in_features = modules[name]
        infix, suffix = "lora_", ".weight"
        if is_embedding(name) or is_head(name):
            _check_end(name, ends.get(name), config, reasons, is_resized=_is_resized(name, ends, modules))
            features.add(EMBEDDING_LORA if is_embedding(name) else HEAD_LORA)
            out_features = ends[name].num_rows if name in ends else out_features
        if is_embedding(name):
            out_features, in_features = in_features, out_features
            infix, suffix = "lora_embedding_", ""
        rank = config.rank_of(name)
        module = LoraModule(
            name=name,
            rank=rank,
            scale=config.scale(name, rank),
            a_key=f"{KEY_PREFIX}{name}.{infix}A{suffix}",
            b_key=f"{KEY_PREFIX}{name}.{infix}B{suffix}",
            in_features=in_features,
            out_features=out_features,
            magnitude_key=f"{KEY_PREFIX}{name}.lora_magnitude_vector" if config.use_dora else None,
            bias_key=f"{KEY_PREFIX}{name}.lora_B.bias" if config.lora_bias else None,
        )
        found.append(module)
        _check_module(module, header, reasons, max_rank=max_rank)
    if not wanted:
        reasons.append("target_modules: expected at least one module of the base model, found none that matches")
    norms = _norms(config, header, modules, reasons)
    for end in ends.values():
        for key, shape in end.shapes.items():
            _check_tensor(key, shape, header, reasons)
        if _is_resized(end.name, ends, modules):
            features.add(OWN_VOCABULARY)
    used = {norm.key for norm in norms} | {key for module in found for key in module.shapes}
    used |= {key for end in ends.values() for key in end.shapes}
    reasons.extend(_why_unused(key, header.tensors[key], modules) for key in header.tensors if key not in used)
    if reasons:
        raise AdapterRefused(reasons)
    num_bytes = sum(info.num_bytes for info in header.tensors.values())
    return AdapterPlan(tuple(found), norms, tuple(ends.values()), tuple(sorted(features)), num_bytes)


def _with_ties(
    wanted: list[str], config: PeftConfig, header: Header, modules: Mapping[str, tuple[int, int]]
) -> list[str]:
    """And the end that `ensure_weight_tying` adds to the other; it has tensors of its own in the file."""
    if not config.ensures_weight_tying or not any(is_embedding(name) or is_head(name) for name in wanted):
        return wanted
    tied = {name for name in modules if is_head(name) and f"{KEY_PREFIX}{name}.lora_A.weight" in header.tensors}
    tied |= {name for name in modules if f"{KEY_PREFIX}{name}.lora_embedding_A" in header.tensors}
    return [name for name in modules if name in tied or name in wanted]


def _is_resized(name: str, ends: Mapping[str, OwnEnd], modules: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the adapter gives an end another number of rows than the base model's."""
    return name in ends and ends[name].num_rows != modules[name][0]


def _norms(
    config: PeftConfig, header: Header, modules: Mapping[str, tuple[int, int]], reasons: list[str]
) -> tuple[SavedNorm, ...]:
    """The norms that `modules_to_save` asks for, in the order of the base model's modules."""
    found: set[str] = set()
    for entry, names in saved(config, modules).items():
        if not names:
            reasons.append(f"modules_to_save: expected names of the base model's modules, found {shown(entry)}")
        found.update(names)
    norms = []
    for name in (name for name in modules if name in found and not is_embedding(name) and not is_head(name)):
        if is_head_norm(name) or not is_norm(name):
            reasons.append(
                f"module {name}: full training of other modules than a layer's norms, the embedding and the head is "
                "not served"
            )
            continue
        norm = SavedNorm(name, f"{KEY_PREFIX}{name}.weight", modules[name][0])
        norms.append(norm)
        _check_tensor(norm.key, (norm.width,), header, reasons)
    return tuple(norms)


def _check_module(module: LoraModule, header: Header, reasons: list[str], *, max_rank: int) -> None:
    if module.rank > max_rank:
        reasons.append(f"module {module.name}: expected a rank of at most {max_rank}, found {module.rank}")
    if not math.isfinite(module.scale):
        reasons.append(f"module {module.name}: expected a finite scale, found {module.scale}")
    for key, shape in module.shapes.items():
        _check_tensor(key, shape, header, reasons)


def _check_end(name: str, own: OwnEnd | None, config: PeftConfig, reasons: list[str], *, is_resized: bool) -> None:
    """What is served on linear layers and not on the model's ends, its embedding and its head."""
    if own is not None and (own.saved_key is not None or own.tokens is not None):
        reasons.append(f"module {name}: expected LoRA or full training of it, found both")
    if is_embedding(name) and config.lora_bias:
        reasons.append(f"module {name}: a bias on an embedding's LoRA is not served")
    if is_resized and is_head(name) and (config.use_dora or config.lora_bias):
        reasons.append(f"module {name}: DoRA or a bias beside a resized vocabulary is not served")


def _check_tensor(key: str, shape: tuple[int, ...], header: Header, reasons: list[str]) -> None:
    info = header.tensors.get(key)
    if info is None:
        reasons.append(f"tensor {key!r}: expected {list(shape)}, found no such tensor")
    elif info.shape != shape:
        reasons.append(f"tensor {key!r}: expected {list(shape)}, found {list(info.shape)}")
    elif info.dtype not in DTYPES:
        reasons.append(f"tensor {key!r}: expected one of {', '.join(DTYPES)}, found {info.dtype}")


def _why_unused(key: str, info: TensorInfo, modules: Mapping[str, tuple[int, int]]) -> str:
    what = f"tensor {shown(key)} {list(info.shape)}"
    feature = next((feature for part, feature in _FEATURE_OF_KEY.items() if part in key), None)
    if key.endswith(".bias") and "lora_" not in key:
        feature = "a trained bias"
    if feature is not None:
        return f"{what}: {feature} is not served"
    module, separator, _ = key.removeprefix(KEY_PREFIX).partition(".lora_")
    if not key.startswith(KEY_PREFIX) or not separator:
        return f"{what}: expected a name like '{KEY_PREFIX}MODULE.lora_A.weight'"
    if module not in modules:
        return f"{what}: the base model has no module {shown(module)}"
    return f"{what}: the configuration does not ask for it"
