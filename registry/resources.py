"""What the registry keeps and answers with, as plain values. It knows neither protobuf nor the database.

The server's store and the client both speak in these; what is stored as JSON (events, the audit log, answers kept for
a repeated request) is exactly these values in the form that `registry.documents` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from adapter.manifest import Manifest
from adapter.splits import FULL_WEIGHT

DEFAULT_ALIAS = "production"


class BaseModelRelation(StrEnum):
    """How a base model was made from its parent."""

    FINETUNE = "finetune"
    QUANTIZED = "quantized"
    MERGE = "merge"
    ADAPTER_MERGE = "adapter_merge"


class VersionState(StrEnum):
    """Where a version is in its life."""

    REGISTERED = "registered"
    VALIDATED = "validated"
    REJECTED = "rejected"
    RETIRED = "retired"


class WorkerState(StrEnum):
    """Whether a worker still reports."""

    LIVE = "live"
    LOST = "lost"


class WorkerAdapterState(StrEnum):
    """The state of one version on one worker."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Scope(StrEnum):
    """A kind of thing that a caller may do; `registry.grants` says what each covers."""

    READ = "read"
    REGISTER = "register"
    PROMOTE = "promote"
    ADMIN = "admin"
    WATCH = "watch"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class ModuleShape:
    """The shape of one module's weight matrix, [out_features, in_features]."""

    name: str
    out_features: int
    in_features: int


@dataclass(frozen=True, slots=True)
class BaseModelParent:
    """One edge of a base model's lineage. `adapter_version` is `NAME:NUMBER`, only with ADAPTER_MERGE."""

    base_model: str
    relation: BaseModelRelation
    adapter_version: str = ""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """One frozen model. `modules` is empty in lists, snapshots and events."""

    name: str
    digest: str
    config_digest: str
    weights_digest: str
    tokenizer_digest: str
    manifest: Manifest
    architecture: str
    modules: tuple[ModuleShape, ...] = ()
    parents: tuple[BaseModelParent, ...] = ()
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """One version that an alias points at, with its weight in hundredths of a percent."""

    version: int
    digest: str
    weight: int = FULL_WEIGHT
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable name for a version of one adapter. Revision 0 and no time: not committed (a dry run)."""

    adapter: str
    alias: str
    targets: tuple[AliasTarget, ...]
    protected: bool = False
    revision: int = 0
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AliasChange:
    """One entry of an alias's history."""

    revision: int
    before: tuple[AliasTarget, ...]
    after: tuple[AliasTarget, ...]
    actor: str
    time: datetime
    message: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A named line of versions for one base model; `latest_version` 0 means none."""

    name: str
    base_model: str
    latest_version: int
    aliases: tuple[Alias, ...]
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a version comes from, in the publisher's words."""

    git_commit: str = ""
    run_uri: str = ""
    dataset_uris: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Signature:
    """A detached signature over a manifest, as `registry.signatures` makes it."""

    key_id: str
    bundle: str


@dataclass(frozen=True, slots=True)
class AliasPolicy:
    """What an alias wants: a signature by any of these keys, in PEM. None: no signature."""

    adapter: str
    alias: str
    public_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One immutable upload. Number 0, revision 0 and no time: not committed (a dry run)."""

    adapter: str
    number: int
    digest: str
    base_model: str
    base_model_digest: str
    manifest: Manifest
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    features: tuple[str, ...]
    state: VersionState
    size_bytes: int
    rejection_reasons: tuple[str, ...] = ()
    parent: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    aliases: tuple[str, ...] = ()
    create_time: datetime | None = None
    revision: int = 0
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class BaseModelCreated:
    """An event; the base model comes without its modules."""

    base_model: BaseModel


@dataclass(frozen=True, slots=True)
class VersionRegistered:
    """An event."""

    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class AliasChanged:
    """An event: the alias as it is from then on and the versions it points at, in the order of its targets."""

    alias: Alias
    versions: tuple[AdapterVersion, ...]


@dataclass(frozen=True, slots=True)
class VersionRetired:
    """An event."""

    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class VersionUnretired:
    """An event."""

    version: AdapterVersion


Happening = BaseModelCreated | VersionRegistered | AliasChanged | VersionRetired | VersionUnretired


def adapter_of(happening: Happening) -> str | None:
    """The adapter that it is about; None when it is about a base model."""
    match happening:
        case BaseModelCreated():
            return None
        case AliasChanged(alias):
            return alias.adapter
        case VersionRegistered(version) | VersionRetired(version) | VersionUnretired(version):
            return version.adapter


@dataclass(frozen=True, slots=True)
class Event:
    """One change, at the revision that committed it."""

    revision: int
    time: datetime
    happening: Happening


@dataclass(frozen=True, slots=True)
class SnapshotItem:
    """A message of a watch: one thing that exists at the snapshot's revision."""

    item: BaseModel | Alias | AdapterVersion


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """A message of a watch: the snapshot is complete and holds at this revision of this store."""

    revision: int
    store_id: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A message of a watch: all events of one revision."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A message of a watch: nothing is missing up to this revision."""

    revision: int


WatchMessage = SnapshotItem | SnapshotEnd | Change | Progress


@dataclass(frozen=True, slots=True)
class WorkerAdapter:
    """One version on one worker."""

    adapter: str
    version: int
    digest: str
    state: WorkerAdapterState
    aliases: tuple[str, ...] = ()
    failure: str = ""
    size_bytes: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Worker:
    """One inference process as it last described itself; state and report_time are the registry's."""

    id: str
    address: str
    base_model: str
    base_model_digest: str
    observed_revision: int
    adapters: tuple[WorkerAdapter, ...]
    state: WorkerState = WorkerState.LIVE
    report_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One committed write; before and after are JSON, empty when there was nothing."""

    revision: int
    time: datetime
    actor: str
    action: str
    resource: str
    request_id: str
    before: str
    after: str
    message: str = ""


class LineageKind(StrEnum):
    """What a node of a lineage is."""

    ADAPTER_VERSION = "adapter_version"
    BASE_MODEL = "base_model"


class LineageDirection(StrEnum):
    """Which way a walk goes: to what something was made from, or to what was made from it."""

    ANCESTORS = "ancestors"
    DESCENDANTS = "descendants"


@dataclass(frozen=True, slots=True)
class LineageKey:
    """A version, as `NAME:NUMBER`, or a base model by its name."""

    kind: LineageKind
    id: str


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One version or base model; the digest is empty when it is only known by name."""

    key: LineageKey
    digest: str


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """`child` was made from `parent`: `trained_on`, `continued_from`, or a BaseModelRelation."""

    child: LineageKey
    parent: LineageKey
    relation: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """The part of the graph that was walked, the start first; `is_truncated` when there is more."""

    nodes: tuple[LineageNode, ...]
    edges: tuple[LineageEdge, ...]
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token without its secret. No adapters: all; no aliases: all that are not protected."""

    name: str
    scopes: tuple[Scope, ...]
    adapters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    id: str = ""
    create_time: datetime | None = None
    expire_time: datetime | None = None
    revoke_time: datetime | None = None

    def is_in_force(self, now: datetime) -> bool:
        """Whether it opens anything at this time."""
        return self.revoke_time is None and (self.expire_time is None or now < self.expire_time)


@dataclass(frozen=True, slots=True)
class Status:
    """The store's identity and how far it is."""

    store_id: str
    revision: int
    compacted_revision: int
    server_version: str = ""
