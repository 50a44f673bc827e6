import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from loraplex.registry.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("after_revision", "store_id", "base_model")
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    store_id: str
    base_model: str
    def __init__(self, after_revision: _Optional[int] = ..., store_id: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("store_id", "snapshot_item", "snapshot_end", "change", "progress")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ITEM_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    snapshot_item: SnapshotItem
    snapshot_end: SnapshotEnd
    change: Change
    progress: Progress
    def __init__(self, store_id: _Optional[str] = ..., snapshot_item: _Optional[_Union[SnapshotItem, _Mapping]] = ..., snapshot_end: _Optional[_Union[SnapshotEnd, _Mapping]] = ..., change: _Optional[_Union[Change, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class SnapshotItem(_message.Message):
    __slots__ = ("base_model", "alias", "version")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    base_model: _resources_pb2.BaseModel
    alias: _resources_pb2.Alias
    version: _resources_pb2.AdapterVersion
    def __init__(self, base_model: _Optional[_Union[_resources_pb2.BaseModel, _Mapping]] = ..., alias: _Optional[_Union[_resources_pb2.Alias, _Mapping]] = ..., version: _Optional[_Union[_resources_pb2.AdapterVersion, _Mapping]] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("revision", "events")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, revision: _Optional[int] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("revision", "time", "base_model_created", "version_registered", "alias_changed", "version_retired", "version_unretired")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_CREATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    ALIAS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    VERSION_RETIRED_FIELD_NUMBER: _ClassVar[int]
    VERSION_UNRETIRED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    time: _timestamp_pb2.Timestamp
    base_model_created: _resources_pb2.BaseModel
    version_registered: _resources_pb2.AdapterVersion
    alias_changed: AliasChanged
    version_retired: _resources_pb2.AdapterVersion
    version_unretired: _resources_pb2.AdapterVersion
    def __init__(self, revision: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., base_model_created: _Optional[_Union[_resources_pb2.BaseModel, _Mapping]] = ..., version_registered: _Optional[_Union[_resources_pb2.AdapterVersion, _Mapping]] = ..., alias_changed: _Optional[_Union[AliasChanged, _Mapping]] = ..., version_retired: _Optional[_Union[_resources_pb2.AdapterVersion, _Mapping]] = ..., version_unretired: _Optional[_Union[_resources_pb2.AdapterVersion, _Mapping]] = ...) -> None: ...

class AliasChanged(_message.Message):
    __slots__ = ("alias", "versions")
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    alias: _resources_pb2.Alias
    versions: _containers.RepeatedCompositeFieldContainer[_resources_pb2.AdapterVersion]
    def __init__(self, alias: _Optional[_Union[_resources_pb2.Alias, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[_resources_pb2.AdapterVersion, _Mapping]]] = ...) -> None: ...
