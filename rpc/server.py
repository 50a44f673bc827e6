"""The one way to start a gRPC server: health per service, reflection, TLS, tokens, error mapping, drain.

The life of a process: bind, report SERVING, wait for SIGTERM or SIGINT, report NOT_SERVING, tell the services to
drain, let running calls finish for `drain_s`, stop. A second signal stops at once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rpc.errors import DomainError
from rpc.security import ConfigError, Gate, Security, read_shown, set_actor
from rpc.status import abort

log = logging.getLogger(__name__)

# Chunks are at most 1 MiB and lists are paged; 16 MiB leaves room for a base model's module list.
MAX_MESSAGE_BYTES = 16 * 2**20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a way to share the load
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class Service:
    """A service to serve: its descriptor, the generated `add_…Servicer_to_server`, and our servicer."""

    descriptor: ServiceDescriptor
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object


class Unexpected(DomainError):
    """The server failed; its log has the details."""

    code, reason = "INTERNAL", "UNEXPECTED"


class Server:
    """A bound gRPC server; `start`, then `drain`."""

    def __init__(
        self, services: Sequence[Service], *, listen: str, security: Security, gate: Gate | None = None
    ) -> None:
        """Binds. Without a gate, who is known may do everything.

        Raises ConfigError when the address cannot be bound or is open to the world.
        """
        security.check_listen(listen)
        self._server = grpc.aio.server(interceptors=[Doorman(gate or security)], options=OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = [service.descriptor.full_name for service in services]
        for service in services:
            service.add(service.servicer, self._server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME],
            self._server,
        )
        credentials = security.credentials()
        try:
            self.port = (
                self._server.add_insecure_port(listen)
                if credentials is None
                else self._server.add_secure_port(listen, credentials)
            )
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {listen}: the address is in use or not this machine's") from error

    async def start(self) -> None:
        """Serves from now on."""
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self, drain_s: float, on_drain: Callable[[], Awaitable[None]] | None = None) -> None:
        """Reports NOT_SERVING, runs `on_drain`, lets running calls finish for `drain_s`, ends the rest."""
        await self._health.enter_graceful_shutdown()
        if on_drain is not None:
            await on_drain()
        await self._server.stop(drain_s)


async def serve(
    services: Sequence[Service],
    *,
    listen: str,
    security: Security,
    drain_s: float,
    on_ready: Callable[[int], None],
    on_drain: Callable[[], Awaitable[None]] | None = None,
    gate: Gate | None = None,
    until: asyncio.Future[None] | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. `on_ready` gets the bound port; for the gate see `Server`.

    When `until` gets an error, the server drains and this raises it: what serves without its core is worse than gone.
    """
    stopping = asyncio.Event()
    stop_now = asyncio.Event()

    def on_signal() -> None:
        (stop_now if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    server = Server(services, listen=listen, security=security, gate=gate)
    await server.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        on_ready(server.port)
        if until is not None:
            until.add_done_callback(lambda _: stopping.set())
        await stopping.wait()
        log.info("draining; a second signal stops at once")
        drain = asyncio.ensure_future(server.drain(drain_s, on_drain))
        impatience = asyncio.ensure_future(stop_now.wait())
        await asyncio.wait({drain, impatience}, return_when=asyncio.FIRST_COMPLETED)
        impatience.cancel()
        if not drain.done():
            drain.cancel()
            await server.drain(0)
        if until is not None and until.done():
            until.result()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class Doorman(grpc.aio.ServerInterceptor):
    """Lets a call in when the gate admits it, and turns what the call raises into a status."""

    # Probes of orchestrators carry no tokens.
    OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        method = details.method
        is_open = method in self.OPEN

        async def enter(request: Any, context: Any) -> None:
            if not is_open:
                known = None if handler.request_streaming else request
                set_actor(await self._gate.admit(method, read_shown(context), known))

        if handler.response_streaming:
            behavior = handler.stream_stream or handler.unary_stream

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    await enter(request, context)
                    answers = behavior(request, context)
                    if inspect.isawaitable(answers):  # the health service writes to the context instead of yielding
                        await answers
                        return
                    async with aclosing(answers):  # a cancelled call ends its servicer's clean-up before its own
                        async for message in answers:
                            yield message
                except Exception as error:
                    await _fail(context, method, error)

            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
            return (make or grpc.unary_stream_rpc_method_handler)(
                stream, handler.request_deserializer, handler.response_serializer
            )
        behavior = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                await enter(request, context)
                return await behavior(request, context)
            except Exception as error:
                return await _fail(context, method, error)

        make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else None
        return (make or grpc.unary_unary_rpc_method_handler)(
            unary, handler.request_deserializer, handler.response_serializer
        )


async def _fail(context: Any, method: str, error: Exception) -> None:
    """Ends the call with a status; a generated servicer's own UNIMPLEMENTED and aborts pass through."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, NotImplementedError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not part of this release")
    if not isinstance(error, DomainError):
        log.error("%s failed", method, exc_info=error)
        error = Unexpected()
    await abort(context, error)
