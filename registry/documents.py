"""The resources as JSON, and back. It knows the shapes that `registry.resources` uses and no particular resource.

| value          | document                                             |
|----------------|------------------------------------------------------|
| dataclass      | object by field name                                 |
| one of several | the same, with its class's name under `kind`         |
| tuple          | array                                                |
| enum, datetime | its value; ISO 8601                                  |

Documents outlive releases: a field that is missing takes its default, one that is unknown is ignored.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
Document = Any  # what json.dumps takes


def encode(value: object) -> Document:
    """The document of a resource."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {
            field.name: _encode_field(getattr(value, field.name), hints[field.name])
            for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [encode(one) for one in value]
    if isinstance(value, Mapping):
        return {key: encode(one) for key, one in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, StrEnum):
        return value.value
    assert value is None or isinstance(value, str | int | float | bool), f"{type(value)} has no document"
    return value


def decode(kind: type[T], document: Document) -> T:
    """The resource of a document that `encode` made."""
    return typing.cast(T, _decode(kind, document))


def _encode_field(value: object, hint: Any) -> Document:
    document = encode(value)
    if len(_classes(hint)) > 1:
        document["kind"] = type(value).__name__
    return document


def _decode(hint: Any, document: Document) -> object:
    if document is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    value: object = document
    if origin in (types.UnionType, typing.Union):
        options = [one for one in arguments if one is not types.NoneType]
        value = _decode(next(one for one in options if len(options) == 1 or one.__name__ == document["kind"]), document)
    elif origin is tuple:
        value = tuple(_decode(arguments[0], one) for one in document)
    elif origin is not None:  # a mapping of plain values
        value = dict(document)
    elif dataclasses.is_dataclass(hint):
        value = _decode_dataclass(hint, document)
    elif hint is datetime:
        value = datetime.fromisoformat(document)
    elif hint is float or issubclass(hint, StrEnum):
        value = hint(document)
    return value


def _decode_dataclass(kind: Any, document: Document) -> object:
    hints = _hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name in document]
    return kind(**{name: _decode(hints[name], document[name]) for name in names})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _classes(hint: Any) -> list[Any]:
    """The dataclasses that a union names."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return []
    return [one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)]
