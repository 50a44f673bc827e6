"""The one way to open a channel: TLS or plain text, a bearer token on every call, sensible keepalive."""

from __future__ import annotations

from typing import Any

import grpc

from rpc.security import ClientSecurity
from rpc.server import OPTIONS

# gRPC would wait up to two minutes before it tries a lost server again; a worker must notice a restart in seconds.
RECONNECT: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Channels of one process would share connections, and a new one then waits out the back-off of another.
    ("grpc.use_local_subchannel_pool", 1),
)


def connect(target: str, *, security: ClientSecurity | None = None) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:path`. Connecting happens with the first call."""
    security = security or ClientSecurity()
    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    interceptors = [kind(security.token) for kind in kinds] if security.token else []
    credentials = security.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=(*OPTIONS, *RECONNECT), interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=(*OPTIONS, *RECONNECT), interceptors=interceptors)


class _Bearer:
    """Adds `authorization: Bearer …` to a call."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def add(self, details: Any) -> grpc.aio.ClientCallDetails:
        """The same call with the header."""
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=details.timeout,
            metadata=grpc.aio.Metadata(*(details.metadata or ()), self._header),
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


# grpc.aio registers an interceptor for the first kind of call that its class names, so each kind has its own.
class _UnaryUnary(_Bearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.add(client_call_details), request)


class _UnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.add(client_call_details), request)


class _StreamUnary(_Bearer, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.add(client_call_details), request_iterator)


class _StreamStream(_Bearer, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self.add(client_call_details), request_iterator)
