"""A base model's folder, described from config.json and the headers of its weights.

Reads weights only to digest them. Knows the Hugging Face layout (one model.safetensors or several shards); does not
know how any architecture computes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.errors import AdapterRefused, BaseModelRefused
from adapter.header import parse_json, read_header
from adapter.manifest import Manifest, ManifestFile, Progress, manifest_of_base_model
from adapter.targets import is_embedding, is_head, is_norm

MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class BaseModelDescription:
    """What the registry keeps of a base model. `modules` gives (out_features, in_features) by name, sorted by name.

    A norm's weight, one number for each feature, is one column: (features, 1).
    """

    architecture: str
    modules: dict[str, tuple[int, int]]
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The identity of the base model."""
        return self.manifest.digest

    @property
    def config_digest(self) -> str:
        """Digest of config.json."""
        return config_digest(self.manifest)

    @property
    def weights_digest(self) -> str:
        """Digest of the manifest of the weights alone."""
        return weights_digest(self.manifest)

    @property
    def tokenizer_digest(self) -> str:
        """Digest of tokenizer.json; empty when the model has none."""
        return tokenizer_digest(self.manifest)


def describe_base_model(folder: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> BaseModelDescription:
    """Describes a Hugging Face folder. Raises BaseModelRefused with what was expected and what was found."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BaseModelRefused([f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}"])
    config = _read_config(folder / "config.json")
    modules = read_modules(folder)
    return BaseModelDescription(
        architecture=config["architectures"][0],
        modules=modules,
        manifest=manifest_of_base_model(folder, on_bytes=on_bytes),
    )


def read_modules(folder: str | os.PathLike[str]) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every weight by its module's name, norms and a tied output head included."""
    modules: dict[str, tuple[int, int]] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            tensors = read_header(path).tensors
        except AdapterRefused as refused:
            raise BaseModelRefused(refused.reasons) from refused
        for key, info in tensors.items():
            name = key.removesuffix(".weight")
            if name == key or len(info.shape) not in (1, 2):
                continue
            if name in modules:
                raise BaseModelRefused([f"{path.name}: expected each tensor once, found {key!r} in two files"])
            modules[name] = (info.shape[0], info.shape[1] if len(info.shape) == 2 else 1)
    if all(is_norm(name) for name in modules):
        raise BaseModelRefused([f"{folder}: expected two-dimensional weights in *.safetensors, found none"])
    if not any(is_head(name) for name in modules):
        # A tied output head is not in the file: it is the input embedding.
        embedding = next((name for name in modules if is_embedding(name) and name.endswith("embed_tokens")), None)
        if embedding is not None:
            modules["lm_head"] = modules[embedding]
    return dict(sorted(modules.items()))


def config_digest(manifest: Manifest) -> str:
    """Digest of config.json; empty when the manifest has none."""
    return _digest_of(manifest.file("config.json"))


def tokenizer_digest(manifest: Manifest) -> str:
    """Digest of tokenizer.json; empty when the manifest has none."""
    return _digest_of(manifest.file("tokenizer.json"))


def weights_digest(manifest: Manifest) -> str:
    """Digest of the manifest of the *.safetensors files; empty when the manifest has none."""
    weights = tuple(file for file in manifest.files if file.path.endswith(".safetensors"))
    return Manifest(weights).digest if weights else ""


def _digest_of(file: ManifestFile | None) -> str:
    return file.digest if file is not None else ""


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise BaseModelRefused([f"config.json: cannot be read: {error.strerror or error}"]) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise BaseModelRefused([f"config.json: expected at most {MAX_CONFIG_BYTES} bytes, found more"])
    try:
        config = parse_json(raw, what="config.json")
    except AdapterRefused as refused:
        raise BaseModelRefused(refused.reasons) from refused
    architectures = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise BaseModelRefused(["config.json: expected `architectures` with one name, found none"])
    return dict(config)
