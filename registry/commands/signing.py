"""`registry sign` and `policy`: who vouches for a version, and which aliases want that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from registry import completion
from registry.options import Session, global_options, with_session

if TYPE_CHECKING:
    from registry.client import RegistryClient
    from registry.resources import AdapterVersion

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PASSWORD_VARIABLE = "LORAPLEX_SIGNING_PASSWORD"  # noqa: S105 -- the variable's name


async def sign_version(client: RegistryClient, version: AdapterVersion, key: Path, password: str) -> AdapterVersion:
    """Signs here, where the key is, and keeps the signature with the version."""
    from registry.signatures import load_private_key, sign

    signature = sign(version.manifest, load_private_key(key, password or None))
    return await client.signing.sign(version.adapter, version.number, signature)


@click.command("sign")
@click.argument("reference", metavar="REF", shell_complete=completion.references)
@click.option("--signing-key", required=True, type=FILE, help="Private key in PEM: Ed25519, P-256, P-384 or P-521.")
@click.option("--password", default="", envvar=PASSWORD_VARIABLE, show_envvar=True, help="Of the key, if it has one.")
@global_options(read_environment=False)
@click.pass_context
def sign(context: click.Context, reference: str, signing_key: Path, password: str) -> None:
    """Sign the version REF. The key stays here; `openssl genpkey -algorithm ed25519` makes one.

    The registry's word for the version's files is taken, so sign what you registered, or run `registry verify` first.
    """

    async def work(session: Session) -> None:
        from adapter.names import Reference
        from registry.commands.look import find_version

        found = await find_version(session.client, Reference.parse(reference))
        version = await sign_version(session.client, found, signing_key, password)
        assert version.signature is not None
        if session.printer.writes_documents:
            session.printer.document(version)
        else:
            session.printer.line(f"signed {version.adapter}:{version.number} with the key {version.signature.key_id}")

    with_session(context, work)


@click.command()
@click.argument("name", shell_complete=completion.adapters)
@click.option(
    "--alias",
    default="production",
    show_default=True,
    shell_complete=completion.aliases,
    help="The alias; it need not exist yet.",
)
@click.option("--signed-by", "keys", multiple=True, type=FILE, help="A public key in PEM; any one will do. Repeatable.")
@click.option("--no-signature", is_flag=True, help="Want no signature any more.")
@global_options(read_environment=False)
@click.pass_context
def policy(context: click.Context, name: str, alias: str, keys: tuple[Path, ...], no_signature: bool) -> None:
    """Show or set what an alias of the adapter NAME wants of a version that is promoted to it."""
    if keys and no_signature:
        raise click.UsageError("--signed-by and --no-signature say opposite things", context)

    async def work(session: Session) -> None:
        from registry.signatures import key_id, read_public_key

        signing = session.client.signing
        if keys or no_signature:
            found = await signing.set_policy(name, [key.read_text() for key in keys], alias=alias)
        else:
            found = await signing.get_policy(name, alias=alias)
        if session.printer.writes_documents:
            session.printer.document(found)
            return
        wanted = " or ".join(key_id(read_public_key(key)) for key in found.public_keys)
        session.printer.line(f"{name}@{alias} wants " + (f"a signature by {wanted}" if wanted else "no signature"))

    with_session(context, work)
