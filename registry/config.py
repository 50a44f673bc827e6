"""The command's configuration file, the weakest of three: what it says is a default for the environment, and that for
flags. It knows the file and no command.

    # ~/.config/loraplex/registry.toml, or what --config names
    server = "registry.internal:7100"
    token = "lplx_…"
    ca = "/etc/loraplex/ca.pem"
    output = "yaml"

    [serve]
    listen = "0.0.0.0:7100"
    data_dir = "/var/lib/loraplex"

Keys at the top are the global options of the command. Keys under [serve] are the variables of `registry.settings`, in
lower case and without their prefix. A key that means nothing is an error.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from registry.settings import PREFIX, Settings, read_settings
from rpc.security import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says."""

    options: Mapping[str, str]
    serve: Mapping[str, str]


def read_config(path: Path, *, options: Collection[str]) -> Config:
    """What the file says; `options` are the keys that there are at its top. Raises ConfigError."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    serve = document.pop("serve", {})
    if not isinstance(serve, dict):
        raise ConfigError(f"{path}: expected a table [serve], found {serve!r}")
    unknown = sorted(set(document) - set(options))
    if unknown:
        raise ConfigError(f"{path}: expected one of {', '.join(sorted(options))}, found {unknown[0]}")
    return Config(_texts(path, document), _texts(path, serve))


def combine_settings(serve: Mapping[str, str], environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """The settings of a file, the environment and flags, each stronger than the one before it.

    The keys of `serve` and `flags` are named as in the file. Raises ConfigError.
    """
    lookups = _Lookups({_variable(key): value for key, value in serve.items()})
    lookups.update(environ)
    lookups.update({_variable(key): value for key, value in flags.items()})
    settings = read_settings(lookups)
    unknown = sorted(key for key in serve if _variable(key) not in lookups.names)
    if unknown:
        known = (name.removeprefix(PREFIX).lower() for name in lookups.names if name.startswith(PREFIX))
        raise ConfigError(f"[serve]: expected database_url or one of {', '.join(sorted(known))}, found {unknown[0]}")
    return settings


class _Lookups(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.names: set[str] = set()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # an environment has texts only
        self.names.add(name)
        return super().get(name, default)


def _variable(key: str) -> str:
    return "DATABASE_URL" if key == "database_url" else PREFIX + key.upper()


def _texts(path: Path, table: Mapping[str, object]) -> dict[str, str]:
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigError(f"{path}: {key}: expected a text or a number, found {value!r}")
    return {key: str(value) for key, value in table.items()}
