"""The part of RegistryService that is about the registry itself: tokens, the audit log, protected aliases."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer
from registry import admin_messages, messages
from registry.access import grant
from registry.errors import InvalidRequest, SecretNotKept
from registry.requests import check_alias, check_name, check_text, read_call, read_page
from registry.resources import Scope, Token
from registry.store import Store
from registry.store.database import Call
from registry.store.tokens import NewSecret
from rpc.security import actor, hash_secret

# mypy-protobuf's own context type is private to each stub.
Context = Any

# Scanners for leaked secrets find ours by this.
SECRET_PREFIX = "lplx_"  # noqa: S105 - not a secret itself
MAX_LIMITS = 1000


class AdminService(RegistryServiceServicer):
    """Tokens, the audit log, protected aliases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def SetAliasProtection(
        self, request: pb.SetAliasProtectionRequest, context: Context
    ) -> pb.SetAliasProtectionResponse:
        answer = await self._store.protection.set(
            make_call("SetAliasProtection", request),
            request.adapter,
            check_alias(request.alias),
            protected=request.protected,
            message=check_text(request.message, "message"),
        )
        return pb.SetAliasProtectionResponse(alias=messages.write_alias(answer.alias), revision=answer.revision)

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        page = await self._store.audit.list(read_page(request), adapter=request.adapter, actor=request.actor)
        return pb.ListAuditEntriesResponse(
            entries=[admin_messages.write_audit_entry(one) for one in page.items], next_page_token=page.next_token
        )

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        scopes = _check_scopes(request.scopes)
        token = Token(
            name=check_name(request.name, "name"),
            scopes=scopes,
            adapters=_check_limits(request.adapters, "adapters", scopes),
            aliases=_check_limits(request.aliases, "aliases", scopes),
            expire_time=_read_expiry(request),
        )
        text, secret = _new_secret()
        answer = await self._store.tokens.create(make_call("CreateToken", request), secret, token)
        _check_new(answer.token, secret)
        return pb.CreateTokenResponse(token=admin_messages.write_token(answer.token), secret=text)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        page = await self._store.tokens.list(read_page(request))
        return pb.ListTokensResponse(
            tokens=[admin_messages.write_token(one) for one in page.items], next_page_token=page.next_token
        )

    async def RotateToken(self, request: pb.RotateTokenRequest, context: Context) -> pb.RotateTokenResponse:
        text, secret = _new_secret()
        answer = await self._store.tokens.rotate(
            make_call("RotateToken", request),
            request.id,
            secret,
            grace=_read_grace(request),
            expire_time=_read_expiry(request),
        )
        _check_new(answer.token, secret)
        return pb.RotateTokenResponse(
            token=admin_messages.write_token(answer.token),
            secret=text,
            replaced=admin_messages.write_token(answer.replaced),
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        answer = await self._store.tokens.revoke(make_call("RevokeToken", request), request.id)
        return pb.RevokeTokenResponse(token=admin_messages.write_token(answer.token))


def make_call(action: str, request: Any) -> Call:
    """The write that a request asks for, by whoever calls."""
    return read_call(action, request, actor=actor(), grant=grant())


def _new_secret() -> tuple[str, NewSecret]:
    """A secret, and what is kept of it."""
    text = SECRET_PREFIX + secrets.token_urlsafe(32)
    return text, NewSecret(id=uuid.uuid4().hex[:16], secret_hash=hash_secret(text))


def _check_new(token: Token, secret: NewSecret) -> None:
    """Raises SecretNotKept when the store answered with the token of an earlier call."""
    if token.id != secret.id:
        raise SecretNotKept(
            f"token {token.id} was made by an earlier call with this request id, and only that answer had its secret; "
            "revoke it and create another",
            metadata={"token": token.id},
        )


def _check_scopes(words: Iterable[str]) -> tuple[Scope, ...]:
    found = set(words)
    known = {one.value for one in Scope}
    if not found or found - known:
        shown = ", ".join(sorted(found - known)) or "none"
        raise InvalidRequest(
            f"scopes: expected at least one of {', '.join(sorted(known))}, found {shown}", field="scopes"
        )
    return tuple(scope for scope in Scope if scope.value in found)


def _check_limits(names: Iterable[str], field: str, scopes: tuple[Scope, ...]) -> tuple[str, ...]:
    found = sorted(set(names))
    if len(found) > MAX_LIMITS:
        raise InvalidRequest(f"{field}: expected at most {MAX_LIMITS}, found {len(found)}", field=field)
    if found and Scope.ADMIN in scopes:
        raise InvalidRequest(f"{field}: expected no limit together with the scope admin, which has none", field=field)
    return tuple(check_name(name, field) for name in found)


def _read_expiry(request: pb.CreateTokenRequest | pb.RotateTokenRequest) -> datetime | None:
    if not request.HasField("expire_time"):
        return None
    try:
        return messages.read_time(_whole_seconds(request.expire_time))
    except ValueError as error:
        raise InvalidRequest(f"expire_time: expected a time, found {error}", field="expire_time") from error


def _whole_seconds(time: Timestamp) -> Timestamp:
    # Nanoseconds do not survive a datetime; nobody lets a token expire at one.
    return Timestamp(seconds=time.seconds)


def _read_grace(request: pb.RotateTokenRequest) -> timedelta:
    grace = timedelta(seconds=request.grace.seconds)
    if not timedelta() <= grace <= timedelta(days=3650):
        raise InvalidRequest(f"grace: expected 0 s to 10 years, found {request.grace.seconds} s", field="grace")
    return grace
