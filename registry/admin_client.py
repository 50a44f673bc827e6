"""The part of the client that is about the registry itself: tokens, the audit log, protected aliases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from registry import admin_messages, messages
from registry.calls import Calls, new_request_id
from registry.resources import Alias, AuditEntry, Scope, Token

# The most that the registry gives at once.
PAGE_SIZE = 1000


@dataclass(frozen=True, slots=True)
class CreatedToken:
    """Answer of `create_token`; the secret is here and nowhere else."""

    token: Token
    secret: str


@dataclass(frozen=True, slots=True)
class RotatedToken:
    """Answer of `rotate_token`: the new token with its secret, and the old one with the time at which it ends."""

    token: Token
    secret: str
    replaced: Token


class AdminClient:
    """What takes the scope `admin`. Methods raise the classes of `registry.errors`."""

    def __init__(self, stub: rpcs.RegistryServiceAsyncStub, calls: Calls) -> None:
        self._stub = stub
        self._calls = calls

    async def create_token(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        adapters: Iterable[str] = (),
        aliases: Iterable[str] = (),
        expire_time: datetime | None = None,
    ) -> CreatedToken:
        """Makes a bearer token. No adapters: all; no aliases: it may move all that are not protected."""
        answer = await self._calls.call(
            self._stub.CreateToken,
            pb.CreateTokenRequest(
                name=name,
                scopes=[one.value for one in scopes],
                adapters=adapters,
                aliases=aliases,
                expire_time=messages.write_time(expire_time),
                request_id=new_request_id(),
            ),
        )
        return CreatedToken(admin_messages.read_token(answer.token), answer.secret)

    async def list_tokens(self) -> list[Token]:
        """All, newest first; those that ended too."""
        pages = self._calls.pages(self._stub.ListTokens, pb.ListTokensRequest(page_size=PAGE_SIZE))
        return [admin_messages.read_token(one) async for page in pages for one in page.tokens]

    async def rotate_token(
        self, token_id: str, *, grace_s: float = 0.0, expire_time: datetime | None = None
    ) -> RotatedToken:
        """Makes another token with the same rights; the old one ends after `grace_s`."""
        request = pb.RotateTokenRequest(
            id=token_id, expire_time=messages.write_time(expire_time), request_id=new_request_id()
        )
        request.grace.FromNanoseconds(int(grace_s * 1e9))
        answer = await self._calls.call(self._stub.RotateToken, request)
        return RotatedToken(
            admin_messages.read_token(answer.token), answer.secret, admin_messages.read_token(answer.replaced)
        )

    async def revoke_token(self, token_id: str) -> Token:
        """Ends a token at once."""
        request = pb.RevokeTokenRequest(id=token_id, request_id=new_request_id())
        answer = await self._calls.call(self._stub.RevokeToken, request)
        return admin_messages.read_token(answer.token)

    async def list_audit_entries(
        self, *, adapter: str = "", actor: str = "", limit: int | None = None
    ) -> list[AuditEntry]:
        """The newest `limit` entries, or all, newest first; of one adapter or one actor when they are given."""
        size = min(limit or PAGE_SIZE, PAGE_SIZE)
        request = pb.ListAuditEntriesRequest(adapter=adapter, actor=actor, page_size=size)
        found: list[AuditEntry] = []
        async for page in self._calls.pages(self._stub.ListAuditEntries, request):
            found += [admin_messages.read_audit_entry(one) for one in page.entries]
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    async def set_alias_protection(self, adapter: str, *, alias: str = "", protected: bool, message: str = "") -> Alias:
        """Protects an alias, or lifts that."""
        answer = await self._calls.call(
            self._stub.SetAliasProtection,
            pb.SetAliasProtectionRequest(
                adapter=adapter, alias=alias, protected=protected, request_id=new_request_id(), message=message
            ),
        )
        return messages.read_alias(answer.alias)
