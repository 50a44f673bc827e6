"""Signatures of versions, and which aliases want one. `registry.signatures` checks the signatures themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from registry.documents import encode
from registry.errors import SignatureInvalid, SignatureRequired
from registry.models import AliasPolicyRow, VersionRow
from registry.resources import AdapterVersion, AliasPolicy, Signature
from registry.signatures import check_signature, key_id, read_public_key
from registry.store.adapters import get_adapter
from registry.store.database import Call, Database, Write
from registry.store.versions import ChangedVersion, get_version


@dataclass(frozen=True, slots=True)
class ChangedPolicy:
    """The policy after a call."""

    policy: AliasPolicy
    revision: int


class Signing:
    """The signatures and policies of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign(self, call: Call, adapter: str, number: int, signature: Signature) -> ChangedVersion:
        """Keeps a signature with a version, which is no event: what the version is does not change.

        Raises AdapterNotFound, VersionNotFound and SignatureInvalid.
        """

        async def body(write: Write) -> ChangedVersion:
            version = await get_version(write.session, adapter, number)
            check_signature(version.manifest, signature)
            if version.signature == signature:
                return ChangedVersion(version, write.head)
            revision = await write.advance()
            await write.session.execute(
                update(VersionRow)
                .where(VersionRow.adapter == adapter, VersionRow.number == number)
                .values(signature=encode(signature))
            )
            await write.record(
                revision,
                [],
                base_model=version.base_model,
                resource=f"{adapter}:{number}",
                adapter=adapter,
                before=version.signature,
                after=signature,
            )
            return ChangedVersion(replace(version, signature=signature), revision.number)

        return await self._database.write(call, ChangedVersion, body)

    async def set_policy(self, call: Call, policy: AliasPolicy) -> ChangedPolicy:
        """Says what an alias wants from now on. Raises AdapterNotFound."""

        async def body(write: Write) -> ChangedPolicy:
            row = await get_adapter(write.session, policy.adapter)
            before = await find_policy(write.session, policy.adapter, policy.alias)
            if before == policy:
                return ChangedPolicy(policy, write.head)
            revision = await write.advance()
            keys = list(policy.public_keys)
            await write.session.execute(
                upsert(AliasPolicyRow)
                .values(adapter=policy.adapter, alias=policy.alias, public_keys=keys)
                .on_conflict_do_update(constraint="pk_alias_policies", set_={"public_keys": keys})
            )
            await write.record(
                revision,
                [],
                base_model=row.base_model,
                resource=f"{policy.adapter}@{policy.alias}",
                adapter=policy.adapter,
                before=before,
                after=policy,
            )
            return ChangedPolicy(policy, revision.number)

        return await self._database.write(call, ChangedPolicy, body)

    async def get_policy(self, adapter: str, alias: str) -> AliasPolicy:
        """What an alias wants. Raises AdapterNotFound."""
        async with self._database.read() as session:
            await get_adapter(session, adapter)
            return await find_policy(session, adapter, alias)


async def find_policy(session: AsyncSession, adapter: str, alias: str) -> AliasPolicy:
    """What an alias wants; nothing when nobody said."""
    row = await session.get(AliasPolicyRow, (adapter, alias))
    return AliasPolicy(adapter, alias, tuple(row.public_keys) if row is not None else ())


async def check_policy(session: AsyncSession, version: AdapterVersion, alias: str) -> None:
    """Raises SignatureRequired unless the version has what the alias wants."""
    policy = await find_policy(session, version.adapter, alias)
    if not policy.public_keys:
        return
    wanted = [key_id(read_public_key(one)) for one in policy.public_keys]
    name, where = f"{version.adapter}:{version.number}", f"{version.adapter}@{alias}"
    asks = f"{where} wants a signature by {' or '.join(wanted)}"
    if version.signature is None:
        raise SignatureRequired(f"{asks}, and {name} is not signed", metadata={"version": name})
    if version.signature.key_id not in wanted:
        raise SignatureRequired(
            f"{asks}, and {name} is signed by {version.signature.key_id}", metadata={"version": name}
        )
    try:
        check_signature(version.manifest, version.signature)
    except SignatureInvalid as error:
        raise SignatureRequired(
            f"{asks}, and that of {name} does not hold: {error}", metadata={"version": name}
        ) from error
