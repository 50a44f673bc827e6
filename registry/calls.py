"""How the client sends one request: with a deadline, again when that is safe, and with errors as our classes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from registry.errors import RegistryError
from registry.retries import retried
from rpc.status import from_rpc_error

ResponseT = TypeVar("ResponseT")


class Calls:
    """Calls with one deadline."""

    def __init__(self, *, deadline_s: float) -> None:
        self.deadline_s = deadline_s

    async def call(
        self, method: Callable[..., Awaitable[ResponseT]], request: Any, *, deadline_s: float | None = None
    ) -> ResponseT:
        """One answer. The request must be safe to repeat: it reads, or carries a request id."""

        async def attempt() -> ResponseT:
            try:
                return await method(request, timeout=deadline_s or self.deadline_s)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error, RegistryError) from error

        return await retried(attempt)

    async def pages(self, method: Callable[..., Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
        """Every page of a list, from the request's on."""
        while True:
            page: Any = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def new_request_id() -> str:
    """One that nobody else has."""
    return uuid.uuid4().hex
