"""Resolvers of other packages, by entry points of the group `loraplex.resolvers`. A package that is only installed does
nothing: the operator names the ones to use.

    [project.entry-points."loraplex.resolvers"]
    vault = "my_package:open_vault"           def open_vault(context: ResolverContext) -> Resolver: ...
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from adapter.names import check_name
from inference.errors import InferenceError, InvalidRequest
from inference.resolver import Resolver

GROUP = "loraplex.resolvers"


@dataclass(frozen=True, slots=True)
class ResolverContext:
    """What a worker tells a resolver that it makes. The resolver says `base_model_digest` of each of its versions."""

    base_model_name: str
    base_model_digest: str
    folder: Path
    """Its own, for files; it is made before, and what is in it outlives the process."""
    argument: str
    """What the operator wrote after the name; empty when nothing."""


def open_plugins(
    items: Iterable[str], *, base_model_name: str, base_model_digest: str, folder: Path
) -> dict[str, Resolver]:
    """The resolvers of NAME or NAME=ARGUMENT, in that order. Raises InvalidRequest."""
    found: dict[str, Resolver] = {}
    for item in items:
        name, _, argument = item.partition("=")
        check_name(name, what="resolvers")
        if name in found:
            raise _invalid(f"expected each name once, found {name} again")
        (folder / name).mkdir(parents=True, exist_ok=True)
        found[name] = _open(name, ResolverContext(base_model_name, base_model_digest, folder / name, argument))
    return found


def _open(name: str, context: ResolverContext) -> Resolver:
    installed = entry_points(group=GROUP)
    entries = [entry for entry in installed if entry.name == name]
    if len(entries) != 1:
        known = ", ".join(sorted(installed.names)) or "none"
        raise _invalid(f"expected one of the installed resolvers ({known}), found {len(entries)} of the name {name}")
    try:
        return cast(Resolver, entries[0].load()(context))
    except InferenceError:
        raise
    except Exception as error:  # of another package
        raise _invalid(f"{name} ({entries[0].value}) cannot be opened: {type(error).__name__}: {error}") from error


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"resolvers: {message}", field="resolvers")
