import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CompactEventsRequest(_message.Message):
    __slots__ = ("keep_revisions", "keep")
    KEEP_REVISIONS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    keep_revisions: int
    keep: _duration_pb2.Duration
    def __init__(self, keep_revisions: _Optional[int] = ..., keep: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CompactEventsResponse(_message.Message):
    __slots__ = ("compacted_revision", "revision", "removed_events")
    COMPACTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REMOVED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    compacted_revision: int
    revision: int
    removed_events: int
    def __init__(self, compacted_revision: _Optional[int] = ..., revision: _Optional[int] = ..., removed_events: _Optional[int] = ...) -> None: ...

class CollectBlobsRequest(_message.Message):
    __slots__ = ("validate_only", "grace")
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    validate_only: bool
    grace: _duration_pb2.Duration
    def __init__(self, validate_only: _Optional[bool] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class CollectBlobsResponse(_message.Message):
    __slots__ = ("blobs", "count", "size_bytes")
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    blobs: _containers.RepeatedCompositeFieldContainer[CollectedBlob]
    count: int
    size_bytes: int
    def __init__(self, blobs: _Optional[_Iterable[_Union[CollectedBlob, _Mapping]]] = ..., count: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class CollectedBlob(_message.Message):
    __slots__ = ("digest", "size_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...
