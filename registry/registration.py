"""How an uploaded artifact becomes a version: the one place where files, format and database meet."""

from __future__ import annotations

import asyncio

from adapter.manifest import Manifest
from registry.artifacts import Artifact, check_artifact
from registry.blobs import BlobStore
from registry.resources import Provenance
from registry.sources import Sources
from registry.store import Store
from registry.store.database import Call
from registry.store.versions import NewVersion, RegisteredVersion

# A header may take 64 MiB while it is parsed; a burst of registrations must not add that up.
MAX_CHECKS = 2


class Registration:
    """Registers versions."""

    def __init__(self, store: Store, blobs: BlobStore, sources: Sources) -> None:
        self._store = store
        self._blobs = blobs
        self._sources = sources
        self._checks = asyncio.Semaphore(MAX_CHECKS)

    async def fetch(self, source: str) -> Manifest:
        """Stores the files of a folder that the registry may read itself; see `Sources.fetch` for what it raises."""
        manifest = await self._sources.fetch(source, self._blobs)
        await self._store.blob_uses.note(file.digest for file in manifest.files)
        return manifest

    async def register(
        self,
        call: Call,
        *,
        adapter: str,
        base_model: str,
        manifest: Manifest,
        parent: str = "",
        provenance: Provenance,
        dry_run: bool = False,
    ) -> RegisteredVersion:
        """Checks the artifact and commits it, or returns the version with the same digest; see `Versions.register`.

        Raises what `check_artifact` and `Versions.register` raise; then nothing was committed.
        """
        shapes = await self._store.base_models.shapes(base_model)
        kept = await self._store.versions.find(adapter, base_model, manifest.digest)
        if kept is not None:
            artifact = Artifact(kept.rank, kept.alpha, kept.target_modules, kept.features)
        else:
            # From here on no collection removes the files; when the version is there it needs them.
            await self._store.blob_uses.note(file.digest for file in manifest.files)
            async with self._checks:
                artifact = await check_artifact(self._blobs, manifest, shapes)
        new = NewVersion(
            adapter=adapter,
            base_model=base_model,
            manifest=manifest,
            rank=artifact.rank,
            alpha=artifact.alpha,
            target_modules=artifact.target_modules,
            features=artifact.features,
            parent=parent,
            provenance=provenance,
        )
        return await self._store.versions.register(call, new, dry_run=dry_run)
