"""Several resolvers as one: asked in order, and the first that has the adapter answers.

Only AdapterNotFound goes on to the next. A resolver that cannot be reached, or finds something damaged, ends the search
with its error: going on could serve another adapter of the same name. What any of them returns is checked here, because
some are other people's code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from adapter.names import Reference, check_name
from inference.errors import AdapterLoadFailed, AdapterNotFound, InferenceError, SourceUnavailable, WrongBaseModel
from inference.resolver import KnownVersion, Resolver, Version
from rpc.errors import DomainError

log = logging.getLogger(__name__)


class ResolverChain:
    """The resolvers of a worker by name, in the order in which they are asked; none is a worker of the base model."""

    def __init__(self, links: Mapping[str, Resolver], *, base_model_digest: str) -> None:
        self._links = dict(links)
        self._base_model_digest = base_model_digest

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:
        """As Resolver.resolve."""
        refusals: list[AdapterNotFound] = []
        for name, resolver in self._links.items():
            try:
                found = await resolver.resolve(reference, request_key=request_key)
            except AdapterNotFound as error:
                refusals.append(error)
            except DomainError:
                raise
            except Exception as error:
                raise _failed(name, error) from error
            else:
                return self._checked(name, found)
        if len(refusals) == 1:
            raise refusals[0]
        asked = ", ".join(self._links) or "no place, because none was given"
        reasons = tuple(str(error) for error in refusals)
        raise AdapterNotFound(f"no adapter {reference}; asked: {asked}", reasons=reasons)

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch, of the resolver that found the version."""
        try:
            return await self._links[version.source].fetch(version)
        except DomainError:
            raise
        except Exception as error:
            raise _failed(version.source, error) from error

    def forget(self, version: Version) -> None:
        """As Resolver.forget."""
        self._links[version.source].forget(version)

    def known(self) -> Iterable[KnownVersion]:
        """As Resolver.known, of all."""
        return [one for resolver in self._links.values() for one in resolver.known()]

    def _checked(self, name: str, version: Version) -> Version:
        if version.manifest.digest != version.digest:
            raise AdapterLoadFailed(
                f"{version.name}: the resolver {name} says {version.digest} of the manifest {version.manifest.digest}"
            )
        if version.base_model_digest != self._base_model_digest:
            raise WrongBaseModel(
                f"{version.name} is for the base model {version.base_model_digest}; "
                f"this worker runs {self._base_model_digest}",
                metadata={"expected": self._base_model_digest, "actual": version.base_model_digest},
            )
        check_name(version.adapter)
        return replace(version, source=name)


def _failed(name: str, error: Exception) -> InferenceError:
    log.error("the resolver %s failed", name, exc_info=error)
    return SourceUnavailable(f"the resolver {name} failed: {type(error).__name__}: {error}")
