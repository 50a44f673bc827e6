"""The registry's settings and the one place that reads them from the environment.

DATABASE_URL                        the Postgres to use; without it the registry runs its own in its data folder
LORAPLEX_REGISTRY_LISTEN            `host:port` or `unix:path`; loopback, unless callers must prove who they are
LORAPLEX_REGISTRY_DATA_DIR          where blobs and the embedded Postgres live
LORAPLEX_REGISTRY_DRAIN_S           how long running calls may take to finish when the process is told to stop
LORAPLEX_REGISTRY_BLOBS             path or URL of the stored files, `s3://BUCKET/PREFIX`; `blobs` in the data folder
LORAPLEX_REGISTRY_SOURCE_ROOTS      folders, with commas between, that versions may be registered from without upload
LORAPLEX_REGISTRY_MAX_BLOB_BYTES    the largest file that is accepted
LORAPLEX_REGISTRY_POOL_SIZE         connections to Postgres, beside the listener's
LORAPLEX_REGISTRY_POLL_S            how often the listener looks for itself, should a NOTIFY be lost
LORAPLEX_REGISTRY_PROGRESS_S        how often an idle watch is told that nothing happened
LORAPLEX_REGISTRY_CLIENT_SCOPES     what the subjects of client certificates may do, as in `registry.client_scopes`
LORAPLEX_REGISTRY_KEEP_REVISIONS    how many revisions a watcher can at least resume after
LORAPLEX_REGISTRY_KEEP_DAYS         for how long it can at least; older events than both are removed
LORAPLEX_REGISTRY_COMPACT_EVERY_S   how often that is looked at
LORAPLEX_REGISTRY_TLS_CERT, _TLS_KEY, _CLIENT_CA, _TOKEN_FILE    as in `rpc.security`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from registry.client_scopes import read_client_grants
from registry.grants import Grant
from rpc.security import ConfigError, Security, read_token_file

PREFIX = "LORAPLEX_REGISTRY_"
DEFAULT_LISTEN = "127.0.0.1:7100"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `registry.app` needs to know; see the table above."""

    data_dir: Path
    database_url: str = ""
    listen: str = DEFAULT_LISTEN
    security: Security = field(default_factory=Security)
    client_grants: Mapping[str, Grant] = field(default_factory=dict)
    blobs: str = ""
    source_roots: tuple[str, ...] = ()
    drain_s: float = 10.0
    # An adapter of rank 512 on all linear layers of a 70B model is about 13 GiB.
    max_blob_bytes: int = 16 * 2**30
    pool_size: int = 8
    poll_s: float = 5.0
    progress_s: float = 10.0
    keep_revisions: int = 10_000
    keep_days: float = 30.0
    compact_every_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("drain_s", "max_blob_bytes", "pool_size", "poll_s", "progress_s", "compact_every_s"):
            value = getattr(self, name)
            if value < 0 or (value == 0 and name != "drain_s"):
                raise ConfigError(f"{PREFIX}{name.upper()}: expected a number above 0, found {value}")
        for name in ("keep_revisions", "keep_days"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{PREFIX}{name.upper()}: expected a number, found {getattr(self, name)}")
        if self.client_grants and self.security.client_ca is None:
            raise ConfigError("client scopes were given without the CA of client certificates; give both")
        if self.security.client_ca is not None and not self.client_grants and not self.security.token_hashes:
            raise ConfigError(
                "nobody could do anything: give the client scopes of certificates, or a token file to make tokens with"
            )


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that the environment asks for. Raises ConfigError naming the variable at fault."""
    environ = os.environ if environ is None else environ

    def read(name: str, parse: Callable[[str], T], default: T) -> T:
        text = environ.get(PREFIX + name, "")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{PREFIX}{name}: expected a number, found {text!r}") from error

    def read_path(name: str) -> Path | None:
        text = environ.get(PREFIX + name, "")
        return Path(text).expanduser() if text else None

    token_file, client_scopes = read_path("TOKEN_FILE"), read_path("CLIENT_SCOPES")
    default = Settings(data_dir=read_path("DATA_DIR") or _default_data_dir(environ))
    return Settings(
        data_dir=default.data_dir,
        database_url=environ.get("DATABASE_URL", ""),
        listen=environ.get(PREFIX + "LISTEN") or default.listen,
        security=Security(
            tls_cert=read_path("TLS_CERT"),
            tls_key=read_path("TLS_KEY"),
            client_ca=read_path("CLIENT_CA"),
            token_hashes=read_token_file(token_file) if token_file else {},
        ),
        client_grants=read_client_grants(client_scopes) if client_scopes else {},
        blobs=environ.get(PREFIX + "BLOBS", ""),
        source_roots=tuple(one for one in environ.get(PREFIX + "SOURCE_ROOTS", "").split(",") if one),
        drain_s=read("DRAIN_S", float, default.drain_s),
        max_blob_bytes=read("MAX_BLOB_BYTES", int, default.max_blob_bytes),
        pool_size=read("POOL_SIZE", int, default.pool_size),
        poll_s=read("POLL_S", float, default.poll_s),
        progress_s=read("PROGRESS_S", float, default.progress_s),
        keep_revisions=read("KEEP_REVISIONS", int, default.keep_revisions),
        keep_days=read("KEEP_DAYS", float, default.keep_days),
        compact_every_s=read("COMPACT_EVERY_S", float, default.compact_every_s),
    )


def _default_data_dir(environ: Mapping[str, str]) -> Path:
    """XDG_DATA_HOME, as the XDG base directory specification defines it."""
    home = environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home else Path("~/.local/share").expanduser()) / "loraplex" / "registry"
