"""What aliases mean on this worker: what the registry wants, and what is served. Pure bookkeeping; saved to a file.

For each (adapter, alias) the table holds two splits, most of them of one version. `desired` is what the registry said
last. `serving` is what requests get; it follows when every desired version is ready, in one assignment, and keeps the
old split when one cannot be loaded. An alias that has never been served falls to `desired`, so its first request waits
for that load.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.manifest import Manifest, ManifestFile
from adapter.splits import FULL_WEIGHT, choose_side
from inference.resolver import Version

# Exact versions that are kept, a few hundred bytes each; the least recently asked for go first.
MAX_VERSIONS = 1000
FORMAT = 2  # of the saved file; another one is ignored, and the registry tells everything again


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """An alias of an adapter."""

    adapter: str
    alias: str

    def __str__(self) -> str:
        return f"{self.adapter}@{self.alias}"


@dataclass(frozen=True, slots=True)
class Side:
    """One version of a split and its share, in hundredths of a percent."""

    version: Version
    weight: int = FULL_WEIGHT


@dataclass(frozen=True, slots=True)
class Split:
    """What an alias means: its sides, the largest first."""

    sides: tuple[Side, ...]

    @property
    def main(self) -> Version:
        """The version of the largest side."""
        return self.sides[0].version

    @property
    def versions(self) -> tuple[Version, ...]:
        """All of them."""
        return tuple(side.version for side in self.sides)

    def choose(self, key: Key, request_key: str) -> Version:
        """The version that a request takes, as `adapter.splits` says."""
        sides = [(side.version.number, side.weight) for side in self.sides]
        number = choose_side(key.adapter, key.alias, sides, request_key)
        return next(version for version in self.versions if version.number == number)

    def __str__(self) -> str:
        if len(self.sides) == 1:
            return self.main.name
        return " + ".join(f"{side.version.name} {side.weight / 100:g} %" for side in self.sides)


@dataclass(slots=True)
class Table:
    """The state of one worker's aliases at a revision of one store."""

    store_id: str = ""
    revision: int = 0
    desired: dict[Key, Split] = field(default_factory=dict)
    serving: dict[Key, Split] = field(default_factory=dict)
    versions: OrderedDict[tuple[str, int], Version] = field(default_factory=OrderedDict)
    """Exact versions resolved before, the least recently asked for first; they never change, so they hold without the
    registry."""
    retired: set[tuple[str, int]] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a desired digest could not be loaded."""
    on_remembered: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)
    """Told that an exact version was remembered; whoever saves the table sets it."""

    def current(self, key: Key) -> Split | None:
        """What requests for the alias get now."""
        return self.serving.get(key) or self.desired.get(key)

    def find_digest(self, digest: str) -> Version | None:
        """A known version with this digest."""
        return next((one for one in (*self.wanted(), *self.versions.values()) if one.digest == digest), None)

    def find_version(self, adapter: str, number: int) -> Version | None:
        """An exact version resolved before."""
        version = self.versions.get((adapter, number))
        if version is not None:
            self.versions.move_to_end((adapter, number))
        return version

    def remember(self, version: Version) -> None:
        """Keeps an exact version, which holds without the registry from now on."""
        self.versions[version.adapter, version.number] = version
        while len(self.versions) > MAX_VERSIONS:
            self.versions.popitem(last=False)
        self.on_remembered()

    def aliases_of(self, version: Version) -> list[str]:
        """Aliases that serve the version now."""
        return sorted(key.alias for key, served in self.serving.items() if version in served.versions)

    def replace(
        self, desired: dict[Key, Split], retired: set[tuple[str, int]], *, store_id: str, revision: int
    ) -> list[Version]:
        """Takes a snapshot. Returns the versions that no alias serves any more because their alias is gone.

        Exact versions are forgotten: any of them may have been retired since, and a snapshot does not say.
        """
        gone = [self.serving.pop(key) for key in list(self.serving) if key not in desired]
        self.versions.clear()
        self.failures.clear()
        self.retired = retired
        self.desired, self.store_id, self.revision = desired, store_id, revision
        for key, split in desired.items():
            self._take_shares(key, split)
        return [one for split in gone for one in split.versions if not self.is_wanted(one.digest)]

    def desire(self, key: Key, split: Split) -> None:
        """Takes what the registry said about one alias."""
        self.desired[key] = split
        for version in split.versions:
            self.failures.pop(version.digest, None)  # promoted again means try again
        self._take_shares(key, split)

    def _take_shares(self, key: Key, split: Split) -> None:
        """Where only the shares change there is nothing to load, and they hold at once."""
        served = self.serving.get(key)
        if served is not None and set(served.versions) == set(split.versions):
            self.serving[key] = split

    def wanted(self) -> Iterable[Version]:
        """Versions that an alias serves or desires; some come more than once."""
        return (one for split in (*self.serving.values(), *self.desired.values()) for one in split.versions)

    def is_wanted(self, digest: str) -> bool:
        """Whether an alias serves or desires the digest."""
        return any(version.digest == digest for version in self.wanted())

    def is_retired(self, version: Version) -> bool:
        """Whether the registry withdrew the version."""
        return (version.adapter, version.number) in self.retired

    def pending(self) -> list[Key]:
        """Aliases whose desired split is not the served one and has no version that failed to load."""
        return [
            key
            for key, split in self.desired.items()
            if self.serving.get(key) != split and not any(one.digest in self.failures for one in split.versions)
        ]

    def to_json(self) -> str:
        """What outlives the process, for `save`."""
        document = {
            "format": FORMAT,
            "store_id": self.store_id,
            "revision": self.revision,
            "desired": [_alias(key, split) for key, split in _in_order(self.desired)],
            "serving": [_alias(key, split) for key, split in _in_order(self.serving)],
            "versions": [_to_document(version) for version in self.versions.values()],
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
                versions=OrderedDict(((version.adapter, version.number), version) for version in versions),
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


def _in_order(splits: dict[Key, Split]) -> list[tuple[Key, Split]]:
    return sorted(splits.items(), key=lambda item: item[0])


def _alias(key: Key, split: Split) -> dict[str, Any]:
    sides = [[side.weight, _to_document(side.version)] for side in split.sides]
    return {"adapter": key.adapter, "alias": key.alias, "sides": sides}


def _aliases(items: Iterable[dict[str, Any]]) -> Iterable[tuple[Key, Split]]:
    for item in items:
        sides = tuple(Side(_from_document(version), weight) for weight, version in item["sides"])
        if sum(side.weight for side in sides) != FULL_WEIGHT:
            raise ValueError(f"the saved weights of {item['adapter']}@{item['alias']} do not sum to {FULL_WEIGHT}")
        yield Key(item["adapter"], item["alias"]), Split(sides)


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
