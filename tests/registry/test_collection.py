"""Files that no version needs go, and no other: neither those of versions nor those that someone relies on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from adapter.manifest import manifest_of_adapter
from registry.blobs import BlobStore
from registry.collection import collect
from registry.errors import InvalidRequest
from registry.shelves import FolderShelf
from registry.spool import Spool
from registry.store.blob_uses import BlobUses
from registry.store.database import Database, connection_string

GRACE_S = 600.0


@pytest.fixture
def age(registry_server):
    """Makes everything stored and noted so far old."""

    def age() -> None:
        long_ago = time.time() - 10 * 86_400
        for path in (registry_server.settings.data_dir / "blobs" / "sha256").glob("*/*"):
            os.utime(path, (long_ago, long_ago))
        url = connection_string(registry_server.settings.database_url)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE blob_uses SET time = time - interval '10 days'")

    return age


async def upload(client: Any, tmp_path: Path, data: bytes) -> str:
    (tmp_path / "data").write_bytes(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    await client.upload_blob(tmp_path / "data", digest=digest, size_bytes=len(data))
    return digest


async def test_only_what_no_version_needs_is_removed(client, base_model, new_adapter, tmp_path, age):
    registered = await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    await client.retire("sql", 1)
    lost = {await upload(client, tmp_path, data) for data in (b"one", b"two2")}
    age()
    planned = await client.upkeep.collect(grace_s=GRACE_S, validate_only=True)
    assert (set(planned.digests), planned.count, planned.size_bytes) == (lost, 2, 7)
    revision = (await client.status()).revision
    assert await client.upkeep.collect(grace_s=GRACE_S) == planned
    entry = (await client.admin.list_audit_entries())[0]
    assert (entry.revision, entry.action, entry.resource) == (revision + 1, "CollectBlobs", "blobs")
    assert json.loads(entry.after) == {"digests": list(planned.digests), "count": 2, "size_bytes": 7}
    assert (await client.upkeep.collect(grace_s=GRACE_S)).count == 0
    assert (await client.status()).revision == revision + 1
    assert await client.find_missing_blobs(registered.version.manifest) == frozenset()


async def test_what_was_used_lately_stays(client, base_model, tmp_path, new_adapter, age):
    manifest = manifest_of_adapter(new_adapter(1))
    for file in manifest.files:
        await client.upload_blob(new_adapter(1) / file.path, digest=file.digest, size_bytes=file.size_bytes)
    assert (await client.upkeep.collect(grace_s=GRACE_S)).count == 0  # uploaded a moment ago
    age()
    assert await client.find_missing_blobs(manifest) == frozenset()  # and old, but someone was told that it is here
    assert (await client.upkeep.collect(grace_s=GRACE_S)).count == 0
    age()
    assert (await client.upkeep.collect(grace_s=GRACE_S)).count == 2


async def test_a_short_grace_is_refused(client):
    with pytest.raises(InvalidRequest, match="at least 600 s"):
        await client.upkeep.collect(grace_s=599)


async def test_versions_that_are_registered_during_collections_keep_their_files(
    client, base_model, new_adapter, age, registry_server
):
    """Files that are old and needed by nobody when they are noted, beside collections that never end."""
    ending = asyncio.Event()

    async def keep_collecting() -> None:
        while not ending.is_set():
            await client.upkeep.collect(grace_s=GRACE_S)

    collecting = [asyncio.create_task(keep_collecting()) for _ in range(2)]
    for seed in range(12):
        folder = new_adapter(seed)
        for file in manifest_of_adapter(folder).files:
            await client.upload_blob(folder / file.path, digest=file.digest, size_bytes=file.size_bytes)
        age()
        version = (await client.register(folder, adapter="sql", base_model=base_model)).version
        assert await client.find_missing_blobs(version.manifest) == frozenset()
    ending.set()
    await asyncio.gather(*collecting)
    for version in await client.list_versions("sql"):
        assert await client.find_missing_blobs(version.manifest) == frozenset()


async def test_a_file_is_noted_before_or_after_a_batch_and_never_within(settings, tmp_path):
    """Who notes a file while it is being removed waits, and then finds it missing."""
    database = Database(settings.database_url, pool_size=4)
    uses = BlobUses(database)
    store = BlobStore(FolderShelf(tmp_path / "blobs"), Spool(tmp_path / "tmp"), max_bytes=100)
    store.open()

    async def data():
        yield b"x"

    digest = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    await store.receive(digest, 1, data())
    async with uses.unneeded([digest], grace_s=0) as unneeded:
        assert unneeded == [digest]
        noting = asyncio.create_task(uses.note([digest]))
        await wait_for_lock(settings.database_url)
        assert not noting.done()
        await store.remove(digest)
    await noting
    assert await store.missing([(digest, 1)]) == [digest]
    assert (await collect(store, uses, grace_s=0, dry_run=False)).count == 0
    await database.close()


async def wait_for_lock(url: str) -> None:
    """Until some connection waits for another one's lock."""
    connection = await psycopg.AsyncConnection.connect(connection_string(url), autocommit=True)
    async with connection, asyncio.timeout(20):
        while await (await connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted")).fetchone() is None:
            pass
