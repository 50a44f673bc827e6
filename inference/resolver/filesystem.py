"""Adapters named on the command line, NAME=FOLDER: a worker that needs no registry. Knows only the local disk."""

from __future__ import annotations

from pathlib import Path

from adapter.manifest import manifest_of_adapter
from adapter.names import DEFAULT_ALIAS, Reference, check_name
from inference.errors import AdapterNotFound, InvalidRequest
from inference.resolver import Version


class FilesystemResolver:
    """Serves folders as they were when the worker started; a changed file no longer has its digest and is refused."""

    def __init__(self, adapters: tuple[str, ...], *, base_model_digest: str) -> None:
        """Hashes every folder of `NAME=FOLDER`. Raises InvalidRequest and what the adapter package raises."""
        self._folders: dict[str, Path] = {}
        self.versions: dict[str, Version] = {}
        for item in adapters:
            name, separator, folder = item.partition("=")
            if not separator or not folder:
                raise InvalidRequest(f"adapter: expected NAME=FOLDER, found {item!r}", field="adapters")
            check_name(name)
            manifest = manifest_of_adapter(Path(folder))
            version = Version(name, 0, manifest.digest, base_model_digest, manifest)
            self.versions[name] = version
            self._folders[version.digest] = Path(folder)

    async def resolve(self, reference: Reference, *, request_key: str = "") -> Version:  # noqa: ARG002 -- no splits here
        """As Resolver.resolve; only a name or a digest can be found here."""
        found = next(
            (
                version
                for name, version in self.versions.items()
                if reference.digest == version.digest
                or (reference.name == name and reference.alias == DEFAULT_ALIAS and reference.number is None)
            ),
            None,
        )
        if found is None:
            known = ", ".join(self.versions) or "none"
            raise AdapterNotFound(f"no adapter {reference}; this worker was started with: {known}")
        return found

    async def fetch(self, version: Version) -> Path:
        """As Resolver.fetch."""
        return self._folders[version.digest]

    def forget(self, version: Version) -> None:
        """As Resolver.forget; the folder is the user's, so nothing is dropped."""
