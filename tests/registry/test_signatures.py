"""Signatures: what they are over, who made them, and what a policy asks. Through the library, gRPC and the command."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapter.manifest import Manifest, ManifestFile
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import signing_service_pb2 as signing_pb
from registry.errors import (
    AdapterNotFound,
    InvalidKey,
    InvalidName,
    InvalidRequest,
    SignatureInvalid,
    SignatureRequired,
    VersionNotFound,
)
from registry.resources import Signature
from registry.signatures import (
    check_signature,
    key_id,
    load_private_key,
    read_public_key,
    sign,
    write_public_key,
)
from registry.store.database import connection_string

MANIFEST = Manifest((ManifestFile("a", 1, f"sha256:{'1' * 64}"),))
OTHER = Manifest((ManifestFile("a", 2, f"sha256:{'1' * 64}"),))
KEYS = {
    "ed25519": Ed25519PrivateKey.generate,
    **{
        curve.name: lambda curve=curve: ec.generate_private_key(curve)
        for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
    },
}


def save(path: Path, key: Any, password: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return path


@pytest.mark.parametrize("kind", KEYS)
def test_a_signature_holds_for_its_manifest_and_no_other(kind: str) -> None:
    key = KEYS[kind]()
    signature = sign(MANIFEST, key)
    check_signature(MANIFEST, signature)
    assert signature.key_id == key_id(key.public_key())
    with pytest.raises(SignatureInvalid, match="not of the manifest"):
        check_signature(OTHER, signature)


def changed(signature: Signature, /, **values: Any) -> Signature:
    return dataclasses.replace(signature, bundle=json.dumps(json.loads(signature.bundle) | values))


def test_a_signature_that_was_tampered_with_does_not_hold() -> None:
    signature, other = sign(MANIFEST, KEYS["ed25519"]()), sign(MANIFEST, KEYS["secp256r1"]())
    other_bundle = json.loads(other.bundle)
    for wrong in (
        dataclasses.replace(signature, key_id=other.key_id),
        dataclasses.replace(signature, bundle=other.bundle),
        dataclasses.replace(signature, bundle=""),
        dataclasses.replace(signature, bundle="[]"),
        dataclasses.replace(signature, bundle="{" * 100_000),
        changed(signature, algorithm="ecdsa"),
        changed(signature, algorithm=None),
        changed(signature, public_key=other_bundle["public_key"]),
        changed(signature, signature=other_bundle["signature"]),
        changed(signature, signature=base64.b64encode(bytes(64)).decode()),
        changed(signature, signature="!"),
        changed(signature, signature=None),
        changed(signature, public_key=3),
    ):
        with pytest.raises(SignatureInvalid):
            check_signature(MANIFEST, wrong)


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    weak = rsa.generate_private_key(65537, 1024)
    for key in (weak, ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(InvalidKey):
            load_private_key(save(tmp_path / "key", key))
        with pytest.raises(InvalidKey):
            read_public_key(
                key.public_key()
                .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
                .decode()
            )
    for text in ("", "no key", "x" * 10_000):
        with pytest.raises(InvalidKey):
            read_public_key(text)


def test_a_key_may_have_a_password(tmp_path: Path) -> None:
    key = KEYS["secp256r1"]()
    path = save(tmp_path / "key", key, b"secret")
    check_signature(MANIFEST, sign(MANIFEST, load_private_key(path, "secret")))
    for password in (None, "wrong"):
        with pytest.raises(InvalidKey):
            load_private_key(path, password)


@pytest.fixture
async def versions(client, base_model, new_adapter) -> list[Any]:
    """sql:1 and sql:2."""
    return [(await client.register(new_adapter(seed), adapter="sql", base_model=base_model)).version for seed in (1, 2)]


async def test_a_signature_stays_with_its_version(client, versions):
    signature = sign(versions[0].manifest, KEYS["ed25519"]())
    signed = await client.signing.sign("sql", 1, signature)
    assert signed == dataclasses.replace(versions[0], signature=signature)
    assert await client.get_version("sql", 1) == signed
    assert await client.verify("sql", 1) == ()
    revision = (await client.status()).revision
    await client.signing.sign("sql", 1, signature)
    assert (await client.status()).revision == revision


async def test_a_signature_of_another_version_is_not_kept(registry_server, client, versions):
    before = await registry_server.state()
    signature = sign(versions[1].manifest, KEYS["ed25519"]())
    with pytest.raises(SignatureInvalid):
        await client.signing.sign("sql", 1, signature)
    with pytest.raises(VersionNotFound):
        await client.signing.sign("sql", 9, signature)
    assert await registry_server.state() == before


async def test_an_alias_that_wants_a_signature_takes_nothing_else(registry_server, client, versions):
    ours, theirs = KEYS["ed25519"](), KEYS["secp256r1"]()
    await client.promote("sql", 2)
    await client.promote("sql", 1)
    await client.signing.set_policy("sql", [write_public_key(ours.public_key())])
    with pytest.raises(SignatureRequired, match="sql:2 is not signed"):
        await client.promote("sql", 2, validate_only=True)
    with pytest.raises(SignatureRequired):
        await client.promote("sql", 2, canary_weight=100)
    with pytest.raises(SignatureRequired):  # going back is no way around it
        await registry_server.ask(registry_server.stub.RollbackAlias, pb.RollbackAliasRequest(adapter="sql"))
    await client.signing.sign("sql", 2, sign(versions[1].manifest, theirs))
    with pytest.raises(SignatureRequired, match="is signed by"):
        await client.promote("sql", 2)
    assert (await client.promote("sql", 2, alias="canary")).changed  # another alias has its own policy
    await client.signing.sign("sql", 2, sign(versions[1].manifest, ours))
    assert (await client.promote("sql", 2)).changed
    await client.signing.set_policy("sql", [])
    assert (await client.promote("sql", 1)).changed


async def test_a_signature_that_was_changed_in_the_database_is_found_out(registry_server, client, versions):
    key = KEYS["ed25519"]()
    await client.signing.sign("sql", 1, sign(versions[0].manifest, key))
    await client.signing.set_policy("sql", [write_public_key(key.public_key())])
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        other = json.dumps({"key_id": key_id(key.public_key()), "bundle": sign(OTHER, key).bundle})
        connection.execute("UPDATE adapter_versions SET signature = %s::jsonb WHERE number = 1", (other,))
    with pytest.raises(SignatureRequired, match="does not hold"):
        await client.promote("sql", 1)
    (problem,) = await client.verify("sql", 1)
    assert "the signature does not hold" in problem


async def test_a_policy_names_keys_and_is_audited(registry_server, client, versions):
    key = write_public_key(KEYS["ed25519"]().public_key())
    made = await client.signing.set_policy("sql", [key], alias="later")
    assert await client.signing.get_policy("sql", alias="later") == made
    assert (await client.signing.get_policy("sql")).public_keys == ()
    before = await registry_server.state()
    for keys, alias, error in (
        (["no key"], "", InvalidKey),
        ([key] * 17, "", InvalidRequest),
        ([key], "a/b", InvalidName),
    ):
        with pytest.raises(error):
            await client.signing.set_policy("sql", keys, alias=alias)
    with pytest.raises(AdapterNotFound):
        await client.signing.set_policy("nothing", [key])
    assert await registry_server.state() == before
    entries = [row for row in before["audit_entries"] if "SetAliasPolicy" in row]
    assert len(entries) == 1


async def test_a_call_without_a_signature_is_refused(registry_server, client, versions):
    from loraplex.registry.v1 import signing_service_pb2_grpc as rpcs
    from rpc.channel import connect

    async with connect(registry_server.address) as channel:
        stub = rpcs.SigningServiceStub(channel)
        with pytest.raises(InvalidRequest, match="found none"):
            await registry_server.ask(
                stub.SignAdapterVersion, signing_pb.SignAdapterVersionRequest(adapter="sql", version=1)
            )
