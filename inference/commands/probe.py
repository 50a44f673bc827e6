"""`inference probe`: writes down what an adapter answers, so that every worker tries it before it serves it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, type=click.Path(exists=True, path_type=Path), help="The base model's folder.")
@click.option("--prompt", "prompts", multiple=True, required=True, help="A prompt, as plain text; repeatable.")
@click.option("--tokens", type=click.IntRange(1, 64), default=8, show_default=True, help="Of each answer.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32 or bfloat16.")
def probe(folder: Path, model: Path, prompts: tuple[str, ...], tokens: int, dtype: str) -> None:
    """Write the probe.json of the PEFT folder FOLDER from what it answers to each prompt.

    The file becomes part of the adapter: register the folder afterwards. Where two tokens are nearly as likely, what
    comes after is not compared, so that workers of another precision agree.
    """
    from inference.probing import probing_settings, write_probes

    answers = asyncio.run(write_probes(probing_settings(model, dtype), folder, prompts, num_tokens=tokens))
    for prompt, answer in zip(prompts, answers, strict=True):
        click.echo(f"{prompt!r} -> {answer!r}")
    click.echo(f"wrote {folder / 'probe.json'}")
