"""Manifests: the files of an artifact with their digests. The digest of the manifest is the artifact's identity.

Knows files, paths and SHA-256; does not know what is in the files.

    {"files":[{"path":"adapter_config.json","sha256":"<64 hex>","size":1034}, …]}   sorted by path, no spaces, UTF-8
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from adapter.errors import AdapterRefused, BaseModelRefused, InvalidManifest
from adapter.header import PICKLE_SUFFIXES, shown
from adapter.names import is_digest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# What an adapter must answer before it is served; a folder may do without. See adapter.probe.
PROBE_FILE = "probe.json"
# How text becomes tokens, where the adapter was trained with more than the base model's; a folder may do without.
TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
NEEDED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
ADAPTER_FILES = (*NEEDED_FILES, PROBE_FILE, *TOKENIZER_FILES)
# The largest tokenizer.json in use, of a vocabulary of 262 144 tokens, has 33 MB.
MAX_TOKENIZER_BYTES = 64 * 2**20
# A model of 2 TB in shards of 5 GB has 400 files.
MAX_FILES = 4096
MAX_PATH_CHARS = 255
# Files beside the weights that decide what a base model answers.
BASE_MODEL_FILES = (
    "added_tokens.json", "chat_template.jinja", "config.json", "merges.txt", "special_tokens_map.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip

_READ_BYTES = 2**20

Progress = Callable[[int], None]
"""Told how many more bytes are done."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file: its path relative to the folder, its length and `sha256:` with its SHA-256."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files sorted by path, each path once and safe to join to a folder. Raises InvalidManifest for anything else."""

    files: tuple[ManifestFile, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.files) <= MAX_FILES:
            raise InvalidManifest(f"expected 1 to {MAX_FILES} files, found {len(self.files)}", field="manifest")
        for file in self.files:
            check_path(file.path)
            if not is_digest(file.digest):
                raise InvalidManifest(
                    f"{file.path}: expected sha256: and 64 lower-case hex digits, found {shown(file.digest)}",
                    field="manifest",
                )
            if not 0 <= file.size_bytes < 2**63:
                raise InvalidManifest(f"{file.path}: expected a size of 0 to 2^63 bytes", field="manifest")
        paths = [file.path for file in self.files]
        if any(before >= after for before, after in pairwise(paths)):
            raise InvalidManifest("expected the files sorted by path, each path once", field="manifest")

    def canonical_json(self) -> bytes:
        """The bytes that the digest is taken of."""
        files = [
            {"path": file.path, "sha256": file.digest.removeprefix("sha256:"), "size": file.size_bytes}
            for file in self.files
        ]
        return json.dumps({"files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the canonical JSON."""
        return f"sha256:{hashlib.sha256(self.canonical_json()).hexdigest()}"

    @property
    def size_bytes(self) -> int:
        """Sum of the files' sizes."""
        return sum(file.size_bytes for file in self.files)

    def file(self, path: str) -> ManifestFile | None:
        """The file at a path, or None."""
        return next((file for file in self.files if file.path == path), None)


def check_path(path: str) -> None:
    """Raises InvalidManifest unless the path stays inside any folder it is joined to."""
    parts = path.split("/")
    is_safe = (
        0 < len(path) <= MAX_PATH_CHARS
        and path.isprintable()
        and "\\" not in path
        and all(part not in ("", ".", "..") for part in parts)
    )
    if not is_safe:
        raise InvalidManifest(
            f"expected a relative path without '..' or backslashes, found {shown(path)}", field="manifest"
        )


def digest_file(path: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> str:
    """`sha256:` and the SHA-256 of a file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return f"sha256:{digest.hexdigest()}"


def manifest_of_adapter(folder: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> Manifest:
    """The two files of a PEFT folder, its probes and its tokenizer if it has any; others are not part of the adapter.

    Raises AdapterRefused.
    """
    folder = Path(folder)
    reasons = [f"{folder}: {reason}" for reason in _missing(folder)]
    if reasons:
        raise AdapterRefused(reasons)
    try:
        return _manifest(folder, [name for name in ADAPTER_FILES if os.path.lexists(folder / name)], on_bytes)
    except _Unreadable as error:
        raise AdapterRefused([str(error)]) from error


def manifest_of_base_model(folder: str | os.PathLike[str], *, on_bytes: Progress | None = None) -> Manifest:
    """config.json, the tokenizer's files and *.safetensors of a Hugging Face folder. Raises BaseModelRefused."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BaseModelRefused([f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}"])
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise BaseModelRefused([f"{folder}: expected *.safetensors, found none"])
    if not (folder / "config.json").is_file():
        raise BaseModelRefused([f"{folder}: expected config.json, found none"])
    others = [name for name in BASE_MODEL_FILES if (folder / name).is_file()]
    try:
        return _manifest(folder, (*others, *weights), on_bytes)
    except _Unreadable as error:
        raise BaseModelRefused([str(error)]) from error


class _Unreadable(Exception):
    """A file of the folder cannot be part of a manifest."""


def _missing(folder: Path) -> Iterable[str]:
    if not folder.is_dir():
        yield f"expected a folder, found {'a file' if folder.exists() else 'nothing'}"
        return
    if not (folder / CONFIG_FILE).is_file():
        yield f"expected {CONFIG_FILE}, found none"
    if not (folder / WEIGHTS_FILE).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickles:
            yield f"expected {WEIGHTS_FILE}, found {pickles[0]}: a pickle, which can run code; save it as safetensors"
        else:
            yield f"expected {WEIGHTS_FILE}, found none"


def _manifest(folder: Path, names: Iterable[str], on_bytes: Progress | None) -> Manifest:
    root = folder.resolve()
    files = []
    for name in sorted(names):
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise _Unreadable(f"{name}: expected a file inside the folder, found a link to {path}; copy it with cp -L")
        try:
            size = path.stat().st_size
            files.append(ManifestFile(name, size, digest_file(path, on_bytes=on_bytes)))
        except OSError as error:
            raise _Unreadable(f"{name}: cannot be read: {error.strerror or error}") from error
    return Manifest(tuple(files))
