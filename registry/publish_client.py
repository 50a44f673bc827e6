"""The part of the client that brings things to the registry: base models, files and versions; and fetches files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from adapter.base_model import BaseModelDescription
from adapter.errors import AdapterRefused as FilesRefused
from adapter.manifest import Manifest, manifest_of_adapter
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from registry import messages
from registry.answers import CreatedBaseModel, RegisteredVersion
from registry.calls import Calls, new_request_id
from registry.errors import AdapterRefused
from registry.resources import BaseModelParent, ModuleShape, Provenance
from registry.transfers import download, upload

# Nobody here knows how large a folder on the registry's side is.
SOURCE_DEADLINE_S = 600.0

OnProgress = Callable[[int, int], None]
"""Told how many bytes of how many are done; after a retry it may be told fewer than before."""


class PublishClient:
    """Base models, files and versions over one stub."""

    def __init__(self, registry: rpcs.RegistryServiceAsyncStub, calls: Calls) -> None:
        self._registry = registry
        self._calls = calls

    async def create_base_model(
        self, name: str, description: BaseModelDescription, *, parents: Sequence[BaseModelParent] = ()
    ) -> CreatedBaseModel:
        """Adds a base model, or returns the one already there under the same name and digest."""
        shapes = [ModuleShape(module, *shape) for module, shape in description.modules.items()]
        answer = await self._calls.call(
            self._registry.CreateBaseModel,
            pb.CreateBaseModelRequest(
                name=name,
                manifest=messages.write_manifest(description.manifest),
                architecture=description.architecture,
                modules=messages.write_modules(shapes),
                parents=messages.write_parents(parents),
                request_id=new_request_id(),
            ),
        )
        return CreatedBaseModel(messages.read_base_model(answer.base_model), answer.revision, answer.created)

    async def register(
        self,
        folder: Path,
        *,
        adapter: str,
        base_model: str,
        parent: str = "",
        provenance: Provenance | None = None,
        validate_only: bool = False,
        keep_rejected: bool = False,
        on_progress: OnProgress | None = None,
    ) -> RegisteredVersion:
        """Uploads a PEFT folder, skipping files that are already there, and registers it as the next version.

        `keep_rejected` keeps a refused one as a rejected version, which the metadata of AdapterRefused names.
        """
        try:
            manifest = await asyncio.to_thread(manifest_of_adapter, folder)
        except FilesRefused as error:
            raise AdapterRefused(str(error), reasons=error.reasons) from error
        missing = await self.find_missing_blobs(manifest)
        done = sum(file.size_bytes for file in manifest.files if file.digest not in missing)
        for file in manifest.files:
            if file.digest not in missing:
                continue

            def on_file_progress(sent: int, before: int = done) -> None:
                if on_progress is not None:
                    on_progress(before + sent, manifest.size_bytes)

            await self.upload_blob(
                folder / file.path, digest=file.digest, size_bytes=file.size_bytes, on_bytes=on_file_progress
            )
            done += file.size_bytes
        answer = await self._calls.call(
            self._registry.RegisterAdapterVersion,
            pb.RegisterAdapterVersionRequest(
                adapter=adapter,
                base_model=base_model,
                manifest=messages.write_manifest(manifest),
                parent=parent,
                provenance=messages.write_provenance(provenance or Provenance()),
                request_id=new_request_id(),
                validate_only=validate_only,
                keep_rejected=keep_rejected,
            ),
            # The registry reads every number of the file before it answers.
            deadline_s=self._calls.deadline_s + manifest.size_bytes / 100e6,
        )
        return RegisteredVersion(messages.read_version(answer.version), answer.revision, answer.created)

    async def register_from(
        self,
        source: str,
        *,
        adapter: str,
        base_model: str,
        parent: str = "",
        provenance: Provenance | None = None,
        validate_only: bool = False,
        keep_rejected: bool = False,
    ) -> RegisteredVersion:
        """Registers a PEFT folder that the registry reads itself: a path or URL on its side."""
        answer = await self._calls.call(
            self._registry.RegisterAdapterVersion,
            pb.RegisterAdapterVersionRequest(
                adapter=adapter,
                base_model=base_model,
                source=source,
                parent=parent,
                provenance=messages.write_provenance(provenance or Provenance()),
                request_id=new_request_id(),
                validate_only=validate_only,
                keep_rejected=keep_rejected,
            ),
            deadline_s=SOURCE_DEADLINE_S,
        )
        return RegisteredVersion(messages.read_version(answer.version), answer.revision, answer.created)

    async def find_missing_blobs(self, manifest: Manifest) -> frozenset[str]:
        """Digests of the manifest's files that the registry does not have."""
        blobs = [pb.BlobHeader(digest=file.digest, size_bytes=file.size_bytes) for file in manifest.files]
        request = pb.FindMissingBlobsRequest(blobs=blobs)
        # The registry reads what it has to see that it is intact.
        answer = await self._calls.call(
            self._registry.FindMissingBlobs, request, deadline_s=self._calls.deadline_s + manifest.size_bytes / 100e6
        )
        return frozenset(answer.digests)

    async def upload_blob(
        self, path: Path, *, digest: str, size_bytes: int, on_bytes: Callable[[int], None] | None = None
    ) -> bool:
        """Stores a file; false when the registry had it. Goes on where a broken connection left off.

        `on_bytes` is told how many are there.
        """
        return await upload(self._registry, path, digest=digest, size_bytes=size_bytes, on_bytes=on_bytes)

    async def read_blob(
        self,
        digest: str,
        path: Path,
        *,
        size_bytes: int | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Writes a stored file to a path once its digest is verified; goes on where a broken connection left off.

        No more than `size_bytes` are accepted, when given.

        Raises BlobCorrupted when the bytes are others than the digest's, and OSError when they cannot be written.
        """
        await download(self._registry, digest, path, size_bytes=size_bytes, on_bytes=on_bytes)
