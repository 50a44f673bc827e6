"""Who may connect and call: TLS, client certificates, bearer tokens. It knows names of callers, not what they may do.

A token file has one `NAME SHA256` line per token, the hash in hex, so that a leaked file opens nothing:

    printf %s "$SECRET" | sha256sum

Without TLS client certificates and without tokens a server is open, and therefore bound to loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from rpc.errors import DomainError

ANONYMOUS = "anonymous"
# Who calls, set for the length of one call by the server's interceptor.
_actor: ContextVar[str] = ContextVar("actor", default=ANONYMOUS)


class Unauthenticated(DomainError):
    """The call carries no valid token; send `authorization: Bearer SECRET`."""

    code, reason = "UNAUTHENTICATED", "UNAUTHENTICATED"


class ConfigError(DomainError):
    """A setting cannot be used."""

    code, reason = "INVALID_ARGUMENT", "BAD_SETTING"


@dataclass(frozen=True, slots=True)
class Security:
    """What a server asks of its callers. `token_hashes` maps a caller's name to its token's SHA-256 in hex."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    token_hashes: Mapping[str, str] = field(default_factory=dict)

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS credentials, or None for plain text. Raises ConfigError when the files do not go together."""
        if self.tls_cert is None and self.tls_key is None:
            if self.client_ca is not None:
                raise ConfigError("a client CA was given without a TLS certificate and key; give all three")
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ConfigError("a TLS certificate and its key belong together; only one of them was given")
        ca = _read(self.client_ca) if self.client_ca else None
        return grpc.ssl_server_credentials(
            [(_read(self.tls_key), _read(self.tls_cert))],
            root_certificates=ca,
            require_client_auth=ca is not None,
        )

    def check_listen(self, listen: str) -> None:
        """Raises ConfigError when `listen` is reachable from outside and callers need prove nothing."""
        if not self.token_hashes and self.client_ca is None and not is_loopback(listen):
            raise ConfigError(
                f"refusing to listen on {listen} with neither tokens nor client certificates: "
                "give a token file or a client CA, or listen on 127.0.0.1"
            )

    def authenticate(self, context: grpc.aio.ServicerContext[object, object]) -> str:
        """The caller's name. Raises Unauthenticated."""
        if self.token_hashes:
            metadata = dict(context.invocation_metadata() or ())
            scheme, _, secret = str(metadata.get("authorization", "")).partition(" ")
            given = hashlib.sha256(secret.strip().encode()).hexdigest()
            # Every token is compared, so that the time taken says nothing about which one was close.
            names = [name for name, known in self.token_hashes.items() if hmac.compare_digest(given, known)]
            if scheme.lower() == "bearer" and names:
                return names[0]
            if self.client_ca is None:
                raise Unauthenticated
        identities = context.peer_identities()
        if identities:
            return next(iter(identities)).decode(errors="replace")
        return ANONYMOUS


@dataclass(frozen=True, slots=True)
class ClientSecurity:
    """What a client shows: a CA to check the server by, its own certificate, a bearer token."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token: str = ""

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials, or None for plain text."""
        if self.ca is None:
            if self.cert or self.key:
                raise ConfigError("a client certificate was given without the CA of the server; give both")
            return None
        return grpc.ssl_channel_credentials(
            _read(self.ca), _read(self.key) if self.key else None, _read(self.cert) if self.cert else None
        )


def read_token_file(path: Path) -> dict[str, str]:
    """Names to hashes. Raises ConfigError with the line at fault."""
    tokens: dict[str, str] = {}
    for number, line in enumerate(_read(path).decode(errors="replace").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, digest = line.strip().partition(" ")
        digest = digest.strip().lower()
        if len(digest) != hashlib.sha256().digest_size * 2 or set(digest) - set("0123456789abcdef"):
            raise ConfigError(f"{path}, line {number}: expected `NAME SHA256-IN-HEX`, found a hash of another form")
        tokens[name] = digest
    if not tokens:
        raise ConfigError(f"{path}: expected at least one `NAME SHA256-IN-HEX` line, found none")
    return tokens


def read_secret(path: Path) -> str:
    """The bearer token that a file holds. Raises ConfigError when it is empty or cannot be read."""
    secret = _read(path).decode(errors="replace").strip()
    if not secret:
        raise ConfigError(f"{path}: expected a token, found an empty file")
    return secret


def actor() -> str:
    """Who calls: a token's name, a certificate's subject, or `anonymous`. Only within a call."""
    return _actor.get()


def set_actor(name: str) -> None:
    """Sets who calls for the rest of the call."""
    _actor.set(name)


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach the address."""
    if listen.startswith(("unix:", "unix-abstract:")):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
