"""Adapters named on the command line: NAME=FOLDER, or vLLM's {"name", "path", "base_model_name"}. Knows the local disk.

They are what the folders held when the worker started: a file that changes no longer has its digest and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.names import DEFAULT_ALIAS, Reference, check_name
from inference.errors import AdapterNotFound, InvalidRequest
from inference.resolver import KnownVersion, Version
from inference.resolver.intake import Intake, read_manifest

_KEYS = frozenset({"name", "path", "base_model_name"})


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapter of the command line."""

    name: str
    folder: Path


class ModulesResolver:
    """Resolves the names of the command line. `is_taken` says of a name that the registry has it by now."""

    def __init__(
        self,
        modules: Iterable[LoraModule],
        intake: Intake,
        *,
        base_model_digest: str,
        is_taken: Callable[[str], bool],
    ) -> None:
        """Hashes every folder, which blocks. Raises AdapterLoadFailed."""
        self._intake = intake
        self._is_taken = is_taken
        self._folders: dict[str, Path] = {}
        self._versions: dict[str, Version] = {}
        for module in modules:
            manifest = read_manifest(module.folder)
            version = Version(module.name, 0, manifest.digest, base_model_digest, manifest)
            self._versions[module.name] = version
            self._folders[version.digest] = module.folder

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve; only a name or a digest can be found here."""
        for name, version in self._versions.items():
            if reference.digest == version.digest or (names(reference, name) and not self._is_taken(name)):
                return version
        known = ", ".join(self._versions) or "none"
        raise AdapterNotFound(f"no adapter {reference}; this worker was started with: {known}")

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch."""
        return await self._intake.take(version, self._folders[version.digest])

    def forget(self, version: Version) -> None:
        """As Resolver.forget; the folder itself is the user's."""
        self._intake.forget(version)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known."""
        return [KnownVersion(name, version) for name, version in self._versions.items()]


def names(reference: Reference, name: str) -> bool:
    """Whether a reference is this name and nothing more: other aliases and numbers are a registry's."""
    return reference.name == name and reference.alias == DEFAULT_ALIAS


def parse_modules(items: Iterable[str], *, base_model_name: str) -> list[LoraModule]:
    """Reads NAME=FOLDER, JSON objects and JSON lists of them. Raises InvalidRequest."""
    found: list[LoraModule] = []
    for item in items:
        if item.lstrip().startswith(("{", "[")):
            found += [_from_document(one, base_model_name) for one in _documents(item)]
            continue
        name, separator, folder = item.partition("=")
        if not separator or not folder:
            raise _invalid(f"expected NAME=FOLDER, found {item!r}")
        found.append(LoraModule(check_name(name), Path(folder)))
    twice = sorted({one.name for one in found if sum(one.name == other.name for other in found) > 1})
    if twice:
        raise _invalid(f"expected each name once, found {twice[0]} again")
    return found


def _documents(item: str) -> list[Any]:
    try:
        document = json.loads(item)
    except ValueError as error:
        raise _invalid(f"expected JSON, found {item[:200]!r}: {error}") from error
    return document if isinstance(document, list) else [document]


def _from_document(document: Any, base_model_name: str) -> LoraModule:
    if (
        not isinstance(document, dict)
        or not {"name", "path"} <= document.keys() <= _KEYS
        or not all(isinstance(value, str) for value in document.values())
    ):
        raise _invalid(f'expected {{"name", "path"}} and at most "base_model_name", found {str(document)[:200]}')
    base = document.get("base_model_name", base_model_name)
    if base != base_model_name:
        raise _invalid(f"{document['name']}: expected the base model {base_model_name}, found {base}")
    return LoraModule(check_name(document["name"]), Path(document["path"]))


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"adapters: {message}", field="adapters")
