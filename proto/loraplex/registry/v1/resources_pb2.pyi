import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BaseModelRelation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BASE_MODEL_RELATION_UNSPECIFIED: _ClassVar[BaseModelRelation]
    BASE_MODEL_RELATION_FINETUNE: _ClassVar[BaseModelRelation]
    BASE_MODEL_RELATION_QUANTIZED: _ClassVar[BaseModelRelation]
    BASE_MODEL_RELATION_MERGE: _ClassVar[BaseModelRelation]
    BASE_MODEL_RELATION_ADAPTER_MERGE: _ClassVar[BaseModelRelation]

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_REGISTERED: _ClassVar[VersionState]
    VERSION_STATE_VALIDATED: _ClassVar[VersionState]
    VERSION_STATE_REJECTED: _ClassVar[VersionState]
    VERSION_STATE_RETIRED: _ClassVar[VersionState]
BASE_MODEL_RELATION_UNSPECIFIED: BaseModelRelation
BASE_MODEL_RELATION_FINETUNE: BaseModelRelation
BASE_MODEL_RELATION_QUANTIZED: BaseModelRelation
BASE_MODEL_RELATION_MERGE: BaseModelRelation
BASE_MODEL_RELATION_ADAPTER_MERGE: BaseModelRelation
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_REGISTERED: VersionState
VERSION_STATE_VALIDATED: VersionState
VERSION_STATE_REJECTED: VersionState
VERSION_STATE_RETIRED: VersionState

class BaseModel(_message.Message):
    __slots__ = ("name", "digest", "config_digest", "weights_digest", "tokenizer_digest", "manifest", "architecture", "modules", "parents", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    config_digest: str
    weights_digest: str
    tokenizer_digest: str
    manifest: Manifest
    architecture: str
    modules: _containers.RepeatedCompositeFieldContainer[ModuleShape]
    parents: _containers.RepeatedCompositeFieldContainer[BaseModelParent]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., config_digest: _Optional[str] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., architecture: _Optional[str] = ..., modules: _Optional[_Iterable[_Union[ModuleShape, _Mapping]]] = ..., parents: _Optional[_Iterable[_Union[BaseModelParent, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ModuleShape(_message.Message):
    __slots__ = ("name", "out_features", "in_features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    IN_FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    out_features: int
    in_features: int
    def __init__(self, name: _Optional[str] = ..., out_features: _Optional[int] = ..., in_features: _Optional[int] = ...) -> None: ...

class BaseModelParent(_message.Message):
    __slots__ = ("base_model", "relation", "adapter_version")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RELATION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    relation: BaseModelRelation
    adapter_version: str
    def __init__(self, base_model: _Optional[str] = ..., relation: _Optional[_Union[BaseModelRelation, str]] = ..., adapter_version: _Optional[str] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[ManifestFile]
    def __init__(self, files: _Optional[_Iterable[_Union[ManifestFile, _Mapping]]] = ...) -> None: ...

class ManifestFile(_message.Message):
    __slots__ = ("path", "size_bytes", "digest")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    digest: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "base_model", "latest_version", "aliases", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LATEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    base_model: str
    latest_version: int
    aliases: _containers.RepeatedCompositeFieldContainer[Alias]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., base_model: _Optional[str] = ..., latest_version: _Optional[int] = ..., aliases: _Optional[_Iterable[_Union[Alias, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AdapterVersion(_message.Message):
    __slots__ = ("adapter", "number", "digest", "base_model", "base_model_digest", "manifest", "rank", "alpha", "target_modules", "features", "state", "rejection_reasons", "parent", "provenance", "size_bytes", "signature", "aliases", "create_time", "revision")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REJECTION_REASONS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    number: int
    digest: str
    base_model: str
    base_model_digest: str
    manifest: Manifest
    rank: int
    alpha: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    state: VersionState
    rejection_reasons: _containers.RepeatedScalarFieldContainer[str]
    parent: str
    provenance: Provenance
    size_bytes: int
    signature: Signature
    aliases: _containers.RepeatedScalarFieldContainer[str]
    create_time: _timestamp_pb2.Timestamp
    revision: int
    def __init__(self, adapter: _Optional[str] = ..., number: _Optional[int] = ..., digest: _Optional[str] = ..., base_model: _Optional[str] = ..., base_model_digest: _Optional[str] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., rank: _Optional[int] = ..., alpha: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[VersionState, str]] = ..., rejection_reasons: _Optional[_Iterable[str]] = ..., parent: _Optional[str] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., size_bytes: _Optional[int] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("git_commit", "run_uri", "dataset_uris", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    GIT_COMMIT_FIELD_NUMBER: _ClassVar[int]
    RUN_URI_FIELD_NUMBER: _ClassVar[int]
    DATASET_URIS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    git_commit: str
    run_uri: str
    dataset_uris: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, git_commit: _Optional[str] = ..., run_uri: _Optional[str] = ..., dataset_uris: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key_id", "bundle")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    bundle: bytes
    def __init__(self, key_id: _Optional[str] = ..., bundle: _Optional[bytes] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("adapter", "alias", "targets", "protected", "revision", "update_time")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    targets: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    protected: bool
    revision: int
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., protected: _Optional[bool] = ..., revision: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AliasTarget(_message.Message):
    __slots__ = ("version", "digest", "weight", "shadow")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    weight: int
    shadow: bool
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., weight: _Optional[int] = ..., shadow: _Optional[bool] = ...) -> None: ...

class AliasChange(_message.Message):
    __slots__ = ("revision", "before", "after", "actor", "time", "message")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    before: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    after: _containers.RepeatedCompositeFieldContainer[AliasTarget]
    actor: str
    time: _timestamp_pb2.Timestamp
    message: str
    def __init__(self, revision: _Optional[int] = ..., before: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., after: _Optional[_Iterable[_Union[AliasTarget, _Mapping]]] = ..., actor: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...
