"""What a call answers beside a resource: the same values from the store, and from the client on the other side."""

from __future__ import annotations

from dataclasses import dataclass

from registry.resources import AdapterVersion, Alias, AliasTarget, BaseModel


@dataclass(frozen=True, slots=True)
class CreatedBaseModel:
    """The base model as stored; `created` is false when it was already there."""

    base_model: BaseModel
    revision: int
    created: bool


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """The version as stored; `created` is false when the same digest was already there."""

    version: AdapterVersion
    revision: int
    created: bool


@dataclass(frozen=True, slots=True)
class MovedAlias:
    """An alias after a call; `changed` is false when it already pointed there, `before` empty when it was not there."""

    alias: Alias
    before: tuple[AliasTarget, ...]
    revision: int
    changed: bool


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """What a reference means, and the revision at which this holds."""

    version: AdapterVersion
    revision: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """Where the store is after a compaction, and how much that removed."""

    compacted_revision: int
    revision: int
    removed_events: int
