"""`registry base …`: the base models that adapters are made for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from registry.options import Session, global_options, with_session


@click.group()
@global_options(read_environment=False)
def base() -> None:
    """Base models, which adapters are made for."""


@base.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@global_options(read_environment=False)
@click.pass_context
def base_add(context: click.Context, name: str, path: Path) -> None:
    """Add the Hugging Face folder PATH as the base model NAME. Its weights stay where they are."""

    async def work(session: Session) -> None:
        from adapter.base_model import describe_base_model
        from adapter.names import check_name
        from registry.printing import byte_progress, short, size

        check_name(name)
        total, done = _weights_bytes(path), 0
        with byte_progress(f"hashing {path.name}") as progress:

            def on_bytes(count: int) -> None:
                nonlocal done
                done += count
                progress(done, max(done, total))

            description = await asyncio.to_thread(describe_base_model, path, on_bytes=on_bytes)
        added = await session.client.create_base_model(name, description)
        if session.printer.as_json:
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
        if session.printer.as_json:
            session.printer.document({"base_models": models})
            return
        session.printer.table(
            ("NAME", "ARCHITECTURE", "SIZE", "DIGEST", "CREATED"),
            [base_model_row(model) for model in models],
            empty="no base models yet; `registry base add NAME PATH` adds one",
        )

    with_session(context, work)


@base.command("show")
@click.argument("name")
@global_options(read_environment=False)
@click.pass_context
def base_show(context: click.Context, name: str) -> None:
    """Show one base model with its files."""

    async def work(session: Session) -> None:
        from registry.printing import base_model_facts

        model = await session.client.get_base_model(name)
        if session.printer.as_json:
            session.printer.document(model)
        else:
            session.printer.facts(base_model_facts(model))

    with_session(context, work)


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
