"""What the commands that ask a worker share: where it is, a stub of it, and its messages as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

DEFAULT_SERVER = "127.0.0.1:7200"

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Worker:
    """The worker to ask."""

    server: str
    token_file: Path | None
    ca: Path | None

    def call(self, ask: Callable[[pb_grpc.InferenceServiceAsyncStub], Awaitable[ResultT]]) -> ResultT:
        """What `ask(stub)` returns. Raises an error of our tree for any status but OK."""
        import grpc

        from inference.errors import InferenceError
        from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc
        from rpc.channel import connect
        from rpc.security import ClientSecurity, read_secret
        from rpc.status import from_rpc_error

        security = ClientSecurity(ca=self.ca, token=read_secret(self.token_file) if self.token_file else "")

        async def call() -> ResultT:
            async with connect(self.server, security=security) as channel:
                try:
                    stub: Any = pb_grpc.InferenceServiceStub(channel)  # the async stub exists for types only
                    return await ask(stub)
                except grpc.aio.AioRpcError as error:
                    raise from_rpc_error(error, InferenceError) from error

        return asyncio.run(call())


def server_options(command: FunctionT) -> FunctionT:
    """--server, --token-file, --ca and -o; the command takes them by these names."""
    for option in (
        click.option("--server", envvar="LORAPLEX_WORKER", default=DEFAULT_SERVER, show_default=True, help="Worker."),
        click.option("--token-file", type=click.Path(path_type=Path), help="Holds the bearer token to show."),
        click.option("--ca", type=click.Path(path_type=Path), help="CA of the worker's certificate; turns TLS on."),
        click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print."),
    ):
        command = option(command)
    return command


def to_json(message: Message, indent: int | None = None) -> str:
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message, preserving_proto_field_name=True, indent=indent)
