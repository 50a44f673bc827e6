"""`registry register`, `promote` and `retire`: everything that changes an adapter."""

from __future__ import annotations

import os
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry import completion
from registry.commands.signing import FILE, PASSWORD_VARIABLE, sign_version
from registry.options import Session, global_options, with_session

if TYPE_CHECKING:
    from registry.resources import Adapter, AdapterVersion

# A version's number travels as uint32 and is stored as a signed 32-bit integer.
VERSION = click.IntRange(1, 2**31 - 1)


def _read_labels(_: click.Context, __: click.Parameter, found: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for one in found:
        key, separator, value = one.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"expected KEY=VALUE, found {one!r}")
        labels[key] = value
    return labels


def _read_share(_: click.Context, __: click.Parameter, found: str | None) -> int:
    """`10%`, `0.5%` or `10`, in hundredths of a percent; 0 when not given."""
    if found is None:
        return 0
    try:
        weight = Decimal(found.removesuffix("%").strip()) * 100
    except InvalidOperation:
        weight = Decimal(-1)
    # Not a number compares with nothing.
    if not weight.is_finite() or not 0 < weight < 10_000 or weight != int(weight):
        raise click.BadParameter(f"expected a share between 0.01% and 99.99% such as 10%, found {found!r}")
    return int(weight)


@click.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path), required=False)
@click.option("--source", default="", metavar="FOLDER", help="In place of PATH: a path or URL that the registry reads.")
@click.option(
    "--name",
    required=True,
    shell_complete=completion.adapters,
    help="The adapter to register under; made with its first version.",
)
@click.option(
    "--base",
    "base_model",
    required=True,
    shell_complete=completion.base_models,
    help="The base model that it was trained for.",
)
@click.option("--parent", default="", metavar="NAME:NUMBER", help="The version that it was trained from.")
@click.option("--git-commit", default="", help="Commit of the training code.")
@click.option("--run-uri", default="", help="The training run.")
@click.option("--dataset", "datasets", multiple=True, metavar="URI", help="A data set it was trained on; repeatable.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", callback=_read_labels, help="Repeatable.")
@click.option("--signing-key", type=FILE, help="Sign the version with this private key in PEM; see `registry sign`.")
@click.option(
    "--promote",
    "alias",
    metavar="ALIAS",
    shell_complete=completion.aliases,
    help="Point this alias at the version afterwards.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and keep no version.")
@click.option("--keep-rejected", is_flag=True, help="If refused, keep it with the reasons; `show --state rejected`.")
@global_options(read_environment=False)
@click.pass_context
def register(
    context: click.Context,
    *,
    path: Path | None,
    source: str,
    name: str,
    base_model: str,
    parent: str,
    git_commit: str,
    run_uri: str,
    datasets: tuple[str, ...],
    labels: dict[str, str],
    signing_key: Path | None,
    alias: str | None,
    dry_run: bool,
    keep_rejected: bool,
) -> None:
    """Register the PEFT folder PATH as the next version of an adapter.

    PATH holds adapter_config.json and adapter_model.safetensors. With a probe.json too, workers try its prompts on the
    new weights before they serve them; `inference probe` writes one. The same files again give the version already
    there.
    """
    if (path is None) == (not source):
        raise click.UsageError("give either PATH, to upload it, or --source, for the registry to read", context)
    if dry_run and alias:
        raise click.UsageError("--dry-run registers nothing that --promote could point at", context)
    if dry_run and keep_rejected:
        raise click.UsageError("--dry-run keeps nothing, --keep-rejected does", context)

    async def work(session: Session) -> None:
        from adapter.names import check_name
        from registry.commands.moves import moved_line
        from registry.printing import byte_progress
        from registry.resources import Provenance

        check_name(name)
        if alias is not None:
            check_name(alias, what="alias")
        provenance = Provenance(git_commit, run_uri, datasets, labels)
        if path is None:
            registered = await session.client.register_from(
                source,
                adapter=name,
                base_model=base_model,
                parent=parent,
                provenance=provenance,
                validate_only=dry_run,
                keep_rejected=keep_rejected,
            )
        else:
            with byte_progress(f"uploading {path.name}") as progress:
                registered = await session.client.register(
                    path,
                    adapter=name,
                    base_model=base_model,
                    parent=parent,
                    provenance=provenance,
                    validate_only=dry_run,
                    keep_rejected=keep_rejected,
                    on_progress=progress,
                )
        version = registered.version
        if signing_key is not None and not dry_run:
            version = await sign_version(session.client, version, signing_key, os.environ.get(PASSWORD_VARIABLE, ""))
        promoted = await session.client.promote(name, version.number, alias=alias) if alias is not None else None
        if session.printer.writes_documents:
            document: dict[str, object] = {
                "version": version,
                "revision": promoted.revision if promoted else registered.revision,
                "created": registered.created,
            }
            if promoted:
                document |= {"alias": promoted.alias, "changed": promoted.changed}
            session.printer.document(document)
            return
        session.printer.line(_registered_line(version, created=registered.created, dry_run=dry_run))
        if promoted is not None:
            session.printer.line(moved_line(promoted.alias, changed=promoted.changed, dry_run=False))

    with_session(context, work)


def _registered_line(version: AdapterVersion, *, created: bool, dry_run: bool) -> str:
    from registry.printing import short, size
    from registry.resources import VersionState

    read = (f"rank {version.rank}", *version.target_modules) if version.rank else ()
    facts = ", ".join((*read, size(version.size_bytes), short(version.digest)))
    if dry_run:
        return f"would register {version.adapter} ({facts})"
    what = "registered" if created else "already there:"
    state = "" if version.state == VersionState.VALIDATED else f", {version.state.value}"
    return f"{what} {version.adapter}:{version.number}{state} ({facts})"


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.argument("version", type=VERSION, shell_complete=completion.numbers)
@click.option(
    "--alias",
    default="production",
    show_default=True,
    shell_complete=completion.aliases,
    help="The alias to move; made when it is new.",
)
@click.option("--canary", callback=_read_share, metavar="SHARE", help="Move only this share of it, such as 10%.")
@click.option("--expect", type=click.IntRange(0), metavar="N", help="Only if it points at N now; 0: only if it is new.")
@click.option("--message", default="", help="Why; kept in the alias's history.")
@click.option("--dry-run", is_flag=True, help="Say what would change and change nothing.")
@click.option("--wait", is_flag=True, help="Wait until every live worker serves the version.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=120, show_default=True, metavar="SECONDS")
@global_options(read_environment=False)
@click.pass_context
def promote(
    context: click.Context,
    *,
    name: str,
    version: int,
    alias: str,
    canary: int,
    expect: int | None,
    message: str,
    dry_run: bool,
    wait: bool,
    timeout_s: float,
) -> None:
    """Point an alias of the adapter NAME at VERSION. Workers load it beside the old one, then switch.

    With --canary the alias splits: which side answers is a hash of the request's id, so the same id stays on its side.
    Promoting without it ends the split, and so does `rollback`.
    """
    if dry_run and wait:
        raise click.UsageError("--dry-run changes nothing that --wait could wait for", context)

    async def work(session: Session) -> None:
        from registry.commands.moves import tell_moved

        promoted = await session.client.promote(
            name,
            version,
            alias=alias,
            canary_weight=canary,
            expected_version=expect,
            validate_only=dry_run,
            message=message,
        )
        await tell_moved(session, promoted, dry_run=dry_run, wait_s=timeout_s if wait else None)

    with_session(context, work)


def _broken_lines(adapter: Adapter, version: int) -> list[str]:
    """What a forced retirement broke."""
    shares = [(alias, one.weight) for alias in adapter.aliases for one in alias.targets if one.version == version]
    return [
        f"{adapter.name}@{alias.alias} answers {weight / 100:g} % of its requests with an error until it is "
        "promoted elsewhere or rolled back"
        for alias, weight in shares
    ]


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.argument("version", type=VERSION, shell_complete=completion.numbers)
@click.option("--force", is_flag=True, help="Although aliases point at it; they then answer with an error.")
@click.option("--message", default="", help="Why; kept in the audit log.")
@global_options(read_environment=False)
@click.pass_context
def retire(context: click.Context, name: str, version: int, force: bool, message: str) -> None:
    """Withdraw VERSION of the adapter NAME: it can no longer be resolved or promoted."""

    async def work(session: Session) -> None:
        retired = await session.client.retire(name, version, force=force, message=message)
        if session.printer.writes_documents:
            session.printer.document(retired)
            return
        session.printer.line(f"retired {name}:{version}")
        if retired.aliases:
            adapter = await session.client.get_adapter(name)
            for line in _broken_lines(adapter, version):
                session.printer.line(line)

    with_session(context, work)
