"""A refused artifact that is kept: seen with its reasons, good for nothing else, and checked again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from adapter.manifest import manifest_of_adapter
from registry import registration
from registry.errors import AdapterRefused, VersionRejected
from registry.resources import Change, VersionRegistered, VersionState
from registry.store.database import connection_string

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def unfit(new_adapter) -> Path:
    """An adapter with a number that is none."""

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q_PROJ}.lora_A.weight"][0, 0] = np.nan

    return new_adapter(7, change_tensors=spoil)


async def refuse(client: Any, folder: Path, **changes: Any) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as refused:
        await client.register(folder, adapter="sql", base_model="base", **{"keep_rejected": True} | changes)
    return refused.value


async def test_a_refused_artifact_is_kept_only_when_that_is_asked_for(registry_server, client, base_model, unfit):
    for changes in ({"keep_rejected": False}, {"validate_only": True}):
        before = await registry_server.state()
        error = await refuse(client, unfit, **changes)
        assert error.metadata == {}
        assert await registry_server.state() == before


async def test_a_rejected_version_says_why_and_is_neither_resolved_nor_promoted(client, base_model, new_adapter, unfit):
    await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    error = await refuse(client, unfit)
    assert error.metadata == {"version": "sql:2"}
    assert "kept as sql:2, rejected" in str(error)
    assert "NaN" in error.reasons[0]
    found = await client.get_version("sql", 2)
    assert (found.state, found.rejection_reasons, found.rank) == (VersionState.REJECTED, error.reasons, 0)
    assert found.digest == manifest_of_adapter(unfit).digest
    for attempt in (
        client.resolve("sql:2"),
        client.resolve(found.digest),
        client.promote("sql", 2),
        client.promote("sql", 2, validate_only=True),
    ):
        with pytest.raises(VersionRejected) as refused:
            await attempt
        assert refused.value.reasons == error.reasons
    assert (await client.admin.list_audit_entries())[0].resource == "sql:2"
    watch = client.watch(after_revision=found.revision - 1)
    change = await anext(watch)
    assert isinstance(change, Change)
    assert change.events[0].happening == VersionRegistered(found)
    await watch.aclose()


async def test_a_rejected_digest_has_one_version_however_often_it_is_refused(client, base_model, unfit):
    first = await refuse(client, unfit)
    revision = (await client.status()).revision
    for keep_rejected in (True, False):
        again = await refuse(client, unfit, keep_rejected=keep_rejected)
        assert again.reasons == first.reasons
    assert (await client.status()).revision == revision
    assert len(await client.list_versions("sql")) == 1


async def test_a_rejected_version_that_passes_a_later_check_is_an_ordinary_one(
    client, base_model, new_adapter, monkeypatch
):
    async def refuse_all(*_: Any) -> Any:
        raise AdapterRefused("not served by this release", reasons=("tensors: not served by this release",))

    with monkeypatch.context() as patch:
        patch.setattr(registration, "check_artifact", refuse_all)
        await refuse(client, new_adapter(1))
    registered = await client.register(new_adapter(1), adapter="sql", base_model=base_model)
    version = registered.version
    assert (version.number, registered.created) == (1, False)
    assert (version.state, version.rejection_reasons, version.rank) == (VersionState.VALIDATED, (), 2)
    assert await client.get_version("sql", 1) == version
    assert (await client.promote("sql", 1)).changed
    assert (await client.register(new_adapter(1), adapter="sql", base_model=base_model)).revision > registered.revision
    assert [one.number for one in await client.list_versions("sql")] == [1]


async def test_the_files_of_a_rejected_version_are_removed_and_may_come_again(
    registry_server, client, base_model, unfit
):
    await refuse(client, unfit)
    long_ago = time.time() - 10 * 86_400
    for path in (registry_server.settings.data_dir / "blobs" / "sha256").glob("*/*"):
        os.utime(path, (long_ago, long_ago))
    url = connection_string(registry_server.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE blob_uses SET time = time - interval '10 days'")
    assert (await client.upkeep.collect()).count == 2
    assert (await refuse(client, unfit)).metadata == {"version": "sql:1"}


async def test_the_command_names_the_version_and_shows_it_with_its_reasons(
    registry_server, commands_at, base_model, unfit
):
    run = commands_at(registry_server.address)
    ended = await run("register", unfit, "--name", "sql", "--base", base_model, "--keep-rejected")
    assert ended.code == 4
    assert "kept as sql:1, rejected" in ended.err
    document = await run.json("show", "sql", "--state", "rejected")
    (version,) = document["versions"]
    assert "NaN" in version["rejection_reasons"][0]
    assert (await run.json("show", "sql", "--state", "validated"))["versions"] == []
    assert "NaN" in (await run("show", "sql:1")).out
    assert (await run("retire", "sql", "1")).code == 0
    again = await run("register", unfit, "--name", "sql", "--base", base_model)
    assert again.out.startswith("already there: sql:1, retired (")
    assert "rank 0" not in again.out
