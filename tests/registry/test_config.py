"""A file, the environment and flags, each stronger than the one before it; and what a file may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.config import combine_settings, read_config
from registry.settings import DEFAULT_LISTEN
from rpc.security import ConfigError


def test_flags_are_stronger_than_the_environment_and_that_than_the_file() -> None:
    file = {"listen": "127.0.0.1:1", "pool_size": "3", "drain_s": "7", "database_url": "postgresql://file/x"}
    environ = {"LORAPLEX_REGISTRY_LISTEN": "127.0.0.1:2", "LORAPLEX_REGISTRY_DRAIN_S": "8", "HOME": "/nonexistent"}
    found = combine_settings(file, environ, {"listen": "127.0.0.1:3"})
    assert (found.listen, found.drain_s, found.pool_size) == ("127.0.0.1:3", 8.0, 3)
    assert found.database_url == "postgresql://file/x"
    assert combine_settings(file, environ | {"DATABASE_URL": "postgresql://env/x"}, {}).database_url.endswith("env/x")
    assert combine_settings({}, {}, {}).listen == DEFAULT_LISTEN


def test_a_key_that_means_nothing_is_named_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"expected database_url or one of .*listen.*, found lisen"):
        combine_settings({"lisen": "x"}, {}, {})
    with pytest.raises(ConfigError, match="expected a number"):
        combine_settings({"pool_size": "many"}, {}, {})


def test_numbers_in_the_file_are_read_as_the_environment_would_say_them(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text('server = "a:1"\n[serve]\npool_size = 4\ndrain_s = 0.5\n')
    found = read_config(file, options={"server"})
    assert (dict(found.options), dict(found.serve)) == ({"server": "a:1"}, {"pool_size": "4", "drain_s": "0.5"})
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path / "none.toml", options=set())
