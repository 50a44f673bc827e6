"""What the environment may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.settings import DEFAULT_LISTEN, read_settings
from rpc.security import ConfigError


def test_nothing_said_means_loopback_and_a_postgres_of_our_own():
    found = read_settings({"XDG_DATA_HOME": "/data"})
    assert (found.database_url, found.listen, found.data_dir) == ("", DEFAULT_LISTEN, Path("/data/loraplex/registry"))


def test_everything_may_be_said(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("ci " + 64 * "0")
    found = read_settings(
        {
            "DATABASE_URL": "postgresql://db/x",
            "LORAPLEX_REGISTRY_LISTEN": "0.0.0.0:1",
            "LORAPLEX_REGISTRY_DATA_DIR": str(tmp_path),
            "LORAPLEX_REGISTRY_DRAIN_S": "0.5",
            "LORAPLEX_REGISTRY_MAX_BLOB_BYTES": "7",
            "LORAPLEX_REGISTRY_POOL_SIZE": "3",
            "LORAPLEX_REGISTRY_POLL_S": "2",
            "LORAPLEX_REGISTRY_PROGRESS_S": "4",
            "LORAPLEX_REGISTRY_KEEP_REVISIONS": "5",
            "LORAPLEX_REGISTRY_KEEP_DAYS": "1.5",
            "LORAPLEX_REGISTRY_COMPACT_EVERY_S": "60",
            "LORAPLEX_REGISTRY_BLOBS": "s3://bucket/blobs",
            "LORAPLEX_REGISTRY_SOURCE_ROOTS": "/models,s3://bucket/models",
            "LORAPLEX_REGISTRY_TOKEN_FILE": str(tokens),
        }
    )
    assert (found.database_url, found.listen, found.data_dir) == ("postgresql://db/x", "0.0.0.0:1", tmp_path)
    assert (found.drain_s, found.max_blob_bytes, found.pool_size, found.poll_s, found.progress_s) == (0.5, 7, 3, 2, 4)
    assert (found.keep_revisions, found.keep_days, found.compact_every_s) == (5, 1.5, 60)
    assert (found.blobs, found.source_roots) == ("s3://bucket/blobs", ("/models", "s3://bucket/models"))
    assert found.security.token_hashes == {"ci": 64 * "0"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POOL_SIZE", "many"),
        ("POOL_SIZE", "0"),
        ("DRAIN_S", "-1"),
        ("PROGRESS_S", "0"),
        ("KEEP_DAYS", "-1"),
        ("COMPACT_EVERY_S", "0"),
        ("TOKEN_FILE", "/nothing"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name, value):
    with pytest.raises(ConfigError, match=value if name == "TOKEN_FILE" else f"LORAPLEX_REGISTRY_{name}"):
        read_settings({f"LORAPLEX_REGISTRY_{name}": value})
