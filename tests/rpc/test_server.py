"""rpc/ as its callers see it: real gRPC over loopback, a client of ours and one that is not (buf curl)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as pb_grpc
from loraplex.registry.v1 import watch_service_pb2 as watch_pb
from loraplex.registry.v1 import watch_service_pb2_grpc as watch_pb_grpc
from rpc.channel import connect
from rpc.errors import DomainError
from rpc.security import ClientSecurity, ConfigError, Security, Unauthenticated, actor, read_token_file
from rpc.server import Server, Service, serve
from rpc.status import from_rpc_error

BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"


class ShopError(DomainError):
    """The shop failed."""

    domain = "test.shop"


class Closed(ShopError):
    """The shop is closed."""

    code, reason = "UNAVAILABLE", "CLOSED"


class NoSuchItem(ShopError):
    """No such item."""

    code, reason = "NOT_FOUND", "NO_SUCH_ITEM"


class Registry(pb_grpc.RegistryServiceServicer):
    async def GetAdapter(self, request, context):
        if request.adapter == "closed":
            raise Closed("come back", retry_after_s=1.5, metadata={"door": "front"})
        if request.adapter == "broken":
            raise ValueError("a secret detail")
        if request.adapter == "many":
            raise NoSuchItem(reasons=tuple(f"reason {n} " + "x" * 200 for n in range(500)))
        return pb.GetAdapterResponse(adapter={"name": actor()})


class Watch(watch_pb_grpc.WatchServiceServicer):
    def __init__(self) -> None:
        self.closing = asyncio.Event()

    async def Watch(self, request, context):
        yield watch_pb.WatchResponse(store_id=actor())
        await self.closing.wait()
        raise Closed("the server drains")


@asynccontextmanager
async def running(security: Security | None = None, listen: str = "127.0.0.1:0") -> AsyncIterator[tuple[Server, Watch]]:
    watch = Watch()
    server = Server(
        [
            Service(
                pb.DESCRIPTOR.services_by_name["RegistryService"],
                pb_grpc.add_RegistryServiceServicer_to_server,
                Registry(),
            ),
            Service(
                watch_pb.DESCRIPTOR.services_by_name["WatchService"],
                watch_pb_grpc.add_WatchServiceServicer_to_server,
                watch,
            ),
        ],
        listen=listen,
        security=security or Security(),
    )
    await server.start()
    try:
        yield server, watch
    finally:
        await server.drain(0)


async def get(target: str, name: str, security: ClientSecurity | None = None) -> str:
    async with connect(target, security=security) as channel:
        answer = await pb_grpc.RegistryServiceStub(channel).GetAdapter(pb.GetAdapterRequest(adapter=name), timeout=10)
        return str(answer.adapter.name)


async def buf_curl(url: str, body: str, *flags: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", body, *flags, url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": os.environ.get("HOME", "/tmp")},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, out.decode(), err.decode()


async def test_an_error_arrives_as_the_same_class_with_its_facts() -> None:
    async with running() as (server, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(f"127.0.0.1:{server.port}", "closed")
        error = from_rpc_error(caught.value, ShopError)
        assert type(error) is Closed
        assert str(error) == "come back"
        assert error.metadata == {"door": "front"}
        assert error.retry_after_s == 1.5


async def test_five_hundred_reasons_are_cut_to_what_headers_carry() -> None:
    async with running() as (server, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(f"127.0.0.1:{server.port}", "many")
        error = from_rpc_error(caught.value, ShopError)
        assert type(error) is NoSuchItem
        assert error.reasons[0].startswith("reason 0 ")
        assert error.reasons[-1] == f"and {500 - len(error.reasons) + 1} more"


async def test_an_unexpected_error_tells_the_caller_nothing_of_the_inside() -> None:
    async with running() as (server, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(f"127.0.0.1:{server.port}", "broken")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value.details())
        assert await get(f"127.0.0.1:{server.port}", "fine") == "anonymous"


async def test_a_method_of_a_later_release_is_unimplemented() -> None:
    async with running() as (server, _), connect(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.RegistryServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_stranger_is_refused_on_every_kind_of_call_and_a_token_names_its_owner() -> None:
    security = Security(token_hashes={"ci": hashlib.sha256(b"s3cret").hexdigest()})
    async with running(security) as (server, _):
        target = f"127.0.0.1:{server.port}"
        for client in (None, ClientSecurity(token="wrong")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(target, "fine", client)
            assert type(from_rpc_error(caught.value, DomainError)) is Unauthenticated
            async with connect(target, security=client) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for _ in watch_pb_grpc.WatchServiceStub(channel).Watch(watch_pb.WatchRequest(), timeout=10):
                        pass
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await get(target, "fine", ClientSecurity(token="s3cret")) == "ci"
        async with connect(target, security=ClientSecurity(token="s3cret")) as channel:
            call = watch_pb_grpc.WatchServiceStub(channel).Watch(watch_pb.WatchRequest(), timeout=10)
            assert (await call.read()).store_id == "ci"
            call.cancel()
        async with connect(target) as channel:  # probes carry no token
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_open_server_refuses_to_listen_to_the_world() -> None:
    with pytest.raises(ConfigError, match="neither tokens nor client certificates"):
        Server([], listen="0.0.0.0:0", security=Security())


async def test_a_port_in_use_is_a_clear_error() -> None:
    async with running() as (server, _):
        with pytest.raises(ConfigError, match="cannot listen"):
            Server([], listen=f"127.0.0.1:{server.port}", security=Security())


def test_a_token_file_with_a_bad_line_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# who may call\nci " + "0" * 64 + "\nops plain-secret\n")
    with pytest.raises(ConfigError, match="line 3"):
        read_token_file(file)


async def test_mutual_tls_names_the_caller_and_refuses_the_rest(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, issuer in (("server", ca), ("client", ca), ("stranger", other)):
        cert = issuer.issue_cert("127.0.0.1" if name == "server" else f"{name}.example")
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        cert.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    security = Security(
        tls_cert=tmp_path / "server.pem", tls_key=tmp_path / "server.key", client_ca=tmp_path / "ca.pem"
    )
    async with running(security) as (server, _):
        target = f"127.0.0.1:{server.port}"
        known = ClientSecurity(ca=tmp_path / "ca.pem", cert=tmp_path / "client.pem", key=tmp_path / "client.key")
        assert await get(target, "fine", known) == "client.example"
        stranger = ClientSecurity(ca=tmp_path / "ca.pem", cert=tmp_path / "stranger.pem", key=tmp_path / "stranger.key")
        for client in (stranger, ClientSecurity(ca=tmp_path / "ca.pem")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(target, "fine", client)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_draining_reports_not_serving_and_tells_open_streams() -> None:
    async with running() as (server, watch), connect(f"127.0.0.1:{server.port}") as channel:
        call = watch_pb_grpc.WatchServiceStub(channel).Watch(watch_pb.WatchRequest(), timeout=30)
        await call.read()
        probe = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await probe.read()).status == health_pb2.HealthCheckResponse.SERVING

        async def on_drain() -> None:
            assert (await probe.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            probe.cancel()
            watch.closing.set()

        await server.drain(10, on_drain)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert type(from_rpc_error(caught.value, ShopError)) is Closed


async def test_a_client_that_is_not_ours_finds_the_services_by_reflection_and_reads_the_reason() -> None:
    async with running() as (server, _):
        url = f"http://127.0.0.1:{server.port}/loraplex.registry.v1.RegistryService/GetAdapter"
        code, out, err = await buf_curl(url, '{"adapter": "fine"}')
        assert (code, json.loads(out)) == (0, {"adapter": {"name": "anonymous"}}), err
        code, out, err = await buf_curl(url, '{"adapter": "closed"}')
        assert code != 0
        error = json.loads(err)
        assert error["code"] == "unavailable"
        assert {detail["type"] for detail in error["details"]} >= {"google.rpc.ErrorInfo", "google.rpc.RetryInfo"}


async def test_sigterm_ends_the_process_after_the_drain() -> None:
    program = (
        "import asyncio\n"
        "from rpc.security import Security\n"
        "from rpc.server import serve\n"
        "async def told(): print('told', flush=True)\n"
        "asyncio.run(serve([], listen='127.0.0.1:0', security=Security(), drain_s=5,\n"
        "    on_ready=lambda port: print('port', port, flush=True), on_drain=told))\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"port ")
    process.send_signal(signal.SIGTERM)
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out) == (0, b"told\n")


async def test_a_server_whose_core_has_failed_drains_and_raises_its_error() -> None:
    until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    drained = asyncio.Event()

    async def on_drain() -> None:
        drained.set()

    with pytest.raises(Closed, match="the core is gone"):
        await serve(
            [],
            listen="127.0.0.1:0",
            security=Security(),
            drain_s=5,
            on_ready=lambda _: until.set_exception(Closed("the core is gone")),
            on_drain=on_drain,
            until=until,
        )
    assert drained.is_set()
