"""The file that says what the holders of client certificates may do. A line is the certificate's subject alternative
name, or its common name when it has none; scopes; and limits like those of a token:

    worker-1.example  read,watch,report
    ci.example        read,register,promote  adapters=sql,pirate  aliases=staging

A certificate that has no line may connect and do nothing.
"""

from __future__ import annotations

from pathlib import Path

from registry.grants import Grant
from registry.resources import Scope
from rpc.security import ConfigError


def read_client_grants(path: Path) -> dict[str, Grant]:
    """Certificate subjects and what they may do. Raises ConfigError with the line at fault."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    grants: dict[str, Grant] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            grants[words[0]] = _read_grant(words[1:])
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: expected `SUBJECT SCOPE,… [adapters=NAME,…] [aliases=NAME,…]`, found {error}"
            ) from error
    if not grants:
        raise ConfigError(f"{path}: expected at least one `SUBJECT SCOPE,…` line, found none")
    return grants


def _read_grant(words: list[str]) -> Grant:
    """Raises ValueError."""
    if not words:
        raise ValueError("no scopes")
    limits: dict[str, frozenset[str]] = {}
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name not in ("adapters", "aliases") or not value or name in limits:
            raise ValueError(repr(word))
        limits[name] = frozenset(value.split(","))
    return Grant(frozenset(Scope(one) for one in words[0].split(",")), **limits)
