"""How an uploaded artifact becomes a version: the one place where files, format and database meet."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from adapter.manifest import Manifest
from registry.answers import RegisteredVersion
from registry.artifacts import check_artifact
from registry.blobs import BlobStore
from registry.errors import AdapterRefused
from registry.resources import Provenance, VersionState
from registry.sources import Sources
from registry.store import Store
from registry.store.database import Call
from registry.store.versions import NewVersion

# A header may take 64 MiB while it is parsed; a burst of registrations must not add that up.
MAX_CHECKS = 2
# What is kept of the reasons of a rejected version.
MAX_REASONS, MAX_REASON_CHARS = 100, 400


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
        keep_rejected: bool = False,
    ) -> RegisteredVersion:
        """Checks the artifact and commits it, or returns the version with the same digest; see `Versions.register`.

        Raises what `check_artifact` and `Versions.register` raise. Then nothing was committed, but with `keep_rejected`
        a rejected version, which the metadata of AdapterRefused names.
        """
        shapes = await self._store.base_models.shapes(base_model)
        kept = await self._store.versions.find(adapter, base_model, manifest.digest)
        new = NewVersion(adapter, base_model, manifest, parent=parent, provenance=provenance)
        if kept is None or kept.state == VersionState.REJECTED:
            # From here on no collection removes the files; when the version is there it needs them.
            await self._store.blob_uses.note(file.digest for file in manifest.files)
            try:
                async with self._checks:
                    artifact = await check_artifact(self._blobs, manifest, shapes)
            except AdapterRefused as refused:
                if not keep_rejected or dry_run:
                    raise
                # Without a reason it would be an ordinary version.
                reasons = tuple(one[:MAX_REASON_CHARS] for one in refused.reasons[:MAX_REASONS]) or (str(refused),)
                rejected = await self._store.versions.register(call, replace(new, rejection_reasons=reasons))
                name = f"{adapter}:{rejected.version.number}"
                raise AdapterRefused(
                    f"{refused}; kept as {name}, rejected", reasons=refused.reasons, metadata={"version": name}
                ) from refused
            new = replace(
                new,
                rank=artifact.rank,
                alpha=artifact.alpha,
                target_modules=artifact.target_modules,
                features=artifact.features,
            )
        return await self._store.versions.register(call, new, dry_run=dry_run)
