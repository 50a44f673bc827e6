"""adapter_config.json: what an adapter says about itself. Knows PEFT's keys; does not know tensors or any base model.

Three kinds of keys: those read here; those that only matter to training; and features that this release does not serve,
which are refused by name as soon as they are used. A key that is none of the three is refused when its value says
anything, because ignoring it could mean serving something else than what was trained.

Source: `LoraConfig` of PEFT 0.21 (tuners/lora/config.py). Older versions write fewer keys, so a missing key means
PEFT's default.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.errors import AdapterRefused
from adapter.header import parse_json, shown
from adapter.patterns import Budget, Pattern

# A configuration that lists every module of a large model by its full name stays under a tenth of this.
MAX_CONFIG_BYTES = 2**20
MAX_PATTERNS = 4096
# Each name is compared with the end of every module's, so these are few; all norms of a deep model are half as many.
MAX_SAVED = 512
# Expressions with repeats or choices are slow to match; real configurations hold a handful.
MAX_REGULAR_EXPRESSIONS = 16
ALL_LINEAR = "all-linear"
EMBEDDING = "embed_tokens"  # what `trainable_token_indices` means without a name

# PEFT's own defaults, for keys that an older version did not write.
DEFAULT_RANK = 8
DEFAULT_ALPHA = 8.0

# They say where the adapter comes from or how it was trained; the answer does not depend on them.
_TRAINING_ONLY = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
        "fan_in_fan_out", "inference_mode", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core",
        "merge_weights", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
        "velora_config",
    }
)  # fmt: skip

# Features of PEFT that are not served, by key; any value but nothing uses them.
_NOT_SERVED = {
    "alora_invocation_tokens": "Activated LoRA (aLoRA)",
    "arrow_config": "Arrow routing",
    "enable_lora": "merged linear layers",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "megatron_config": "Megatron layers",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on bare parameters",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
}

# Initialisations that leave the base model's weights as they are. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) move
# a part of them into the adapter, so it is right only on a changed base model; PEFT can convert such an adapter, and
# then writes `true` here.
_SERVED_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

_READ_HERE = frozenset(
    {
        "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "init_lora_weights", "layers_pattern",
        "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r", "rank_pattern",
        "target_modules", "trainable_token_indices", "use_dora", "use_rslora",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Modules:
    """A choice of modules: names or last parts of names, or one expression for the whole name."""

    names: frozenset[str]
    expression: Pattern | None

    def matches(self, name: str) -> bool:
        """PEFT's rule: the whole expression, or the whole name or what follows one of its dots."""
        if self.expression is not None:
            return self.expression.matches(name)
        return name in self.names or self.matches_suffix(name)

    def matches_suffix(self, name: str) -> bool:
        """Whether what follows one of the name's dots is among the names."""
        return any(name[at + 1 :] in self.names for at, char in enumerate(name) if char == ".")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A configuration whose every feature is served. `targets_all_linear` stands for PEFT's "all-linear"."""

    rank: int
    alpha: float
    use_rslora: bool
    targets: Modules
    targets_all_linear: bool
    excluded: Modules | None
    layers: frozenset[int] | None
    layers_patterns: tuple[str, ...]
    rank_pattern: tuple[tuple[Pattern, int], ...]
    alpha_pattern: tuple[tuple[Pattern, float], ...]
    use_dora: bool
    lora_bias: bool
    ensures_weight_tying: bool
    modules_to_save: tuple[str, ...]
    trained_tokens: tuple[tuple[str, tuple[int, ...]], ...]
    """(end of a module's name, token ids): the tokens whose rows were trained by themselves."""

    def rank_of(self, module: str) -> int:
        """The rank of one module; the first pattern that matches wins."""
        return next((rank for pattern, rank in self.rank_pattern if pattern.matches(module)), self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha of one module; the first pattern that matches wins."""
        return next((alpha for pattern, alpha in self.alpha_pattern if pattern.matches(module)), self.alpha)

    def scale(self, module: str, rank: int) -> float:
        """What B·A is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv:2312.03732)."""
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what goes beyond plain LoRA, sorted."""
        found = {
            "all_linear": self.targets_all_linear,
            "alpha_pattern": bool(self.alpha_pattern),
            "dora": self.use_dora,
            "exclude_modules": self.excluded is not None,
            "layers_to_transform": self.layers is not None,
            "lora_bias": self.lora_bias,
            "modules_to_save": bool(self.modules_to_save),
            "rank_pattern": bool(self.rank_pattern),
            "rslora": self.use_rslora,
            "target_regex": self.targets.expression is not None,
            "trained_tokens": bool(self.trained_tokens),
        }
        return tuple(sorted(name for name, is_used in found.items() if is_used))


def read_config(path: str | os.PathLike[str]) -> PeftConfig:
    """Reads and checks adapter_config.json. Raises AdapterRefused with every reason."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        raise AdapterRefused([f"{path.name}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    return parse_config(raw, what=path.name)


def parse_config(raw: bytes, *, what: str = "adapter_config.json") -> PeftConfig:
    """`read_config` for bytes already in memory."""
    if len(raw) > MAX_CONFIG_BYTES:
        raise AdapterRefused([f"{what}: expected at most {MAX_CONFIG_BYTES} bytes, found more"])
    values = parse_json(raw, what=what)
    if not isinstance(values, dict):
        raise AdapterRefused([f"{what}: expected an object"])
    reader = _Reader(values)
    config = reader.read()
    if reader.reasons:
        raise AdapterRefused([f"{what}: {reason}" for reason in reader.reasons])
    return config


def _says_nothing(value: object) -> bool:
    if isinstance(value, dict):
        return all(_says_nothing(one) for one in value.values())
    return value is None or value is False or value in (0, "", [])


class _Reader:
    """Turns JSON values into a PeftConfig and collects what is wrong on the way."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.reasons: list[str] = []
        self.num_expressions = 0
        self.budget = Budget()  # of all patterns and all that they are asked: whoever plans reads the file anew

    def read(self) -> PeftConfig:
        self.check_features()
        targets, targets_all_linear = self.targets()
        layers = self.layers()
        layers_patterns = self.names("layers_pattern")
        if targets.expression is not None and layers is not None:
            self.expected("layers_to_transform", "nothing beside a regular expression in target_modules", "a value")
        if self.values.get("use_dora") and self.values.get("lora_bias"):
            self.expected("lora_bias", "no bias on lora_B beside DoRA, as in PEFT", "true")
        if len(layers_patterns) > MAX_REGULAR_EXPRESSIONS:
            self.expected("layers_pattern", f"at most {MAX_REGULAR_EXPRESSIONS} names", str(len(layers_patterns)))
        for pattern in layers_patterns[:MAX_REGULAR_EXPRESSIONS]:
            # PEFT takes an expression here, and nobody writes one; a plain name cannot take long to match.
            if not pattern.replace(".", "").replace("_", "").isalnum():
                self.expected("layers_pattern", "the name of the list of layers, such as 'layers'", shown(pattern))
        return PeftConfig(
            rank=self.rank(self.values.get("r", DEFAULT_RANK), "r"),
            alpha=self.alpha(self.values.get("lora_alpha", DEFAULT_ALPHA), "lora_alpha"),
            use_rslora=self.flag("use_rslora"),
            targets=targets,
            targets_all_linear=targets_all_linear,
            excluded=self.excluded(),
            layers=layers,
            layers_patterns=layers_patterns,
            rank_pattern=tuple((key, self.rank(one, "rank_pattern")) for key, one in self.patterns("rank_pattern")),
            alpha_pattern=tuple((key, self.alpha(one, "alpha_pattern")) for key, one in self.patterns("alpha_pattern")),
            use_dora=self.flag("use_dora"),
            lora_bias=self.flag("lora_bias"),
            ensures_weight_tying=self.flag("ensure_weight_tying"),
            modules_to_save=self.saved(),
            trained_tokens=self.trained_tokens(),
        )

    def expected(self, key: str, what: str, found: str) -> None:
        self.reasons.append(f"{key}: expected {what}, found {found}")

    def check_features(self) -> None:
        peft_type = self.values.get("peft_type")
        if peft_type != "LORA":
            self.expected("peft_type", "'LORA'", _shown_value(peft_type))
        # Where the base model has no biases, as most, all of these say the same: the file tells, see adapter.plan.
        if (bias := self.values.get("bias")) not in ("none", "all", "lora_only", None):
            self.expected("bias", "'none', 'all' or 'lora_only'", _shown_value(bias))
        init = self.values.get("init_lora_weights", True)
        if not isinstance(init, bool | str | None) or init not in _SERVED_INITS:
            self.expected(
                "init_lora_weights",
                "one that keeps the base model's weights (convert the adapter with PEFT's "
                "path_initial_model_for_weight_conversion)",
                _shown_value(init),
            )
        for key, value in self.values.items():
            if _says_nothing(value):
                continue
            if key in _NOT_SERVED:
                self.expected(key, f"nothing ({_NOT_SERVED[key]} is not served)", _shown_value(value))
            elif key not in _READ_HERE and key not in _TRAINING_ONLY:
                self.reasons.append(f"{shown(key)}: an unknown setting with the value {_shown_value(value)}")

    def targets(self) -> tuple[Modules, bool]:
        found = self.values.get("target_modules")
        if isinstance(found, str) and found.lower() == ALL_LINEAR:
            return Modules(frozenset(), None), True
        if not found:
            self.expected("target_modules", "names of modules, a regular expression or 'all-linear'", "none")
            return Modules(frozenset(), None), False
        return self.modules("target_modules") or Modules(frozenset(), None), False

    def excluded(self) -> Modules | None:
        return self.modules("exclude_modules") if self.values.get("exclude_modules") else None

    def modules(self, key: str) -> Modules | None:
        if isinstance(found := self.values[key], str):
            expression = self.compile(found, key, as_suffix=False)
            return Modules(frozenset(), expression) if expression else None
        return Modules(frozenset(self.names(key)), None)

    def names(self, key: str) -> tuple[str, ...]:
        found = self.values.get(key)
        if found is None or isinstance(found, str):
            return (found,) if found else ()
        if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
            self.expected(key, "a list of names", _shown_value(found))
            return ()
        return tuple(found)

    def saved(self) -> tuple[str, ...]:
        found = self.names("modules_to_save")
        if len(found) > MAX_SAVED:
            self.expected("modules_to_save", f"at most {MAX_SAVED} names", str(len(found)))
            return ()
        return tuple(dict.fromkeys(found))

    def trained_tokens(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        found = self.values.get("trainable_token_indices")
        if _says_nothing(found):
            return ()
        by_module: dict[str, Any] = found if isinstance(found, dict) else {EMBEDDING: found}
        for token_ids in by_module.values():
            is_list = isinstance(token_ids, list) and all(type(one) is int and one >= 0 for one in token_ids)
            if not is_list or not token_ids or len(set(token_ids)) < len(token_ids):
                self.expected("trainable_token_indices", "token ids from 0, each once", _shown_value(token_ids))
                return ()
        return tuple((name, tuple(token_ids)) for name, token_ids in by_module.items())

    def layers(self) -> frozenset[int] | None:
        found = self.values.get("layers_to_transform")
        if found is None or found == []:
            return None
        layers = found if isinstance(found, list) else [found]
        if not all(type(one) is int and one >= 0 for one in layers):
            self.expected("layers_to_transform", "layer indices from 0", _shown_value(found))
            return None
        return frozenset(layers)

    def patterns(self, key: str) -> list[tuple[Pattern, object]]:
        found = self.values.get(key) or {}
        if not isinstance(found, dict) or len(found) > MAX_PATTERNS:
            self.expected(key, f"at most {MAX_PATTERNS} values by pattern", _shown_value(found))
            return []
        compiled = ((self.compile(source, key, as_suffix=True), value) for source, value in found.items())
        return [(pattern, value) for pattern, value in compiled if pattern is not None]

    def compile(self, source: str, key: str, *, as_suffix: bool) -> Pattern | None:
        try:
            compile_pattern = Pattern.compile_suffix if as_suffix else Pattern.compile
            pattern = compile_pattern(source, self.budget)
        except AdapterRefused as refused:
            self.reasons.extend(f"{key}: {reason}" for reason in refused.reasons)
            return None
        self.num_expressions += 0 if pattern.is_plain else 1
        if self.num_expressions == MAX_REGULAR_EXPRESSIONS + 1:
            self.expected(key, f"at most {MAX_REGULAR_EXPRESSIONS} regular expressions in all", "more")
        return pattern

    def rank(self, found: object, key: str) -> int:
        if type(found) is not int or not 0 < found < 2**31:
            self.expected(key, "a rank of at least 1", _shown_value(found))
            return 1
        return found

    def alpha(self, found: object, key: str) -> float:
        # float32's largest number bounds it, because that is what a scale is kept in.
        if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) < 3.4e38:
            self.expected(key, "a finite number", _shown_value(found))
            return 1.0
        return float(found)

    def flag(self, key: str) -> bool:
        found = self.values.get(key)
        if found is not None and not isinstance(found, bool):
            self.expected(key, "true or false", _shown_value(found))
        return found is True


def _shown_value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    return shown(value) if isinstance(value, str) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:119] + "…"
