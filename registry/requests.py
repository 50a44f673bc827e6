"""What a request's words must be before anything is done with them; a check returns its value or raises InvalidRequest.

Postgres refuses what would not fit too; these say which field, and keep strangers' texts short in logs and events.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from adapter import errors as adapter_errors
from adapter import names
from adapter.names import Reference
from registry.errors import InvalidName, InvalidReference, InvalidRequest
from registry.grants import Grant
from registry.resources import DEFAULT_ALIAS, BaseModelParent, BaseModelRelation, ModuleShape
from registry.store.database import Call
from registry.store.paging import PageRequest

MAX_TEXT_CHARS = 4096
MAX_ID_CHARS = 128
# Free words of a publisher go into every event of the version.
MAX_PROVENANCE_BYTES = 64 * 2**10
MAX_MODULES = 100_000


def read_call(action: str, request: Any, *, actor: str, grant: Grant) -> Call:
    """Who calls and what they may do; two requests have the same content when they differ in nothing but their id."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    digest = hashlib.sha256(action.encode() + b"\0" + content.SerializeToString(deterministic=True)).hexdigest()
    return Call(
        actor=actor,
        action=action,
        request_id=check_text(request.request_id, "request_id", most=MAX_ID_CHARS),
        content_digest=f"sha256:{digest}",
        grant=grant,
    )


def read_page(request: Any) -> PageRequest:
    """The page that a list request asks for."""
    return PageRequest(request.page_size, request.page_token)


def check_name(name: str, field: str) -> str:
    """A name by the rule of `adapter.names`."""
    try:
        return names.check_name(name, what=field)
    except adapter_errors.InvalidName as error:
        raise InvalidName(str(error), field=field) from error


def check_alias(alias: str) -> str:
    """An alias's name; empty means the default one."""
    return check_name(alias, "alias") if alias else DEFAULT_ALIAS


def check_digest(digest: str) -> str:
    """`sha256:` and 64 lower-case hex digits."""
    if not names.is_digest(digest):
        raise InvalidRequest(f"expected sha256: and 64 lower-case hex digits, found {digest[:80]!r}", field="digest")
    return digest


def check_reference(text: str, field: str) -> Reference:
    """A reference by the rule of `adapter.names`."""
    try:
        return Reference.parse(text)
    except (adapter_errors.InvalidReference, adapter_errors.InvalidName) as error:
        raise InvalidReference(str(error), field=field) from error


def check_version_name(text: str, field: str) -> str:
    """`NAME:NUMBER`, or nothing."""
    if text and check_reference(text, field).number is None:
        raise InvalidReference(f"{field}: expected NAME:NUMBER, found {text!r}", field=field)
    return text


def check_text(text: str, field: str, *, most: int = MAX_TEXT_CHARS) -> str:
    """Free text that Postgres can hold."""
    if len(text) > most:
        raise InvalidRequest(f"{field}: expected at most {most} characters, found {len(text)}", field=field)
    if "\0" in text:
        raise InvalidRequest(f"{field}: expected text, found a NUL character", field=field)
    return text


def check_modules(modules: Iterable[ModuleShape]) -> tuple[ModuleShape, ...]:
    """A base model's modules, sorted by name."""
    found = sorted(modules, key=lambda module: module.name)
    if not 0 < len(found) <= MAX_MODULES:
        raise InvalidRequest(f"modules: expected 1 to {MAX_MODULES}, found {len(found)}", field="modules")
    for module in found:
        if not module.name or module.out_features < 1 or module.in_features < 1:
            raise InvalidRequest(
                f"modules: expected a name and a shape of at least [1, 1], found {module.name!r} "
                f"[{module.out_features}, {module.in_features}]",
                field="modules",
            )
        check_text(module.name, "modules")
    for one, next_one in itertools.pairwise(found):
        if one.name == next_one.name:
            raise InvalidRequest(f"modules: expected each name once, found {one.name!r} twice", field="modules")
    return tuple(found)


def check_parents(parents: Iterable[BaseModelParent]) -> tuple[BaseModelParent, ...]:
    """A base model's parents."""
    found = tuple(parents)
    for parent in found:
        if not parent.base_model:
            raise InvalidRequest("parents: expected the name of a base model, found none", field="parents")
        check_text(parent.base_model, "parents", most=MAX_ID_CHARS)
        is_merge = parent.relation == BaseModelRelation.ADAPTER_MERGE
        if is_merge != bool(parent.adapter_version):
            raise InvalidRequest(
                "parents: expected adapter_version with ADAPTER_MERGE and with nothing else", field="parents"
            )
        check_version_name(parent.adapter_version, "parents")
    return found
