"""Who calls the registry, and whether they may: the gate in front of every method. What it lets through is logged by
the store's audit log; it knows no resource but tokens.

    secret ──> a name in the token file, which is an admin    (how the first token is made)
           └─> a token in Postgres, with its scopes and limits
    certificate ──> its subject's line in `registry.client_scopes`
    neither asked for ──> `anonymous`, who may do everything; the server then listens on loopback only

A secret counts before a certificate, and a wrong one is refused whatever the certificate says. A method without a rule
is refused to everyone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adapter.names import Reference
from registry.errors import PermissionDenied, Unauthenticated
from registry.events import Listener
from registry.grants import EVERYTHING, Grant
from registry.requests import check_reference
from registry.resources import DEFAULT_ALIAS, Scope, Token
from registry.store.tokens import Tokens
from rpc.security import ANONYMOUS, Security, Shown, hash_secret

# A process with more callers than this asks Postgres a little more often.
MAX_KEPT = 1024
# The longest that a token is believed while the listener hears nothing, which is also how long Postgres may be away.
KEPT_S = 30.0

Reach = Callable[[Grant, Any], None]
"""Raises PermissionDenied when a grant does not reach what a request is about."""


def _nothing(grant: Grant, request: Any) -> None:
    """Concerns no particular adapter."""


def _filtered(grant: Grant, request: Any) -> None:
    """Concerns every adapter, and the servicer answers with what the grant covers."""


def _everything(grant: Grant, request: Any) -> None:  # noqa: ARG001 - as in Reach
    """Concerns every adapter."""
    grant.check_unlimited()


def _adapter(grant: Grant, request: Any) -> None:
    grant.check_adapter(request.adapter)


def _alias(grant: Grant, request: Any) -> None:
    # Whether it is protected only its row tells; the store checks that.
    grant.check_move(request.adapter, request.alias or DEFAULT_ALIAS, protected=False)


def _all_aliases(grant: Grant, request: Any) -> None:
    grant.check_adapter(request.adapter)
    if grant.aliases:
        raise PermissionDenied(
            f"this concerns every alias, and these rights are limited to {', '.join(sorted(grant.aliases))}"
        )


def _reference(grant: Grant, request: Any) -> None:
    _named(grant, check_reference(request.reference, "reference"))


def _lineage(grant: Grant, request: Any) -> None:
    if request.WhichOneof("start") == "adapter_version":
        _named(grant, check_reference(request.adapter_version, "adapter_version"))
    else:
        grant.check_unlimited()


def _named(grant: Grant, reference: Reference) -> None:
    """A digest may belong to any adapter."""
    if reference.name is None:
        grant.check_unlimited()
    else:
        grant.check_adapter(reference.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method asks of its caller."""

    scope: Scope
    reach: Reach = _nothing


_REGISTRY = "/loraplex.registry.v1.RegistryService/"
_SIGNING = "/loraplex.registry.v1.SigningService/"
_UPKEEP = "/loraplex.registry.v1.UpkeepService/"
_WATCH = "/loraplex.registry.v1.WatchService/"
_WORKER = "/loraplex.registry.v1.WorkerService/"

RULES: dict[str, Rule] = {
    _REGISTRY + "CreateBaseModel": Rule(Scope.REGISTER, _everything),
    _REGISTRY + "GetBaseModel": Rule(Scope.READ),
    _REGISTRY + "ListBaseModels": Rule(Scope.READ),
    _REGISTRY + "FindMissingBlobs": Rule(Scope.REGISTER),
    _REGISTRY + "UploadBlob": Rule(Scope.REGISTER),
    _REGISTRY + "ReadBlob": Rule(Scope.READ, _filtered),
    _REGISTRY + "RegisterAdapterVersion": Rule(Scope.REGISTER, _adapter),
    _REGISTRY + "GetAdapter": Rule(Scope.READ, _adapter),
    _REGISTRY + "ListAdapters": Rule(Scope.READ, _filtered),
    _REGISTRY + "GetAdapterVersion": Rule(Scope.READ, _adapter),
    _REGISTRY + "ListAdapterVersions": Rule(Scope.READ, _adapter),
    _REGISTRY + "VerifyAdapterVersion": Rule(Scope.READ, _adapter),
    _REGISTRY + "RetireAdapterVersion": Rule(Scope.PROMOTE, _all_aliases),
    _REGISTRY + "UnretireAdapterVersion": Rule(Scope.PROMOTE, _all_aliases),
    _REGISTRY + "PromoteAdapterVersion": Rule(Scope.PROMOTE, _alias),
    _REGISTRY + "RollbackAlias": Rule(Scope.PROMOTE, _alias),
    _REGISTRY + "SetAliasProtection": Rule(Scope.ADMIN),
    _REGISTRY + "ListAliasChanges": Rule(Scope.READ, _adapter),
    _REGISTRY + "ResolveAdapter": Rule(Scope.READ, _reference),
    _REGISTRY + "GetLineage": Rule(Scope.READ, _lineage),
    _REGISTRY + "GetStatus": Rule(Scope.READ),
    _REGISTRY + "ListAuditEntries": Rule(Scope.ADMIN),
    _REGISTRY + "CreateToken": Rule(Scope.ADMIN),
    _REGISTRY + "ListTokens": Rule(Scope.ADMIN),
    _REGISTRY + "RotateToken": Rule(Scope.ADMIN),
    _REGISTRY + "RevokeToken": Rule(Scope.ADMIN),
    _SIGNING + "SignAdapterVersion": Rule(Scope.REGISTER, _adapter),
    _SIGNING + "SetAliasPolicy": Rule(Scope.ADMIN),
    _SIGNING + "GetAliasPolicy": Rule(Scope.READ, _adapter),
    _UPKEEP + "CompactEvents": Rule(Scope.ADMIN),
    _UPKEEP + "CollectBlobs": Rule(Scope.ADMIN),
    _WATCH + "Watch": Rule(Scope.WATCH, _filtered),
    _WORKER + "ReportWorker": Rule(Scope.REPORT),
    _WORKER + "ListWorkers": Rule(Scope.READ, _filtered),
    # The contract is public.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(Scope.READ),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, what they may do, and what they showed for it."""

    name: str
    grant: Grant
    shown: Shown


# Set for the length of one call; a servicer that no gate guards has a caller who may do nothing.
_NOBODY = Caller(ANONYMOUS, Grant(), Shown())
_caller: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def grant() -> Grant:
    """What the caller may do. Only within a call."""
    return _caller.get().grant


Moment = tuple[int, int]
"""The newest revision that was heard of, and how many tokens this process had ended."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Access:
    """The registry's gate."""

    def __init__(
        self,
        security: Security,
        tokens: Tokens,
        listener: Listener,
        *,
        client_grants: Mapping[str, Grant] | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """`now` is the clock that tokens expire by."""
        self._security = security
        self._tokens = tokens
        self._listener = listener
        self._client_grants = client_grants or {}
        self._now = now
        # By hash: the token, and the moment and the time at which it was read.
        self._kept: OrderedDict[str, tuple[Token, Moment, datetime]] = OrderedDict()
        # Reads on their way: a thousand watches with one token ask once about a new revision.
        self._reads: dict[tuple[str, Moment], asyncio.Task[Token | None]] = {}

    async def admit(self, method: str, shown: Shown, request: object | None) -> str:
        """The caller's name. Raises Unauthenticated, PermissionDenied, and StoreUnavailable for a token unseen yet."""
        caller = await self._identify(shown)
        rule = RULES.get(method)
        if rule is None:
            raise PermissionDenied(f"{method} has no rule that lets anyone call it")
        caller.grant.check_scope(rule.scope)
        if request is not None:
            rule.reach(caller.grant, request)
        _caller.set(caller)
        return caller.name

    async def check_again(self) -> None:
        """Raises Unauthenticated when the caller of a long call is no longer who it was: its token has ended."""
        await self._identify(_caller.get().shown)

    async def _identify(self, shown: Shown) -> Caller:
        if not self._security.is_configured:
            return Caller(ANONYMOUS, EVERYTHING, shown)
        if shown.secret:
            name = self._security.find_token(shown.secret)
            if name is not None:
                return Caller(name, EVERYTHING, shown)
            token = await self._find(hash_secret(shown.secret))
            return Caller(token.name, grant_of(token), shown)
        if not shown.identities:
            raise Unauthenticated
        name = next((one for one in shown.identities if one in self._client_grants), shown.identities[0])
        return Caller(name, self._client_grants.get(name, Grant()), shown)

    async def _find(self, secret_hash: str) -> Token:
        """The token in force. A change of any token is a revision, so one that was read since the last is as it is.

        What this process ended, it knows at once; what another one ended, when the listener hears of it.
        """
        now = self._now()
        # The moment is taken before the token is read, so that a change in between makes it be read again.
        status = self._listener.status
        moment = (-1 if status is None else status.revision, self._tokens.num_ended)
        kept = self._kept.get(secret_hash)
        if kept is not None:
            token, then, time = kept
            if then == moment and (now - time).total_seconds() < KEPT_S:
                return _check_in_force(token, now)
        found = await self._read(secret_hash, moment)
        if found is None:
            self._kept.pop(secret_hash, None)
            raise Unauthenticated
        if status is not None:
            self._kept[secret_hash] = (found, moment, now)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return _check_in_force(found, now)

    async def _read(self, secret_hash: str, moment: Moment) -> Token | None:
        key = (secret_hash, moment)
        task = self._reads.get(key)
        if task is None:
            task = self._reads[key] = asyncio.create_task(self._tokens.find(secret_hash))

            def forget(done: asyncio.Task[Token | None]) -> None:
                del self._reads[key]
                if not done.cancelled():
                    done.exception()  # that of a read that nobody waits for any more is taken too

            task.add_done_callback(forget)
        return await asyncio.shield(task)


def grant_of(token: Token) -> Grant:
    """What a token opens."""
    return Grant(frozenset(token.scopes), frozenset(token.adapters), frozenset(token.aliases))


def _check_in_force(token: Token, now: datetime) -> Token:
    if not token.is_in_force(now):
        what = (
            "was revoked" if token.revoke_time is not None else f"expired at {token.expire_time:%Y-%m-%d %H:%M:%S %Z}"
        )
        raise Unauthenticated(f"the token {token.id} of {token.name!r} {what}; ask for a new one")
    return token
