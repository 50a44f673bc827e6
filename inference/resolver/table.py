"""What aliases mean on this worker: what the registry wants, and what is served. Pure bookkeeping; saved to a file.

For each (adapter, alias) the table holds two versions. `desired` is what the registry said last. `serving` is what
requests get; it follows when the desired version is ready, in one assignment, and keeps the old one when it cannot be
loaded. An alias that has never been served falls to `desired`, so its first request waits for that load.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.manifest import Manifest, ManifestFile
from inference.resolver import Version

FORMAT = 1  # of the saved file; another one is ignored, and the registry tells everything again


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """An alias of an adapter."""

    adapter: str
    alias: str

    def __str__(self) -> str:
        return f"{self.adapter}@{self.alias}"


@dataclass(slots=True)
class Table:
    """The state of one worker's aliases at a revision of one store."""

    store_id: str = ""
    revision: int = 0
    desired: dict[Key, Version] = field(default_factory=dict)
    serving: dict[Key, Version] = field(default_factory=dict)
    versions: dict[tuple[str, int], Version] = field(default_factory=dict)
    """Exact versions resolved before; a version never changes, so they hold without the registry."""
    retired: set[tuple[str, int]] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a desired digest could not be loaded."""

    def current(self, key: Key) -> Version | None:
        """What a request for the alias gets now."""
        return self.serving.get(key) or self.desired.get(key)

    def find_digest(self, digest: str) -> Version | None:
        """A known version with this digest."""
        known = (*self.serving.values(), *self.desired.values(), *self.versions.values())
        return next((version for version in known if version.digest == digest), None)

    def aliases_of(self, version: Version) -> list[str]:
        """Aliases that serve the version now."""
        return sorted(key.alias for key, served in self.serving.items() if served == version)

    def replace(
        self, desired: dict[Key, Version], retired: set[tuple[str, int]], *, store_id: str, revision: int
    ) -> list[Version]:
        """Takes a snapshot. Returns the versions that no alias serves any more because their alias is gone.

        Exact versions are forgotten: any of them may have been retired since, and a snapshot does not say.
        """
        gone = [self.serving.pop(key) for key in list(self.serving) if key not in desired]
        self.versions.clear()
        self.failures.clear()
        self.retired = retired
        self.desired, self.store_id, self.revision = desired, store_id, revision
        return [version for version in gone if not self.is_wanted(version.digest)]

    def is_wanted(self, digest: str) -> bool:
        """Whether an alias serves or desires the digest."""
        return any(version.digest == digest for version in (*self.serving.values(), *self.desired.values()))

    def is_retired(self, version: Version) -> bool:
        """Whether the registry withdrew the version."""
        return (version.adapter, version.number) in self.retired

    def pending(self) -> list[Key]:
        """Aliases whose desired version is not the served one and has not failed to load."""
        return [
            key
            for key, version in self.desired.items()
            if self.serving.get(key) != version and version.digest not in self.failures
        ]

    def to_json(self) -> str:
        """What outlives the process, for `save`."""
        document = {
            "format": FORMAT,
            "store_id": self.store_id,
            "revision": self.revision,
            "desired": [_alias(key, version) for key, version in sorted(self.desired.items())],
            "serving": [_alias(key, version) for key, version in sorted(self.serving.items())],
            "versions": [_to_document(version) for _, version in sorted(self.versions.items())],
            "retired": sorted(self.retired),
        }
        return json.dumps(document)

    @classmethod
    def load(cls, path: Path) -> Table:
        """The saved table, or an empty one when there is none that can be read."""
        try:
            document = json.loads(path.read_text())
            if document["format"] != FORMAT:
                return cls()
            versions = [_from_document(item) for item in document["versions"]]
            return cls(
                store_id=document["store_id"],
                revision=document["revision"],
                desired=dict(_aliases(document["desired"])),
                serving=dict(_aliases(document["serving"])),
                versions={(version.adapter, version.number): version for version in versions},
                retired={(adapter, number) for adapter, number in document["retired"]},
            )
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError):
            return cls()


def save(path: Path, text: str) -> None:
    """Writes a file all or not at all, also when the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(scratch).replace(path)


def _alias(key: Key, version: Version) -> dict[str, Any]:
    return {"adapter": key.adapter, "alias": key.alias, "version": _to_document(version)}


def _aliases(items: Iterable[dict[str, Any]]) -> Iterable[tuple[Key, Version]]:
    return ((Key(item["adapter"], item["alias"]), _from_document(item["version"])) for item in items)


def _to_document(version: Version) -> dict[str, Any]:
    return {
        "adapter": version.adapter,
        "number": version.number,
        "digest": version.digest,
        "base_model_digest": version.base_model_digest,
        "rank": version.rank,
        "files": [[file.path, file.size_bytes, file.digest] for file in version.manifest.files],
    }


def _from_document(item: dict[str, Any]) -> Version:
    files = tuple(ManifestFile(path, size, digest) for path, size, digest in item["files"])
    version = Version(
        adapter=item["adapter"],
        number=item["number"],
        digest=item["digest"],
        base_model_digest=item["base_model_digest"],
        manifest=Manifest(files),
        rank=item["rank"],
    )
    if version.manifest.digest != version.digest:
        raise ValueError(f"{version.name}: the saved manifest does not have the digest {version.digest}")
    return version
