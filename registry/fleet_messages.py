"""Workers, events and watches as protobuf messages, and back; like `registry.messages`, for its watchers."""

from __future__ import annotations

from typing import Any

from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import worker_service_pb2 as worker_pb
from registry.messages import (
    read_alias,
    read_base_model,
    read_enum,
    read_optional_time,
    read_time,
    read_version,
    write_alias,
    write_base_model,
    write_enum,
    write_time,
    write_version,
)
from registry.resources import (
    AdapterVersion,
    Alias,
    AliasChanged,
    BaseModel,
    BaseModelCreated,
    Change,
    Event,
    Progress,
    SnapshotEnd,
    SnapshotItem,
    VersionRegistered,
    VersionRetired,
    VersionUnretired,
    WatchMessage,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
    WorkerState,
)

_LIVE = worker_pb.WORKER_STATE_LIVE


def write_worker(worker: Worker) -> worker_pb.Worker:
    """The worker with its adapters."""
    return worker_pb.Worker(
        id=worker.id,
        address=worker.address,
        base_model=worker.base_model,
        base_model_digest=worker.base_model_digest,
        observed_revision=worker.observed_revision,
        adapters=[
            worker_pb.WorkerAdapter(
                adapter=one.adapter,
                version=one.version,
                digest=one.digest,
                aliases=one.aliases,
                state=write_enum(worker_pb.WorkerAdapterState, one.state, "WORKER_ADAPTER_STATE_"),
                failure=one.failure,
                size_bytes=one.size_bytes,
                in_flight=one.in_flight,
            )
            for one in worker.adapters
        ],
        state=write_enum(worker_pb.WorkerState, worker.state, "WORKER_STATE_"),
        report_time=write_time(worker.report_time),
    )


def read_worker(message: worker_pb.Worker) -> Worker:
    """The worker with its adapters; a report's unspecified state is LIVE."""
    return Worker(
        id=message.id,
        address=message.address,
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        observed_revision=message.observed_revision,
        adapters=tuple(
            WorkerAdapter(
                adapter=one.adapter,
                version=one.version,
                digest=one.digest,
                state=read_enum(WorkerAdapterState, worker_pb.WorkerAdapterState, one.state, "WORKER_ADAPTER_STATE_"),
                aliases=tuple(one.aliases),
                failure=one.failure,
                size_bytes=one.size_bytes,
                in_flight=one.in_flight,
            )
            for one in message.adapters
        ),
        state=read_enum(WorkerState, worker_pb.WorkerState, message.state or _LIVE, "WORKER_STATE_"),
        report_time=read_optional_time(message, "report_time"),
    )


def write_event(event: Event) -> watch_pb.Event:
    """One change."""
    message = watch_pb.Event(revision=event.revision, time=write_time(event.time))
    match event.happening:
        case BaseModelCreated(base_model):
            message.base_model_created.CopyFrom(write_base_model(base_model))
        case VersionRegistered(version):
            message.version_registered.CopyFrom(write_version(version))
        case AliasChanged(alias, versions):
            message.alias_changed.alias.CopyFrom(write_alias(alias))
            message.alias_changed.versions.extend(write_version(version) for version in versions)
        case VersionRetired(version):
            message.version_retired.CopyFrom(write_version(version))
        case VersionUnretired(version):
            message.version_unretired.CopyFrom(write_version(version))
    return message


def read_event(message: watch_pb.Event) -> Event | None:
    """One change; None for a kind that a newer registry may send."""
    happening: Any
    match message.WhichOneof("event"):
        case "base_model_created":
            happening = BaseModelCreated(read_base_model(message.base_model_created))
        case "version_registered":
            happening = VersionRegistered(read_version(message.version_registered))
        case "alias_changed":
            changed = message.alias_changed
            versions = tuple(read_version(version) for version in changed.versions)
            happening = AliasChanged(read_alias(changed.alias), versions)
        case "version_retired":
            happening = VersionRetired(read_version(message.version_retired))
        case "version_unretired":
            happening = VersionUnretired(read_version(message.version_unretired))
        case _:
            return None
    return Event(message.revision, read_time(message.time), happening)


def write_watch(message: WatchMessage, *, store_id: str) -> watch_pb.WatchResponse:
    """One message of a watch."""
    response = watch_pb.WatchResponse(store_id=store_id)
    match message:
        case SnapshotItem(BaseModel() as base_model):
            response.snapshot_item.base_model.CopyFrom(write_base_model(base_model))
        case SnapshotItem(Alias() as alias):
            response.snapshot_item.alias.CopyFrom(write_alias(alias))
        case SnapshotItem(AdapterVersion() as version):
            response.snapshot_item.version.CopyFrom(write_version(version))
        case SnapshotEnd(revision):
            response.snapshot_end.revision = revision
        case Change(revision, events):
            response.change.revision = revision
            response.change.events.extend(write_event(event) for event in events)
        case Progress(revision):
            response.progress.revision = revision
    return response


def read_watch(response: watch_pb.WatchResponse) -> WatchMessage | None:
    """One message of a watch; None for a kind that a newer registry may send."""
    message: WatchMessage | None = None
    match response.WhichOneof("message"):
        case "snapshot_item":
            message = _read_snapshot_item(response.snapshot_item)
        case "snapshot_end":
            message = SnapshotEnd(response.snapshot_end.revision, response.store_id)
        case "change":
            events = (read_event(event) for event in response.change.events)
            message = Change(response.change.revision, tuple(event for event in events if event is not None))
        case "progress":
            message = Progress(response.progress.revision)
    return message


def _read_snapshot_item(message: watch_pb.SnapshotItem) -> SnapshotItem | None:
    match message.WhichOneof("item"):
        case "base_model":
            return SnapshotItem(read_base_model(message.base_model))
        case "alias":
            return SnapshotItem(read_alias(message.alias))
        case "version":
            return SnapshotItem(read_version(message.version))
        case _:
            return None
