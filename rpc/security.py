"""Who may connect and call: TLS, client certificates, bearer tokens. It knows names of callers, not what they may do;
a server that tells its callers' rights apart brings a `Gate` of its own.

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
from typing import Protocol

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
class Shown:
    """What a caller shows of itself: a bearer token's secret, and the names on its verified client certificate."""

    secret: str = ""
    identities: tuple[str, ...] = ()


class Gate(Protocol):
    """Decides about each call before its servicer sees it."""

    async def admit(self, method: str, shown: Shown, request: object | None) -> str:
        """The caller's name. `method` is the path of the RPC; `request` is None where requests are streamed.

        Raises Unauthenticated, or another DomainError for a caller who may not do this.
        """


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
        if not self.is_configured and not is_loopback(listen):
            raise ConfigError(
                f"refusing to listen on {listen} with neither tokens nor client certificates: "
                "give a token file or a client CA, or listen on 127.0.0.1"
            )

    @property
    def is_configured(self) -> bool:
        """Whether callers have to prove who they are."""
        return bool(self.token_hashes) or self.client_ca is not None

    def find_token(self, secret: str) -> str | None:
        """The name of the token in the file that has this secret."""
        given = hash_secret(secret)
        # Every token is compared, so that the time taken says nothing about which one was close.
        names = [name for name, known in self.token_hashes.items() if hmac.compare_digest(given, known)]
        return names[0] if names else None

    async def admit(self, method: str, shown: Shown, request: object | None) -> str:  # noqa: ARG002 - as in Gate
        """The gate of a server whose callers may do everything once they are known. Raises Unauthenticated."""
        name = self.find_token(shown.secret)
        if name is not None:
            return name
        if self.token_hashes and self.client_ca is None:
            raise Unauthenticated
        return shown.identities[0] if shown.identities else ANONYMOUS


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


def read_shown(context: grpc.aio.ServicerContext[object, object]) -> Shown:
    """What the caller of a call in progress shows."""
    metadata = dict(context.invocation_metadata() or ())
    scheme, _, secret = str(metadata.get("authorization", "")).partition(" ")
    identities = context.peer_identities() or ()
    return Shown(
        secret=secret.strip() if scheme.lower() == "bearer" else "",
        identities=tuple(one.decode(errors="replace") for one in identities),
    )


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. A secret is 256 random bits, so nothing slower is needed to keep it from being guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


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
