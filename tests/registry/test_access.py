"""Who may call what: tokens in Postgres, tokens in a file, client certificates, and nobody; over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import json
import pkgutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import psycopg
import pytest
import trustme
from google.protobuf import message_factory

import loraplex.registry.v1
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from registry.access import KEPT_S, RULES, Access
from registry.client import RegistryClient
from registry.embedded import EmbeddedPostgres
from registry.errors import (
    InvalidName,
    InvalidRequest,
    PermissionDenied,
    SecretNotKept,
    TokenNotFound,
    TokenNotInForce,
    Unauthenticated,
)
from registry.events import Listener
from registry.grants import Grant
from registry.resources import (
    BaseModel,
    Change,
    Progress,
    Scope,
    SnapshotEnd,
    SnapshotItem,
    Status,
    Token,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
)
from registry.settings import Settings
from registry.store.database import connection_string
from registry.store.tokens import Tokens
from rpc.channel import connect
from rpc.security import ClientSecurity, ConfigError, Security, Shown, hash_secret

ROOT_SECRET = "the secret in the file"
MODULES = [one.name for one in pkgutil.iter_modules(loraplex.registry.v1.__path__) if one.name.endswith("service_pb2")]
SERVICES = [
    service
    for name in MODULES
    for service in importlib.import_module(f"loraplex.registry.v1.{name}").DESCRIPTOR.services_by_name.values()
]
METHODS = [method for service in SERVICES for method in service.methods]
REGISTRY = "/loraplex.registry.v1.RegistryService/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def path_of(method: Any) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def read_on(watch: AsyncIterator[Any]) -> None:
    async for _ in watch:
        pass


async def next_after(revision: int, watch: AsyncIterator[Any]) -> Any:
    """The first message past a revision; an idle watch repeats where it is."""
    async for message in watch:
        if message.revision > revision:
            return message
    raise AssertionError("the watch ended")


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """A registry with one token in its file, the admin `root`."""
    return dataclasses.replace(settings, security=Security(token_hashes={"root": hash_secret(ROOT_SECRET)}))


@pytest.fixture
async def server(guarded: Settings, serve_here: Any) -> AsyncIterator[Any]:
    async with serve_here(guarded) as running:
        yield running


class Callers:
    """Clients of one registry by their secrets."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._stack = contextlib.AsyncExitStack()

    async def close(self) -> None:
        await self._stack.aclose()

    async def client(self, secret: str) -> RegistryClient:
        channel = connect(self.address, security=ClientSecurity(token=secret))
        return await self._stack.enter_async_context(RegistryClient(channel))

    async def holder(self, *scopes: Scope, **limits: Any) -> RegistryClient:
        """Of a new token."""
        made = await (await self.client(ROOT_SECRET)).admin.create_token("holder", scopes, **limits)
        return await self.client(made.secret)

    async def knock(self, method: Any, secret: str | None) -> grpc.StatusCode:
        """How a call with an empty request ends; OK when a stream says anything."""
        kinds = {(a, b): f"{'stream' if a else 'unary'}_{'stream' if b else 'unary'}" for a in (0, 1) for b in (0, 1)}
        request_type = message_factory.GetMessageClass(method.input_type)
        answer_type = message_factory.GetMessageClass(method.output_type)
        async with connect(self.address, security=ClientSecurity(token=secret or "")) as channel:
            kind = kinds[method.client_streaming, method.server_streaming]
            call = getattr(channel, kind)(
                path_of(method),
                request_serializer=request_type.SerializeToString,
                response_deserializer=answer_type.FromString,
            )
            try:
                running = call(iter([request_type()]) if method.client_streaming else request_type(), timeout=20)
                if method.server_streaming:
                    await running.read()
                    running.cancel()
                else:
                    await running
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK


@pytest.fixture
async def callers(server: Any) -> AsyncIterator[Callers]:
    found = Callers(server.address)
    yield found
    await found.close()


@pytest.fixture
async def root(callers: Callers) -> RegistryClient:
    return await callers.client(ROOT_SECRET)


@pytest.fixture
async def filled(root: RegistryClient, new_base_model: Any, new_adapter: Callable[..., Any]) -> RegistryClient:
    """sql:1, sql:2 and pirate:1; the alias production of sql is protected."""
    await root.create_base_model("base", new_base_model(0))
    for adapter, seed in (("sql", 1), ("sql", 2), ("pirate", 3)):
        await root.register(new_adapter(seed), adapter=adapter, base_model="base")
    await root.promote("sql", 1)
    await root.admin.set_alias_protection("sql", protected=True)
    return root


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert set(RULES) - {REFLECTION} == {path_of(method) for method in METHODS}


async def test_a_method_without_a_rule_is_refused_to_an_admin_too(callers, monkeypatch) -> None:
    method = pb.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name["GetStatus"]
    assert await callers.knock(method, ROOT_SECRET) is grpc.StatusCode.OK
    monkeypatch.delitem(RULES, path_of(method))
    assert await callers.knock(method, ROOT_SECRET) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_stranger_may_call_nothing(callers) -> None:
    for secret in (None, "wrong"):
        ends = {method.name: await callers.knock(method, secret) for method in METHODS}
        assert set(ends.values()) == {grpc.StatusCode.UNAUTHENTICATED}, ends


@pytest.mark.parametrize("scope", list(Scope))
async def test_a_token_opens_the_methods_of_its_scope_and_no_other(callers, root, scope) -> None:
    secret = (await root.admin.create_token("one", [scope])).secret
    refused = {
        path_of(method)
        for method in METHODS
        if await callers.knock(method, secret) is grpc.StatusCode.PERMISSION_DENIED
    }
    expected = {path_of(method) for method in METHODS if RULES[path_of(method)].scope is not scope}
    assert refused == (set() if scope is Scope.ADMIN else expected)


async def test_a_secret_is_shown_once_and_kept_nowhere(server, root) -> None:
    made = await root.admin.create_token("ci", [Scope.READ], adapters=["sql"], aliases=["canary"])
    assert made.secret.startswith("lplx_")
    assert await root.admin.list_tokens() == [made.token]
    assert (made.token.name, made.token.scopes) == ("ci", (Scope.READ,))
    assert (made.token.adapters, made.token.aliases) == (("sql",), ("canary",))
    rotated = await root.admin.rotate_token(made.token.id)
    rows = repr(await server.state())
    assert made.secret not in rows
    assert rotated.secret not in rows
    assert hash_secret(rotated.secret) in rows
    audit = repr(await root.admin.list_audit_entries())
    assert hash_secret(rotated.secret) not in audit


async def test_a_revoked_token_is_refused_at_once_and_its_open_watch_ends(callers, root, filled) -> None:
    made = await root.admin.create_token("w", [Scope.WATCH, Scope.READ])
    client = await callers.client(made.secret)
    assert (await client.status()).revision > 0
    watch = client.watch()
    async for message in watch:
        if isinstance(message, SnapshotEnd):
            break
    revoked = await root.admin.revoke_token(made.token.id)
    assert revoked.revoke_time is not None
    with pytest.raises(Unauthenticated, match="was revoked"):
        await client.status()
    with pytest.raises(Unauthenticated, match="was revoked"):
        await asyncio.wait_for(read_on(watch), 20)
    again = await root.admin.revoke_token(made.token.id)
    assert again == revoked
    with pytest.raises(TokenNotFound):
        await root.admin.revoke_token("nothing")


async def test_a_token_ends_when_it_expires(callers, root, server) -> None:
    made = await root.admin.create_token("brief", [Scope.READ], expire_time=datetime.now(UTC) + timedelta(hours=1))
    connection = await psycopg.AsyncConnection.connect(connection_string(server.settings.database_url))
    async with connection:
        await connection.execute("UPDATE tokens SET expire_time = now() - interval '1 hour'")
    with pytest.raises(Unauthenticated, match="expired at"):
        await (await callers.client(made.secret)).status()
    with pytest.raises(TokenNotInForce):
        await root.admin.rotate_token(made.token.id)


async def test_a_token_that_is_kept_in_memory_expires_on_time_too(server) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    brief = Token("brief", (Scope.READ,), id="t", expire_time=clock[0] + timedelta(seconds=KEPT_S / 2))

    class OneToken:
        """What the gate asks of `Tokens`."""

        num_ended, num_asked = 0, 0

        async def find(self, secret_hash: str) -> Token | None:
            self.num_asked += 1
            return brief if secret_hash == hash_secret("secret") else None

    tokens: Any = OneToken()
    listener = Listener(server.settings.database_url, poll_s=1.0)
    listener.observe(Status("store", 7, 0))
    access = Access(server.settings.security, tokens, listener, now=lambda: clock[0])
    knock = partial(access.admit, f"{REGISTRY}GetStatus", Shown(secret="secret"), None)
    assert await knock() == "brief"
    clock[0] += timedelta(seconds=KEPT_S / 2 - 1)
    assert await knock() == "brief"
    clock[0] += timedelta(seconds=1)
    with pytest.raises(Unauthenticated, match="expired at"):
        await knock()
    assert tokens.num_asked == 1


async def test_a_rotated_token_works_until_the_grace_is_over(callers, root) -> None:
    first = await root.admin.create_token("ci", [Scope.READ], adapters=["sql"], expire_time=None)
    second = await root.admin.rotate_token(first.token.id, grace_s=3600)
    assert (second.token.name, second.token.scopes, second.token.adapters) == ("ci", (Scope.READ,), ("sql",))
    assert second.token.id != first.token.id
    assert second.replaced.expire_time is not None
    for secret in (first.secret, second.secret):
        await (await callers.client(secret)).status()
    third = await root.admin.rotate_token(second.token.id)
    assert third.replaced.revoke_time is not None
    with pytest.raises(Unauthenticated):
        await (await callers.client(second.secret)).status()
    # A grace never prolongs a life.
    fourth = await root.admin.rotate_token(first.token.id, grace_s=10 * 3600)
    assert fourth.replaced.expire_time == second.replaced.expire_time


async def test_a_repeated_request_makes_no_second_token_and_says_so(server, root) -> None:
    request = pb.CreateTokenRequest(name="ci", scopes=["read"], request_id="once")
    async with connect(server.address, security=ClientSecurity(token=ROOT_SECRET)) as channel:
        stub = rpcs.RegistryServiceStub(channel)
        first = await server.ask(stub.CreateToken, request)
        with pytest.raises(SecretNotKept) as told:
            await server.ask(stub.CreateToken, request)
    assert told.value.metadata == {"token": first.token.id}
    assert len(await root.admin.list_tokens()) == 1


async def test_limits_to_adapters_hold_on_every_way_to_name_one(callers, filled) -> None:
    limited = await callers.holder(Scope.READ, Scope.PROMOTE, Scope.WATCH, Scope.REGISTER, adapters=["sql"])
    version = (await limited.resolve("sql:2")).version
    await limited.get_adapter("sql")
    await limited.get_base_model("base")
    await limited.list_workers()
    assert (await limited.promote("sql", 2, alias="staging")).changed
    denied = [
        limited.get_adapter("pirate"),
        limited.resolve("pirate:1"),
        limited.resolve(version.digest),
        limited.list_workers(adapter="pirate"),
        limited.promote("pirate", 1, alias="staging"),
        limited.retire("pirate", 1),
    ]
    for attempt in denied:
        with pytest.raises(PermissionDenied, match="limited to"):
            await attempt


async def test_a_limited_token_sees_lists_files_and_workers_as_if_there_were_no_other_adapter(
    callers, filled, tmp_path
) -> None:
    limited = await callers.holder(Scope.READ, adapters=["sql"])
    assert [one.name for one in await limited.list_adapters()] == ["sql"]
    assert await limited.list_adapters(name_prefix="p") == []
    assert [one.name for one in await filled.list_adapters(name_prefix="p")] == ["pirate"]
    ready = [WorkerAdapter(name, 1, "sha256:a", WorkerAdapterState.READY) for name in ("pirate", "sql")]
    await filled.report_worker(Worker("w", "host:1", "base", "sha256:base", 7, tuple(ready)))
    assert [one.adapters for one in await limited.list_workers()] == [(ready[1],)]
    assert [one.adapters for one in await filled.list_workers()] == [tuple(ready)]
    assert [one.adapters for one in await filled.list_workers(adapter="pirate")] == [(ready[0],)]
    mine, other = [(await filled.resolve(f"{name}:1")).version.manifest.files[-1] for name in ("sql", "pirate")]
    await limited.read_blob(mine.digest, tmp_path / "mine")
    with pytest.raises(PermissionDenied, match="limited to"):
        await limited.read_blob(other.digest, tmp_path / "other")


async def test_a_limited_watch_is_told_of_its_adapters_and_misses_no_revision(callers, filled, new_adapter) -> None:
    limited = await callers.holder(Scope.WATCH, adapters=["pirate"])
    at = (await filled.status()).revision
    told: list[Any] = []
    watch = limited.watch()
    async for message in watch:
        told.append(message)
        if isinstance(message, SnapshotEnd):
            break
    assert [type(one.item).__name__ for one in told[:-1]] == ["BaseModel"]  # production of sql is another's
    assert told[-1].revision == at
    await filled.promote("sql", 2)
    await filled.promote("pirate", 1)
    await filled.register(new_adapter(9), adapter="sql", base_model="base")
    told.clear()
    async for message in watch:
        told.append(message)
        if message.revision == at + 3:
            break
    (change,) = [one for one in told if isinstance(one, Change)]
    assert change.revision == at + 2
    assert [event.happening.alias.adapter for event in change.events] == ["pirate"]
    assert isinstance(told[-1], Progress)
    await watch.aclose()
    (again, *_) = [one async for one in until(at + 3, limited.watch(after_revision=at)) if isinstance(one, Change)]
    assert again == change
    snapshot = [one.item async for one in until(at + 3, limited.watch()) if isinstance(one, SnapshotItem)]
    assert {one.adapter for one in snapshot if not isinstance(one, BaseModel)} == {"pirate"}


async def until(revision: int, watch: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """What a watch says until nothing is missing up to a revision."""
    async for message in watch:
        yield message
        if not isinstance(message, SnapshotItem) and message.revision >= revision:
            return


async def test_read_watch_and_report_are_all_that_a_worker_needs(callers, filled, tmp_path) -> None:
    """Everything that `inference` asks of the registry: resolve, fetch files, report and watch."""
    worker = await callers.holder(Scope.READ, Scope.WATCH, Scope.REPORT, adapters=["sql"])
    version = (await worker.resolve("sql", base_model_digest=(await filled.get_base_model("base")).digest)).version
    for file in version.manifest.files:
        await worker.read_blob(file.digest, tmp_path / file.path, size_bytes=file.size_bytes)
    await worker.report_worker(Worker("w", "host:1", "base", version.base_model_digest, 1, ()))
    watch = worker.watch(base_model="base")
    assert isinstance(await anext(watch), SnapshotItem)
    await watch.aclose()


async def test_limits_to_aliases_hold_for_every_move(callers, filled) -> None:
    limited = await callers.holder(Scope.PROMOTE, aliases=["staging"])
    assert (await limited.promote("sql", 2, alias="staging")).changed
    for attempt in (
        limited.promote("sql", 2, alias="canary"),
        limited.promote("sql", 2),
        limited.rollback("sql"),
        limited.retire("sql", 2, force=True),
        limited.unretire("sql", 2),
    ):
        with pytest.raises(PermissionDenied, match=r"limited to:? staging"):
            await attempt


async def test_a_protected_alias_is_moved_only_by_who_is_named_for_it_or_an_admin(server, callers, filled) -> None:
    anyone = await callers.holder(Scope.PROMOTE)
    named = await callers.holder(Scope.PROMOTE, aliases=["production"])
    before = await server.state()
    for attempt in (
        anyone.promote("sql", 2),
        anyone.promote("sql", 2, validate_only=True),
        anyone.rollback("sql"),
        anyone.retire("sql", 1, force=True),
        anyone.admin.set_alias_protection("sql", protected=False),
        named.admin.set_alias_protection("sql", protected=False),
    ):
        with pytest.raises(PermissionDenied):
            await attempt
    assert await server.state() == before
    assert (await anyone.promote("sql", 2, alias="staging")).changed
    moved = await named.promote("sql", 2)
    assert (moved.changed, moved.alias.protected) == (True, True)
    assert (await named.rollback("sql")).alias.targets[0].version == 1
    assert (await filled.promote("sql", 2)).changed
    lifted = await filled.admin.set_alias_protection("sql", protected=False)
    assert not lifted.protected
    assert (await anyone.rollback("sql")).changed


async def test_watchers_hear_of_protection_and_tokens_only_pass_by(server, root, filled) -> None:
    at = (await root.status()).revision
    watch = root.watch(after_revision=at)
    assert await anext(watch) == Progress(at)
    await root.admin.create_token("ci", [Scope.READ])
    assert await next_after(at, watch) == Progress(at + 1)
    await root.admin.set_alias_protection("sql", protected=False)
    change = await next_after(at + 1, watch)
    assert change.revision == at + 2
    assert change.events[0].happening.alias.protected is False
    again = await root.admin.set_alias_protection("sql", protected=False)
    assert again.revision == at + 2
    assert len(await root.list_alias_changes("sql")) == 1


async def test_watches_with_one_token_ask_for_it_once_a_revision(server, root, filled, monkeypatch) -> None:
    made = await root.admin.create_token("w", [Scope.WATCH])
    at = (await root.status()).revision
    asked: list[str] = []
    find = Tokens.find

    async def counted(self: Tokens, secret_hash: str) -> Any:
        asked.append(secret_hash)
        return await find(self, secret_hash)

    async with RegistryClient(connect(server.address, security=ClientSecurity(token=made.secret))) as client:
        watches = [client.watch(after_revision=at) for _ in range(20)]
        assert await asyncio.gather(*(anext(watch) for watch in watches)) == 20 * [Progress(at)]
        monkeypatch.setattr(Tokens, "find", counted)
        await root.promote("pirate", 1)
        changes = await asyncio.gather(*(next_after(at, watch) for watch in watches))
        assert {change.revision for change in changes} == {at + 1}
        # Once for the promotion's revision, and once for the one before when the listener heard of it late.
        assert set(asked) == {hash_secret(made.secret)}
        assert len(asked) <= 2
        for watch in watches:
            await watch.aclose()


async def test_a_store_that_is_away_is_no_bad_token(guarded, serve_here, tmp_path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "server")
    await postgres.start()
    try:
        async with serve_here(dataclasses.replace(guarded, database_url=postgres.url)) as server:
            callers = Callers(server.address)
            made = await (await callers.client(ROOT_SECRET)).admin.create_token("w", [Scope.READ])
            await callers.close()
            await postgres.stop()
            status = pb.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name["GetStatus"]
            assert await callers.knock(status, made.secret) is grpc.StatusCode.UNAVAILABLE
            await postgres.start()
            assert await callers.knock(status, made.secret) is grpc.StatusCode.OK
            assert await callers.knock(status, "wrong") is grpc.StatusCode.UNAUTHENTICATED
    finally:
        await postgres.stop()


async def test_bad_requests_for_tokens_are_refused_and_make_none(server, root) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    for name, scopes, limits, error in (
        ("", [Scope.READ], {}, InvalidName),
        ("a/b", [Scope.READ], {}, InvalidName),
        ("ci", [], {}, InvalidRequest),
        ("ci", [Scope.READ], {"adapters": ["a/b"]}, InvalidName),
        ("ci", [Scope.READ], {"adapters": [f"a{n}" for n in range(1001)]}, InvalidRequest),
        ("ci", [Scope.ADMIN], {"adapters": ["sql"]}, InvalidRequest),
        ("ci", [Scope.ADMIN], {"aliases": ["production"]}, InvalidRequest),
        ("ci", [Scope.READ], {"expire_time": long_ago}, InvalidRequest),
    ):
        with pytest.raises(error):
            await root.admin.create_token(name, scopes, **limits)
    async with connect(server.address, security=ClientSecurity(token=ROOT_SECRET)) as channel:
        stub = rpcs.RegistryServiceStub(channel)
        for bad in (
            pb.CreateTokenRequest(name="ci", scopes=["write"]),
            pb.CreateTokenRequest(name="ci", scopes=["read"], expire_time={"seconds": 2**60}),
        ):
            with pytest.raises(InvalidRequest):
                await server.ask(stub.CreateToken, bad)
        with pytest.raises(InvalidRequest):
            await server.ask(stub.RotateToken, pb.RotateTokenRequest(id="x", grace={"seconds": -1}))
        with pytest.raises(TokenNotFound):
            await server.ask(stub.RotateToken, pb.RotateTokenRequest(id="x"))
    assert await root.admin.list_tokens() == []


async def test_without_auth_everyone_is_anonymous_and_may_do_everything(registry_server) -> None:
    callers = Callers(registry_server.address)
    ends = {method.name: await callers.knock(method, "whatever") for method in METHODS}
    assert not set(ends.values()) & {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    await registry_server.client.admin.create_token("ci", [Scope.READ])
    assert (await registry_server.client.admin.list_audit_entries())[0].actor == "anonymous"


@asynccontextmanager
async def serve_tls(settings: Settings, serve_here: Any, folder: Any, scopes: dict[str, Grant]) -> AsyncIterator[Any]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("127.0.0.1", "worker", "stranger"):
        certificate = ca.issue_cert(name)
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    security = Security(
        tls_cert=folder / "127.0.0.1.pem",
        tls_key=folder / "127.0.0.1.key",
        client_ca=folder / "ca.pem",
        token_hashes={"root": hash_secret(ROOT_SECRET)},
    )
    async with serve_here(dataclasses.replace(settings, security=security, client_grants=scopes)) as running:
        yield running


async def test_a_client_certificate_opens_what_its_subject_is_given(settings, serve_here, tmp_path) -> None:
    scopes = {"worker": Grant(frozenset({Scope.READ}))}
    async with serve_tls(settings, serve_here, tmp_path, scopes) as server:

        @asynccontextmanager
        async def client(name: str, token: str = "") -> AsyncIterator[RegistryClient]:
            shown = ClientSecurity(
                ca=tmp_path / "ca.pem", cert=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", token=token
            )
            async with RegistryClient(connect(server.address, security=shown)) as found:
                yield found

        async with client("worker") as worker:
            await worker.status()
            with pytest.raises(PermissionDenied, match="expected the scope admin, found read"):
                await worker.admin.list_tokens()
        async with client("stranger") as stranger:
            with pytest.raises(PermissionDenied, match="found none"):
                await stranger.status()
        async with client("stranger", ROOT_SECRET) as known:
            await known.admin.create_token("ci", [Scope.READ])
            assert (await known.admin.list_audit_entries())[0].actor == "root"
        async with client("worker", "wrong") as wrong:
            with pytest.raises(Unauthenticated):
                await wrong.status()


def test_a_client_ca_that_opens_nothing_to_anyone_is_refused(settings, tmp_path) -> None:
    with pytest.raises(ConfigError, match="nobody could do anything"):
        dataclasses.replace(settings, security=Security(client_ca=tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="without the CA"):
        dataclasses.replace(settings, client_grants={"worker": Grant()})


async def test_every_change_is_in_the_audit_log_with_who_and_what(root, filled, callers) -> None:
    ci = await callers.holder(Scope.PROMOTE, Scope.REGISTER)
    await ci.promote("sql", 2, alias="staging", message="try it")
    await ci.promote("sql", 1, alias="staging")
    await ci.rollback("sql", alias="staging", message="worse")
    await ci.retire("pirate", 1, message="old")
    await ci.unretire("pirate", 1)
    token = (await root.admin.list_tokens())[0]
    await root.admin.rotate_token(token.id, grace_s=60)
    await root.admin.revoke_token(token.id)
    entries = (await root.admin.list_audit_entries())[::-1]
    assert [one.revision for one in entries] == list(range(1, (await root.status()).revision + 1))
    assert [one.action for one in entries] == [
        "CreateBaseModel",
        *3 * ["RegisterAdapterVersion"],
        "PromoteAdapterVersion",
        "SetAliasProtection",
        "CreateToken",
        *2 * ["PromoteAdapterVersion"],
        "RollbackAlias",
        "RetireAdapterVersion",
        "UnretireAdapterVersion",
        "RotateToken",
        "RevokeToken",
    ]
    assert all(one.request_id and one.after for one in entries)
    staging = entries[7]
    assert (staging.actor, staging.resource, staging.message, staging.before) == (
        "holder",
        "sql@staging",
        "try it",
        "",
    )
    back = entries[9]
    assert (back.message, json.loads(back.before)[0]["version"], json.loads(back.after)[0]["version"]) == (
        "worse",
        1,
        2,
    )
    protected = entries[5]
    assert (json.loads(protected.before)["protected"], json.loads(protected.after)["protected"]) == (False, True)
    revoked = entries[-1]
    assert (revoked.actor, revoked.resource) == ("root", f"token/{token.id}")
    assert json.loads(revoked.before)["revoke_time"] is None
    assert json.loads(revoked.after)["revoke_time"] is not None
    assert [one.revision for one in await root.admin.list_audit_entries(actor="holder", limit=2)] == [12, 11]
