"""`inference`: serve a base model with adapters, and ask a worker for tokens. Translates flags; knows no tensors.

Exit codes: 0 done, 1 unexpected, 2 usage or bad input, 3 not found, 4 refused, 5 unavailable, 6 denied.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inference.commands.calling import Worker, server_options, to_json
from inference.commands.generate import generate
from inference.commands.memory import load, pin, unload, unpin
from inference.commands.probe import probe
from inference.commands.push import push
from rpc.errors import DomainError

if TYPE_CHECKING:
    from loraplex.inference.v1 import inference_service_pb2 as pb
    from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

EXIT_CODES = {
    "INVALID_ARGUMENT": 2,
    "UNIMPLEMENTED": 2,
    "NOT_FOUND": 3,
    "FAILED_PRECONDITION": 4,
    "ABORTED": 4,
    "RESOURCE_EXHAUSTED": 5,
    "UNAVAILABLE": 5,
    "DEADLINE_EXCEEDED": 5,
    "UNAUTHENTICATED": 6,
    "PERMISSION_DENIED": 6,
}

# By reason; gRPC's own statuses have their code for one.
HINTS = {
    "UNAVAILABLE": "is the worker up? start one with `inference serve --model FOLDER`",
    "UNIMPLEMENTED": "is that a worker, of this release? --server or LORAPLEX_WORKER names another",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="loraplex")
def cli() -> None:
    """Serve one base model with many LoRA adapters, or ask a worker that does."""


def main() -> None:
    """The program: a user's mistake is one line and an exit code, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DomainError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        for reason in error.reasons:
            if reason not in str(error):
                click.echo(f"  - {reason}", err=True)
        if hint := HINTS.get(error.reason):
            click.echo(f"hint: {hint}", err=True)
        sys.exit(EXIT_CODES.get(error.code, 1))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stderr.close()


@cli.command()
@click.option("--model", type=click.Path(path_type=Path), help="Hugging Face folder of the base model.")
@click.option("--base-model-name", help="Its name in the registry.  [default: the folder's name]")
@click.option("--registry", help="host:port of the registry.  [default: none]")
@click.option("--registry-token-file", type=click.Path(path_type=Path), help="Holds the token for the registry.")
@click.option("--registry-ca", type=click.Path(path_type=Path), help="CA of the registry's certificate.")
@click.option(
    "--adapter", "--lora-modules", "adapters", multiple=True, metavar="NAME=FOLDER",
    help="Serve a local folder; repeatable. vLLM's JSON form too.",
)  # fmt: skip
@click.option("--adapter-dir", "adapter_dirs", multiple=True, metavar="DIR", help="Find adapters here; repeatable.")
@click.option("--adapter-url", "adapter_urls", multiple=True, metavar="URL", help="And under this URL; repeatable.")
@click.option("--hub", multiple=True, metavar="NAME=REPO@COMMIT", help="Serve one from the hub; repeatable.")
@click.option("--hub-token-file", type=click.Path(path_type=Path), help="Holds the token for the hub.")
@click.option("--resolver", "resolvers", multiple=True, metavar="NAME[=ARG]", help="Use an installed plug-in.")
@click.option("--pushes", help="off, new, or any, which takes names of the registry too.  [default: new]")
@click.option("--push-bytes", metavar="SIZE", help="The largest weights to be pushed.  [default: 1GiB]")
@click.option("--merge", metavar="REF", help="Merge this adapter; others are served as ever.  [default: none]")
@click.option("--listen", help="Address to serve on.  [default: 127.0.0.1:7200]")
@click.option("--advertise", help="Address to report to the registry.  [default: the listening one]")
@click.option("--state-dir", type=click.Path(path_type=Path), help="For adapter files and saved state.")
@click.option("--device", help="cpu, cuda or auto; CUDA has never run on a device.  [default: cpu]")
@click.option("--dtype", help="auto, float32 or bfloat16.  [default: auto]")
@click.option(
    "--deterministic/--no-deterministic", default=None, help="The same bits in any batch, on a CPU.  [default: off]"
)
@click.option("--threads", type=int, help="CPU threads.  [default: one for each core]")
@click.option("--adapter-memory", metavar="SIZE", help="Memory for adapters.  [default: 512MiB]")
@click.option(
    "--host-cache", metavar="SIZE", help="Host memory for adapters to load again; 0 for none.  [default: 1GiB]"
)
@click.option("--disk-cache", metavar="SIZE", help="Disk for adapter files.  [default: 16GiB]")
@click.option("--max-loras", type=int, help="Adapters in memory.  [default: what there is room for]")
@click.option("--max-lora-rank", type=int, help="Refuse adapters of a larger rank.  [default: refuse none]")
@click.option("--max-cpu-loras", type=int, help="Adapters in the host cache.  [default: what there is room for]")
@click.option("--check-adapters", is_flag=True, default=None, help="Check the weights used at every step; slow.")
@click.option("--kv-memory", metavar="SIZE", help="Memory for the KV cache.  [default: 512MiB]")
@click.option("--max-context", type=int, help="Prompt and answer, in tokens.  [default: the model's]")
@click.option("--max-batch", type=int, help="Requests in one step.  [default: 64]")
@click.option("--max-batch-adapters", type=int, help="Distinct adapters in one step.  [default: any number]")
@click.option("--tenants", type=click.Path(path_type=Path), help="JSON: each tenant's weight, rows and rate.")
@click.option(
    "--prefix-cache/--no-prefix-cache", default=None, help="Reuse what equal prompts begin with.  [default: on]"
)
@click.option("--step-tokens", type=int, help="Tokens in one step.  [default: 128]")
@click.option("--max-queue", type=int, help="Requests that may wait.  [default: 1024]")
@click.option("--max-queue-tokens", type=int, help="Tokens of prompts that may wait.  [default: 1048576]")
@click.option("--drain-s", type=float, help="Seconds for running answers at SIGTERM.  [default: 30]")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate to serve TLS with.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option("--client-ca", type=click.Path(path_type=Path), help="Ask clients for certificates of this CA.")
@click.option("--token-file", type=click.Path(path_type=Path), help="`NAME SHA256` lines of who may call.")
@click.option("--metrics-listen", help="host:port for Prometheus.  [default: none]")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def serve(verbose: bool, **flags: Any) -> None:
    """Serve a base model and its adapters until SIGTERM.

    Every flag is also a variable LORAPLEX_WORKER_<NAME>, for example LORAPLEX_WORKER_ADAPTER_MEMORY=2GiB.
    """
    from inference.settings import Settings

    settings = Settings.read(flags)
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )
    from inference.app import run

    asyncio.run(run(settings))


cli.add_command(generate)
for command in (load, unload, pin, unpin, push, probe):
    cli.add_command(command)


@cli.command()
@server_options
def models(server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """List the base model and the adapters that a worker knows."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> list[pb.Model]:
        found: list[pb.Model] = []
        token = ""
        while True:
            page = await stub.ListModels(pb.ListModelsRequest(page_size=1000, page_token=token), timeout=10)
            found += page.models
            token = page.next_page_token
            if not token:
                return found

    found = Worker(server, token_file, ca).call(go)
    if output == "json":
        click.echo(json.dumps([json.loads(to_json(model)) for model in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("REFERENCE", "VERSION", "PARENT", "STATE", "TIER", "RANK", "MEMORY", "DIGEST"):
        table.add_column(column, no_wrap=True)
    for model in found:
        state = pb.ModelState.Name(model.state).removeprefix("MODEL_STATE_").lower()
        memory = f"{model.size_bytes / 2**20:.1f} MiB" if model.size_bytes else "-"
        tier = pb.Tier.Name(model.tier).removeprefix("TIER_").lower() if model.tier else "-"
        row = (model.reference, str(model.version or "-"), model.parent or "-", state, tier, str(model.rank or "-"))
        table.add_row(*row, memory, model.digest[:19])
    # A pipe gets whole lines; no terminal is this wide.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


@cli.command()
@server_options
def worker(server: str, token_file: Path | None, ca: Path | None, output: str) -> None:
    """Show what a worker runs and how busy it is."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    async def go(stub: pb_grpc.InferenceServiceAsyncStub) -> pb.GetWorkerResponse:
        return await stub.GetWorker(pb.GetWorkerRequest(), timeout=10)

    answer = Worker(server, token_file, ca).call(go)
    if output == "json":
        click.echo(to_json(answer, indent=2))
        return
    width = max(len(field.name) for field in answer.DESCRIPTOR.fields)
    for field in answer.DESCRIPTOR.fields:
        value = getattr(answer, field.name)
        click.echo(f"{field.name:<{width}}  {value.ToJsonString() if field.name == 'start_time' else value}")
