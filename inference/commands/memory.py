"""Where a worker keeps an adapter: bring it to a tier, keep it there, let it go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from inference.commands.calling import Worker, server_options, to_json

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from loraplex.inference.v1 import inference_service_pb2 as pb
    from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

TIMEOUT_S = 300.0  # a large adapter may have a long way


@click.command()
@click.argument("reference")
@click.option(
    "--tier", type=click.Choice(["arena", "host", "disk"]), default="arena", show_default=True, help="How near."
)
@server_options
def load(*, reference: str, tier: str, server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """Bring REFERENCE to a tier, so that its first request need not wait."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    request = pb.LoadAdapterRequest(reference=reference, tier=f"TIER_{tier.upper()}")

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.LoadAdapterResponse:
        return await stub.LoadAdapter(request, timeout=TIMEOUT_S)

    answer = Worker(server, token_file, ca).call(go)
    _tell(answer, answer.adapter, f"takes {answer.size_bytes / 2**20:.1f} MiB of the {tier}", output)


@click.command()
@click.argument("reference")
@server_options
def unload(reference: str, server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """Free the arena of REFERENCE once no request uses it."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.UnloadAdapterResponse:
        return await stub.UnloadAdapter(pb.UnloadAdapterRequest(reference=reference), timeout=TIMEOUT_S)

    answer = Worker(server, token_file, ca).call(go)
    _tell(answer, answer.adapter, "leaves", output)


@click.command()
@click.argument("reference")
@server_options
def pin(reference: str, server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """Load REFERENCE and keep it in the arena until it is unpinned."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.PinAdapterResponse:
        return await stub.PinAdapter(pb.PinAdapterRequest(reference=reference), timeout=TIMEOUT_S)

    answer = Worker(server, token_file, ca).call(go)
    _tell(answer, answer.adapter, "stays", output)


@click.command()
@click.argument("reference")
@server_options
def unpin(reference: str, server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """Let REFERENCE leave the arena again when others need its room."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.UnpinAdapterResponse:
        return await stub.UnpinAdapter(pb.UnpinAdapterRequest(reference=reference), timeout=TIMEOUT_S)

    answer = Worker(server, token_file, ca).call(go)
    _tell(answer, answer.adapter, "may leave", output)


def _tell(answer: Message, adapter: pb.ServedAdapter, what: str, output: str) -> None:
    if output == "json":
        click.echo(to_json(answer, indent=2))
    else:
        name = f"{adapter.adapter}:{adapter.version}" if adapter.version else adapter.adapter
        click.echo(f"{name} {what} ({adapter.digest[:19]})")
