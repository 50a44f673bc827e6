import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_LIVE: _ClassVar[WorkerState]
    WORKER_STATE_LOST: _ClassVar[WorkerState]

class WorkerAdapterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ADAPTER_STATE_UNSPECIFIED: _ClassVar[WorkerAdapterState]
    WORKER_ADAPTER_STATE_LOADING: _ClassVar[WorkerAdapterState]
    WORKER_ADAPTER_STATE_READY: _ClassVar[WorkerAdapterState]
    WORKER_ADAPTER_STATE_DRAINING: _ClassVar[WorkerAdapterState]
    WORKER_ADAPTER_STATE_FAILED: _ClassVar[WorkerAdapterState]
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_LIVE: WorkerState
WORKER_STATE_LOST: WorkerState
WORKER_ADAPTER_STATE_UNSPECIFIED: WorkerAdapterState
WORKER_ADAPTER_STATE_LOADING: WorkerAdapterState
WORKER_ADAPTER_STATE_READY: WorkerAdapterState
WORKER_ADAPTER_STATE_DRAINING: WorkerAdapterState
WORKER_ADAPTER_STATE_FAILED: WorkerAdapterState

class Worker(_message.Message):
    __slots__ = ("id", "address", "base_model", "base_model_digest", "observed_revision", "adapters", "state", "report_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_REVISION_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPORT_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    base_model: str
    base_model_digest: str
    observed_revision: int
    adapters: _containers.RepeatedCompositeFieldContainer[WorkerAdapter]
    state: WorkerState
    report_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., base_model: _Optional[str] = ..., base_model_digest: _Optional[str] = ..., observed_revision: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[WorkerAdapter, _Mapping]]] = ..., state: _Optional[_Union[WorkerState, str]] = ..., report_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WorkerAdapter(_message.Message):
    __slots__ = ("adapter", "version", "digest", "aliases", "state", "failure", "size_bytes", "in_flight")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    version: int
    digest: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    state: WorkerAdapterState
    failure: str
    size_bytes: int
    in_flight: int
    def __init__(self, adapter: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[WorkerAdapterState, str]] = ..., failure: _Optional[str] = ..., size_bytes: _Optional[int] = ..., in_flight: _Optional[int] = ...) -> None: ...

class ReportWorkerRequest(_message.Message):
    __slots__ = ("worker", "lease", "adapters_digest", "is_renewal")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_RENEWAL_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    lease: _duration_pb2.Duration
    adapters_digest: str
    is_renewal: bool
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., adapters_digest: _Optional[str] = ..., is_renewal: _Optional[bool] = ...) -> None: ...

class ReportWorkerResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ("base_model", "page_size", "page_token", "adapter")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    page_size: int
    page_token: str
    adapter: str
    def __init__(self, base_model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "next_page_token", "revision")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    next_page_token: str
    revision: int
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...
