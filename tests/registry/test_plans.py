"""What Postgres does for the reads that every worker and every list asks for: it goes by an index, at any size."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from adapter.manifest import Manifest, ManifestFile
from adapter.names import Reference
from registry.documents import encode
from registry.resources import AdapterVersion, SnapshotItem
from registry.store import Store
from registry.store.changes import PAGE
from registry.store.database import Database, connection_string
from registry.store.paging import PageRequest

# Enough that reading a whole table is never the cheaper way.
ADAPTERS, VERSIONS = 2_000, 5
MANIFEST = json.dumps(encode(Manifest((ManifestFile("file", 1, f"sha256:{'0' * 64}"),))))
DIGEST = f"sha256:{hashlib.sha256(b'adapter-773').hexdigest()}"  # of adapter-77:3
FILL = f"""
    INSERT INTO base_models (name, digest, config_digest, weights_digest, tokenizer_digest, architecture, manifest,
        modules, create_time, revision) VALUES ('base', 'd', 'd', 'd', '', 'a', '{MANIFEST}', '[]', now(), 1);
    INSERT INTO adapters SELECT 'adapter-' || g, 'base', {VERSIONS}, now() FROM generate_series(1, {ADAPTERS}) g;
    INSERT INTO adapter_versions (adapter, number, digest, manifest, rank, alpha, target_modules, features, state,
        rejection_reasons, provenance, size_bytes, create_time, revision)
        SELECT a.name, n, 'sha256:' || encode(sha256((a.name || n)::bytea), 'hex'), '{MANIFEST}', 8, 16, '[]', '[]',
        'validated', '[]', '{{}}', 1, now(), 1 FROM adapters a, generate_series(1, {VERSIONS}) n;
    INSERT INTO aliases (adapter, alias, revision, update_time) SELECT name, 'production', 1, now() FROM adapters;
    INSERT INTO alias_targets (adapter, alias, version, weight)
        SELECT name, 'production', {VERSIONS}, 10000 FROM adapters;
    ANALYZE;
"""

Work = Callable[[Store], Awaitable[Any]]


async def second_page_of_a_snapshot(store: Store) -> None:
    async with store.changes.snapshot() as snapshot:
        versions = 0
        async for item in snapshot.items:
            versions += isinstance(item, SnapshotItem) and isinstance(item.item, AdapterVersion)
            if versions > PAGE:
                return


async def second_page_of_adapters(store: Store) -> None:
    first = await store.adapters.list(PageRequest(size=100))
    await store.adapters.list(PageRequest(size=100, token=first.next_token))


WORK: dict[str, Work] = {
    "resolve an alias": lambda store: store.references.resolve(Reference.parse("adapter-77")),
    "resolve a digest": lambda store: store.references.resolve(Reference.parse(DIGEST)),
    "resolve a number": lambda store: store.references.resolve(Reference.parse("adapter-77:3")),
    "list adapters": second_page_of_adapters,
    "list versions": lambda store: store.versions.list("adapter-77", PageRequest()),
    "snapshot": second_page_of_a_snapshot,
}


@pytest.fixture
def filled(database_url: str) -> str:
    with psycopg.connect(connection_string(database_url), autocommit=True) as connection:
        connection.execute(FILL)
    return database_url


async def statements(url: str, work: Work) -> list[tuple[str, Any]]:
    """What the work asks Postgres, with the parameters."""
    database = Database(url, pool_size=1)
    seen: list[tuple[str, Any]] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, *_: seen.append((statement, parameters)),
    )
    await work(Store(database))
    await database.close()
    return seen


async def test_reads_of_one_thing_and_of_a_page_go_by_an_index(filled: str) -> None:
    large = "adapters|adapter_versions|aliases|alias_targets"
    with psycopg.connect(connection_string(filled)) as connection:
        for name, work in WORK.items():
            asked = await statements(filled, work)
            assert asked, name
            for statement, parameters in asked:
                plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}", parameters))
                assert not re.search(rf"Seq Scan on ({large})\b", plan), f"{name}:\n{statement}\n{plan}"


async def test_resolving_takes_one_statement(filled: str) -> None:
    for reference in ("adapter-77", "adapter-77:3", DIGEST):
        asked = await statements(filled, lambda store, text=reference: store.references.resolve(Reference.parse(text)))
        assert len(asked) == 1
