"""The registry's resources as protobuf messages, and back. The only place that knows both; the service and the client
translate here, at the door.

`write_x` makes a message, `read_x` a resource. A message from a stranger can hold anything: reading one raises
InvalidManifest for a manifest that is none and InvalidRequest for an enum value that this release does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from adapter.errors import InvalidManifest as InvalidFiles
from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import resources_pb2 as resources_pb
from registry.errors import InvalidManifest, InvalidRequest
from registry.resources import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasChange,
    AliasTarget,
    BaseModel,
    BaseModelParent,
    BaseModelRelation,
    ModuleShape,
    Provenance,
    Signature,
    VersionState,
)

EnumT = TypeVar("EnumT", bound=StrEnum)


def write_time(time: datetime | None) -> Timestamp | None:
    """None stays unset."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def read_time(message: Timestamp) -> datetime:
    """In UTC."""
    return message.ToDatetime(tzinfo=UTC)


def write_manifest(manifest: Manifest) -> resources_pb.Manifest:
    """The files, sorted as they are."""
    return resources_pb.Manifest(
        files=[
            resources_pb.ManifestFile(path=file.path, size_bytes=file.size_bytes, digest=file.digest)
            for file in manifest.files
        ]
    )


def read_manifest(message: resources_pb.Manifest) -> Manifest:
    """Raises InvalidManifest for paths, digests or an order that a manifest may not have."""
    try:
        return Manifest(tuple(ManifestFile(file.path, file.size_bytes, file.digest) for file in message.files))
    except InvalidFiles as error:
        raise InvalidManifest(str(error), field="manifest") from error


def write_modules(modules: Iterable[ModuleShape]) -> list[resources_pb.ModuleShape]:
    """In the order given."""
    return [
        resources_pb.ModuleShape(name=one.name, out_features=one.out_features, in_features=one.in_features)
        for one in modules
    ]


def read_modules(messages: Iterable[resources_pb.ModuleShape]) -> tuple[ModuleShape, ...]:
    """In the order given."""
    return tuple(ModuleShape(one.name, one.out_features, one.in_features) for one in messages)


def write_parents(parents: Iterable[BaseModelParent]) -> list[resources_pb.BaseModelParent]:
    """In the order given."""
    return [
        resources_pb.BaseModelParent(
            base_model=one.base_model,
            relation=write_enum(resources_pb.BaseModelRelation, one.relation, "BASE_MODEL_RELATION_"),
            adapter_version=one.adapter_version,
        )
        for one in parents
    ]


def read_parents(messages: Iterable[resources_pb.BaseModelParent]) -> tuple[BaseModelParent, ...]:
    """In the order given."""
    return tuple(
        BaseModelParent(
            base_model=one.base_model,
            relation=read_enum(BaseModelRelation, resources_pb.BaseModelRelation, one.relation, "BASE_MODEL_RELATION_"),
            adapter_version=one.adapter_version,
        )
        for one in messages
    )


def write_base_model(model: BaseModel) -> resources_pb.BaseModel:
    """With the modules that it has."""
    return resources_pb.BaseModel(
        name=model.name,
        digest=model.digest,
        config_digest=model.config_digest,
        weights_digest=model.weights_digest,
        tokenizer_digest=model.tokenizer_digest,
        manifest=write_manifest(model.manifest),
        architecture=model.architecture,
        modules=write_modules(model.modules),
        parents=write_parents(model.parents),
        create_time=write_time(model.create_time),
    )


def read_base_model(message: resources_pb.BaseModel) -> BaseModel:
    """With the modules that it has."""
    return BaseModel(
        name=message.name,
        digest=message.digest,
        config_digest=message.config_digest,
        weights_digest=message.weights_digest,
        tokenizer_digest=message.tokenizer_digest,
        manifest=read_manifest(message.manifest),
        architecture=message.architecture,
        modules=read_modules(message.modules),
        parents=read_parents(message.parents),
        create_time=read_optional_time(message, "create_time"),
    )


def write_targets(targets: Iterable[AliasTarget]) -> list[resources_pb.AliasTarget]:
    """In the order given."""
    return [
        resources_pb.AliasTarget(version=one.version, digest=one.digest, weight=one.weight, shadow=one.shadow)
        for one in targets
    ]


def read_targets(messages: Iterable[resources_pb.AliasTarget]) -> tuple[AliasTarget, ...]:
    """In the order given."""
    return tuple(AliasTarget(one.version, one.digest, one.weight, one.shadow) for one in messages)


def write_alias(alias: Alias) -> resources_pb.Alias:
    """The alias with its targets."""
    return resources_pb.Alias(
        adapter=alias.adapter,
        alias=alias.alias,
        targets=write_targets(alias.targets),
        protected=alias.protected,
        revision=alias.revision,
        update_time=write_time(alias.update_time),
    )


def read_alias(message: resources_pb.Alias) -> Alias:
    """The alias with its targets."""
    return Alias(
        adapter=message.adapter,
        alias=message.alias,
        targets=read_targets(message.targets),
        protected=message.protected,
        revision=message.revision,
        update_time=read_optional_time(message, "update_time"),
    )


def write_alias_change(change: AliasChange) -> resources_pb.AliasChange:
    """One entry of the history."""
    return resources_pb.AliasChange(
        revision=change.revision,
        before=write_targets(change.before),
        after=write_targets(change.after),
        actor=change.actor,
        time=write_time(change.time),
        message=change.message,
    )


def read_alias_change(message: resources_pb.AliasChange) -> AliasChange:
    """One entry of the history."""
    return AliasChange(
        revision=message.revision,
        before=read_targets(message.before),
        after=read_targets(message.after),
        actor=message.actor,
        time=read_time(message.time),
        message=message.message,
    )


def write_adapter(adapter: Adapter) -> resources_pb.Adapter:
    """The adapter with its aliases."""
    return resources_pb.Adapter(
        name=adapter.name,
        base_model=adapter.base_model,
        latest_version=adapter.latest_version,
        aliases=[write_alias(alias) for alias in adapter.aliases],
        create_time=write_time(adapter.create_time),
    )


def read_adapter(message: resources_pb.Adapter) -> Adapter:
    """The adapter with its aliases."""
    return Adapter(
        name=message.name,
        base_model=message.base_model,
        latest_version=message.latest_version,
        aliases=tuple(read_alias(alias) for alias in message.aliases),
        create_time=read_optional_time(message, "create_time"),
    )


def write_provenance(provenance: Provenance) -> resources_pb.Provenance:
    """In the publisher's words."""
    return resources_pb.Provenance(
        git_commit=provenance.git_commit,
        run_uri=provenance.run_uri,
        dataset_uris=provenance.dataset_uris,
        labels=provenance.labels,
    )


def read_provenance(message: resources_pb.Provenance) -> Provenance:
    """In the publisher's words."""
    return Provenance(message.git_commit, message.run_uri, tuple(message.dataset_uris), dict(message.labels))


def write_version(version: AdapterVersion) -> resources_pb.AdapterVersion:
    """The version with its manifest."""
    return resources_pb.AdapterVersion(
        adapter=version.adapter,
        number=version.number,
        digest=version.digest,
        base_model=version.base_model,
        base_model_digest=version.base_model_digest,
        manifest=write_manifest(version.manifest),
        rank=version.rank,
        alpha=version.alpha,
        target_modules=version.target_modules,
        features=version.features,
        state=write_enum(resources_pb.VersionState, version.state, "VERSION_STATE_"),
        rejection_reasons=version.rejection_reasons,
        parent=version.parent,
        provenance=write_provenance(version.provenance),
        size_bytes=version.size_bytes,
        aliases=version.aliases,
        create_time=write_time(version.create_time),
        revision=version.revision,
        signature=write_signature(version.signature) if version.signature else None,
    )


def read_version(message: resources_pb.AdapterVersion) -> AdapterVersion:
    """The version with its manifest."""
    return AdapterVersion(
        adapter=message.adapter,
        number=message.number,
        digest=message.digest,
        base_model=message.base_model,
        base_model_digest=message.base_model_digest,
        manifest=read_manifest(message.manifest),
        rank=message.rank,
        alpha=message.alpha,
        target_modules=tuple(message.target_modules),
        features=tuple(message.features),
        state=read_enum(VersionState, resources_pb.VersionState, message.state, "VERSION_STATE_"),
        size_bytes=message.size_bytes,
        rejection_reasons=tuple(message.rejection_reasons),
        parent=message.parent,
        provenance=read_provenance(message.provenance),
        aliases=tuple(message.aliases),
        create_time=read_optional_time(message, "create_time"),
        revision=message.revision,
        signature=read_signature(message.signature),
    )


def write_signature(signature: Signature) -> resources_pb.Signature:
    """Its bundle is text of ours, and bytes on the wire."""
    return resources_pb.Signature(key_id=signature.key_id, bundle=signature.bundle.encode())


def read_signature(message: resources_pb.Signature) -> Signature | None:
    """None when there is none; bytes that are no text are replaced, and then signed by nobody."""
    if not message.key_id and not message.bundle:
        return None
    return Signature(message.key_id, message.bundle.decode(errors="replace"))


def read_optional_time(message: Any, field: str) -> datetime | None:
    """None when it is unset."""
    return read_time(getattr(message, field)) if message.HasField(field) else None


def write_enum(kind: Any, value: StrEnum, prefix: str) -> Any:
    """The message's value of an enum of ours."""
    return kind.Value(prefix + value.name)


def read_enum(ours: type[EnumT], theirs: Any, value: int, prefix: str) -> EnumT:
    """Our value of a message's enum. Raises InvalidRequest for one that this release does not know."""
    try:
        return ours[theirs.Name(value).removeprefix(prefix)]
    except (KeyError, ValueError) as error:
        raise InvalidRequest(f"expected a {ours.__name__} that this release knows, found {value}") from error
