"""`inference push`: an adapter's folder straight into a worker, without a registry."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from inference.commands.calling import Worker, server_options, to_json

if TYPE_CHECKING:
    from loraplex.inference.v1 import inference_service_pb2 as pb
    from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--immediate", is_flag=True, help="Swap the weights under running requests; they say from which token.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for the whole push.")
@server_options
def push(
    *, name: str, folder: Path, immediate: bool, timeout: float,
    server: str, token_file: Path | None, ca: Path | None, output: str,
) -> None:  # fmt: skip
    """Serve the PEFT folder FOLDER under NAME, until the next push of it or the worker's end.

    Running requests finish on the weights that they began with. A name that the registry has is refused. A
    probe.json stays behind: what is pushed is served without a self-test.
    """
    from inference.push_client import push_requests
    from loraplex.inference.v1 import inference_service_pb2 as pb

    mode = pb.RELOAD_MODE_IMMEDIATE if immediate else pb.RELOAD_MODE_DRAIN

    requests = push_requests(folder, name, mode=mode)
    try:
        header = next(requests)  # here, because gRPC tells nobody why it got no message
    except OSError as error:
        raise click.BadParameter(f"{error.filename}: {error.strerror}", param_hint="FOLDER") from error

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.PushAdapterResponse:
        return await stub.PushAdapter(itertools.chain([header], requests), timeout=timeout)

    answer = Worker(server, token_file, ca).call(go)
    if output == "json":
        click.echo(to_json(answer, indent=2))
    else:
        click.echo(f"{name} now serves {answer.adapter.digest}")
