from loraplex.registry.v1 import resources_pb2 as _resources_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignAdapterVersionRequest(_message.Message):
    __slots__ = ("adapter", "version", "signature", "request_id")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    version: int
    signature: _resources_pb2.Signature
    request_id: str
    def __init__(self, adapter: _Optional[str] = ..., version: _Optional[int] = ..., signature: _Optional[_Union[_resources_pb2.Signature, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SignAdapterVersionResponse(_message.Message):
    __slots__ = ("version", "revision")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    version: _resources_pb2.AdapterVersion
    revision: int
    def __init__(self, version: _Optional[_Union[_resources_pb2.AdapterVersion, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class AliasPolicy(_message.Message):
    __slots__ = ("adapter", "alias", "public_keys")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEYS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    public_keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., public_keys: _Optional[_Iterable[str]] = ...) -> None: ...

class SetAliasPolicyRequest(_message.Message):
    __slots__ = ("policy", "request_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    policy: AliasPolicy
    request_id: str
    def __init__(self, policy: _Optional[_Union[AliasPolicy, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SetAliasPolicyResponse(_message.Message):
    __slots__ = ("policy", "revision")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    policy: AliasPolicy
    revision: int
    def __init__(self, policy: _Optional[_Union[AliasPolicy, _Mapping]] = ..., revision: _Optional[int] = ...) -> None: ...

class GetAliasPolicyRequest(_message.Message):
    __slots__ = ("adapter", "alias")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ...) -> None: ...

class GetAliasPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: AliasPolicy
    def __init__(self, policy: _Optional[_Union[AliasPolicy, _Mapping]] = ...) -> None: ...
