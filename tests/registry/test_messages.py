"""A resource survives the trip through its message; a stranger's message becomes a resource or an error of the tree."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import resources_pb2, watch_service_pb2
from registry import admin_messages, fleet_messages, messages
from registry.errors import InvalidManifest, InvalidRequest
from registry.resources import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasChange,
    AliasChanged,
    AliasTarget,
    AuditEntry,
    BaseModel,
    BaseModelCreated,
    BaseModelParent,
    BaseModelRelation,
    Change,
    Event,
    Happening,
    Lineage,
    LineageDirection,
    LineageEdge,
    LineageKey,
    LineageKind,
    LineageNode,
    ModuleShape,
    Progress,
    Provenance,
    Scope,
    SnapshotEnd,
    SnapshotItem,
    Token,
    VersionRegistered,
    VersionRetired,
    VersionState,
    VersionUnretired,
    WatchMessage,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
    WorkerState,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
DIGEST = f"sha256:{'ab' * 32}"
MANIFEST = Manifest((ManifestFile("adapter_config.json", 7, DIGEST), ManifestFile("b", 0, DIGEST)))
BASE_MODEL = BaseModel(
    name="base",
    digest=DIGEST,
    config_digest=DIGEST,
    weights_digest=DIGEST,
    tokenizer_digest="",
    manifest=MANIFEST,
    architecture="LlamaForCausalLM",
    modules=(ModuleShape("model.layers.0.self_attn.q_proj", 8, 4),),
    parents=(BaseModelParent("other", BaseModelRelation.ADAPTER_MERGE, "sql:3"),),
    create_time=NOW,
)
TARGETS = (AliasTarget(3, DIGEST, 9000), AliasTarget(4, DIGEST, 1000), AliasTarget(5, DIGEST, 1, shadow=True))
ALIAS = Alias("sql", "production", TARGETS, protected=True, revision=9, update_time=NOW)
VERSION = AdapterVersion(
    adapter="sql",
    number=3,
    digest=DIGEST,
    base_model="base",
    base_model_digest=DIGEST,
    manifest=MANIFEST,
    rank=16,
    alpha=32.5,
    target_modules=("q_proj", "v_proj"),
    features=("rslora",),
    state=VersionState.REJECTED,
    size_bytes=7,
    rejection_reasons=("why",),
    parent="sql:2",
    provenance=Provenance("abc", "run", ("data",), {"team": "x"}),
    aliases=("canary", "production"),
    create_time=NOW,
    revision=8,
)
WORKER = Worker(
    id="w",
    address="127.0.0.1:7200",
    base_model="base",
    base_model_digest=DIGEST,
    observed_revision=9,
    adapters=(WorkerAdapter("sql", 3, DIGEST, WorkerAdapterState.FAILED, ("production",), "why", 10, 2),),
    state=WorkerState.LOST,
    report_time=NOW,
)


def test_every_resource_survives_the_trip() -> None:
    assert messages.read_base_model(messages.write_base_model(BASE_MODEL)) == BASE_MODEL
    assert messages.read_alias(messages.write_alias(ALIAS)) == ALIAS
    assert messages.read_version(messages.write_version(VERSION)) == VERSION
    assert fleet_messages.read_worker(fleet_messages.write_worker(WORKER)) == WORKER
    adapter = Adapter("sql", "base", 3, (ALIAS,), NOW)
    assert messages.read_adapter(messages.write_adapter(adapter)) == adapter
    change = AliasChange(9, (), TARGETS, "alice", NOW, "because")
    assert messages.read_alias_change(messages.write_alias_change(change)) == change
    token = Token("ci", (Scope.READ, Scope.WATCH), ("sql",), ("canary",), "id", NOW, NOW, NOW)
    assert admin_messages.read_token(admin_messages.write_token(token)) == token
    assert admin_messages.read_token(admin_messages.write_token(Token("ci", ()))) == Token("ci", ())
    entry = AuditEntry(9, NOW, "alice", "RevokeToken", "token/id", "request", "", "{}", "because")
    assert admin_messages.read_audit_entry(admin_messages.write_audit_entry(entry)) == entry
    version, model = LineageKey(LineageKind.ADAPTER_VERSION, "sql:3"), LineageKey(LineageKind.BASE_MODEL, "base")
    edge = LineageEdge(version, model, "trained_on")
    lineage = Lineage((LineageNode(version, DIGEST), LineageNode(model, "")), (edge,), is_truncated=True)
    assert admin_messages.read_lineage(admin_messages.write_lineage(lineage)) == lineage
    for direction in LineageDirection:
        assert admin_messages.read_direction(admin_messages.write_direction(direction)) is direction
    assert admin_messages.read_direction(0) is LineageDirection.ANCESTORS


@pytest.mark.parametrize(
    "happening",
    [
        BaseModelCreated(BASE_MODEL),
        VersionRegistered(VERSION),
        AliasChanged(ALIAS, (VERSION, VERSION)),
        VersionRetired(VERSION),
        VersionUnretired(VERSION),
    ],
)
def test_every_event_survives_the_trip(happening: Happening) -> None:
    event = Event(9, NOW, happening)
    assert fleet_messages.read_event(fleet_messages.write_event(event)) == event


@pytest.mark.parametrize(
    "message",
    [
        SnapshotItem(BASE_MODEL),
        SnapshotItem(ALIAS),
        SnapshotItem(VERSION),
        SnapshotEnd(9, "store"),
        Change(9, (Event(9, NOW, VersionRetired(VERSION)),)),
        Progress(9),
    ],
)
def test_every_message_of_a_watch_survives_the_trip(message: WatchMessage) -> None:
    assert fleet_messages.read_watch(fleet_messages.write_watch(message, store_id="store")) == message


@pytest.mark.parametrize("path", ["../a", "/a", "a\\b", ""])
def test_a_manifest_that_is_none_is_refused(path: str) -> None:
    message = resources_pb2.Manifest(files=[resources_pb2.ManifestFile(path=path, size_bytes=1, digest=DIGEST)])
    with pytest.raises(InvalidManifest, match="expected a relative path"):
        messages.read_manifest(message)


@pytest.mark.parametrize("state", [0, 99])
def test_a_state_that_this_release_does_not_know_is_refused(state: Any) -> None:
    message = fleet_messages.write_worker(WORKER)
    message.adapters[0].state = state
    with pytest.raises(InvalidRequest, match="expected a WorkerAdapterState"):
        fleet_messages.read_worker(message)


def test_a_report_without_a_state_is_of_a_live_worker() -> None:
    message = fleet_messages.write_worker(WORKER)
    message.ClearField("state")
    assert fleet_messages.read_worker(message).state is WorkerState.LIVE


def test_kinds_of_a_newer_registry_are_left_out() -> None:
    assert fleet_messages.read_watch(watch_service_pb2.WatchResponse(store_id="store")) is None
    assert fleet_messages.read_event(watch_service_pb2.Event(revision=1)) is None
    assert fleet_messages.read_watch(
        watch_service_pb2.WatchResponse(change=watch_service_pb2.Change(revision=3, events=[{"revision": 3}]))
    ) == Change(3, ())
