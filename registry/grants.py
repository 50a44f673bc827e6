"""What a caller may do: scopes, and limits to adapters and aliases. It knows no caller, no RPC and no database.

    read       look at everything but the audit log and tokens, and fetch the files of versions
    register   add base models and versions, and upload files
    promote    move aliases that are not protected, retire versions and bring them back
    watch      follow the event stream
    report     say what a worker runs
    admin      all of these, protected aliases, tokens and the audit log

A grant may be limited to some adapters: then it covers nothing that concerns others, and lists and watches leave them
out. It may name aliases: then these are the ones that it may move, and a protected alias is moved only by a grant that
names it, or by an admin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from registry.errors import PermissionDenied
from registry.resources import Scope


@dataclass(frozen=True, slots=True)
class Grant:
    """Scopes with their limits; the default allows nothing, and no adapters or no aliases means no such limit."""

    scopes: frozenset[Scope] = frozenset()
    adapters: frozenset[str] = frozenset()
    aliases: frozenset[str] = frozenset()

    @property
    def is_admin(self) -> bool:
        """Whether it covers everything."""
        return Scope.ADMIN in self.scopes

    def check_scope(self, scope: Scope) -> None:
        """Raises PermissionDenied unless the scope is granted."""
        if not self.is_admin and scope not in self.scopes:
            raise PermissionDenied(
                f"expected the scope {scope}, found {_listed(self.scopes) or 'none'}", metadata={"scope": scope.value}
            )

    def check_adapter(self, adapter: str) -> None:
        """Raises PermissionDenied when the grant is limited to other adapters."""
        if self.adapters and adapter not in self.adapters:
            raise PermissionDenied(
                f"{adapter!r} is not among the adapters that these rights are limited to: {_listed(self.adapters)}",
                metadata={"adapter": adapter},
            )

    def check_unlimited(self) -> None:
        """Raises PermissionDenied when the grant is limited to some adapters, for what concerns all of them."""
        if self.adapters:
            raise PermissionDenied(
                f"this concerns every adapter, and these rights are limited to {_listed(self.adapters)}"
            )

    def check_move(self, adapter: str, alias: str, *, protected: bool) -> None:
        """Raises PermissionDenied unless the alias may be moved."""
        self.check_adapter(adapter)
        if self.is_admin:
            return
        where = f"{adapter}@{alias}"
        if self.aliases and alias not in self.aliases:
            raise PermissionDenied(
                f"{where} is not among the aliases that these rights are limited to: {_listed(self.aliases)}",
                metadata={"alias": where},
            )
        if protected and not (Scope.PROMOTE in self.scopes and alias in self.aliases):
            raise PermissionDenied(
                f"{where} is protected: only a token that names the alias {alias!r} may move it, or an admin",
                metadata={"alias": where},
            )


EVERYTHING = Grant(frozenset({Scope.ADMIN}))


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
