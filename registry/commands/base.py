"""`registry base …`: the base models that adapters are made for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from registry import completion
from registry.options import Session, global_options, with_session


@click.group()
@global_options(read_environment=False)
def base() -> None:
    """Base models, which adapters are made for."""


RELATIONS = ("finetune", "quantized", "merge", "adapter-merge")


def _read_parents(_: click.Context, __: click.Parameter, found: tuple[str, ...]) -> tuple[tuple[str, str, str], ...]:
    """(name, relation, adapter version or '') of each NAME:RELATION[:VERSION]."""
    parents = []
    for one in found:
        name, _separator, rest = one.partition(":")
        relation, _separator, version = rest.partition(":")
        if not name or relation not in RELATIONS or (relation == "adapter-merge") != bool(version):
            raise click.BadParameter(
                f"expected NAME:RELATION with one of {', '.join(RELATIONS)}, the last one followed by :ADAPTER:NUMBER; "
                f"found {one!r}"
            )
        parents.append((name, relation.replace("-", "_"), version))
    return tuple(parents)


@base.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="NAME:RELATION",
    callback=_read_parents,
    help="What it was made from: small:finetune, quantized, merge, or small:adapter-merge:sql:3; repeatable.",
)
@global_options(read_environment=False)
@click.pass_context
def base_add(context: click.Context, name: str, path: Path, parents: tuple[tuple[str, str, str], ...]) -> None:
    """Add the Hugging Face folder PATH as the base model NAME. Its weights stay where they are.

    A parent need not be in the registry; any name will do.
    """

    async def work(session: Session) -> None:
        from adapter.base_model import describe_base_model
        from adapter.names import check_name
        from registry.printing import byte_progress, short, size
        from registry.resources import BaseModelParent, BaseModelRelation

        check_name(name)
        total, done = _weights_bytes(path), 0
        with byte_progress(f"hashing {path.name}") as progress:

            def on_bytes(count: int) -> None:
                nonlocal done
                done += count
                progress(done, max(done, total))

            description = await asyncio.to_thread(describe_base_model, path, on_bytes=on_bytes)
        added = await session.client.create_base_model(
            name,
            description,
            parents=[BaseModelParent(parent, BaseModelRelation(how), version) for parent, how, version in parents],
        )
        if session.printer.writes_documents:
            session.printer.document(
                {"base_model": added.base_model, "revision": added.revision, "created": added.created}
            )
            return
        model = added.base_model
        what = "added base model" if added.created else "already there: base model"
        session.printer.line(
            f"{what} {model.name} ({model.architecture}, {len(model.modules)} modules, "
            f"{size(model.manifest.size_bytes)}, {short(model.digest)})"
        )

    with_session(context, work)


@base.command("list")
@global_options(read_environment=False)
@click.pass_context
def base_list(context: click.Context) -> None:
    """List base models by name."""

    async def work(session: Session) -> None:
        from registry.printing import base_model_row

        models = await session.client.list_base_models()
        if session.printer.writes_documents:
            session.printer.document({"base_models": models})
            return
        session.printer.table(
            ("NAME", "ARCHITECTURE", "SIZE", "DIGEST", "CREATED"),
            [base_model_row(model) for model in models],
            empty="no base models yet; `registry base add NAME PATH` adds one",
        )

    with_session(context, work)


@base.command("show")
@click.argument("name", shell_complete=completion.base_models)
@global_options(read_environment=False)
@click.pass_context
def base_show(context: click.Context, name: str) -> None:
    """Show one base model with its files."""

    async def work(session: Session) -> None:
        from registry.printing import base_model_facts

        model = await session.client.get_base_model(name)
        if session.printer.writes_documents:
            session.printer.document(model)
        else:
            session.printer.facts(base_model_facts(model))

    with_session(context, work)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
