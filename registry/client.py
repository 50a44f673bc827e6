"""The registry as an async Python object: typed values in, typed values out, errors from `registry.errors`.

Every call has a deadline. A call that failed because the registry could not be reached is tried again with jitter:
reads because they change nothing, writes because each carries a request id that makes a repeat harmless. A watch goes
on by itself after a broken connection, from the last revision it handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from adapter.base_model import BaseModelDescription
from adapter.errors import AdapterRefused as FilesRefused
from adapter.manifest import Manifest, manifest_of_adapter
from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from loraplex.registry.v1 import worker_service_pb2 as worker_pb
from loraplex.registry.v1 import worker_service_pb2_grpc as worker_rpcs
from registry import admin_messages, messages
from registry.admin_client import AdminClient
from registry.calls import Calls, new_request_id
from registry.errors import AdapterRefused, RegistryError
from registry.following import follow
from registry.resources import (
    Adapter,
    AdapterVersion,
    Alias,
    AliasChange,
    AliasTarget,
    BaseModel,
    BaseModelParent,
    Lineage,
    LineageDirection,
    LineageKey,
    LineageKind,
    ModuleShape,
    Provenance,
    Status,
    WatchMessage,
    Worker,
)
from registry.signing_client import SigningClient
from registry.transfers import download, upload
from registry.upkeep_client import UpkeepClient
from registry.worker_reports import WorkerReports

# Long enough for a registry that waits for a lock or for Postgres to come back, short enough for a person.
DEADLINE_S = 15.0
# Nobody here knows how large a folder on the registry's side is.
SOURCE_DEADLINE_S = 600.0
# The most that the registry gives at once.
PAGE_SIZE = 1000

OnProgress = Callable[[int, int], None]
"""Told how many bytes of how many are done; after a retry it may be told fewer than before."""


@dataclass(frozen=True, slots=True)
class CreatedBaseModel:
    """Answer of `create_base_model`; `created` is false when it was already there."""

    base_model: BaseModel
    revision: int
    created: bool


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """Answer of `register`; `created` is false when the same digest was already there."""

    version: AdapterVersion
    revision: int
    created: bool


@dataclass(frozen=True, slots=True)
class Promoted:
    """Answer of `promote`: the alias after, what it pointed at before, and whether that is a change."""

    alias: Alias
    before: tuple[AliasTarget, ...]
    revision: int
    changed: bool


@dataclass(frozen=True, slots=True)
class Resolved:
    """Answer of `resolve`: the version that a reference meant at a revision."""

    version: AdapterVersion
    revision: int


class RegistryClient:
    """All of the registry over one channel, which the client closes. Methods raise the classes of `registry.errors`."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline_s: float = DEADLINE_S) -> None:
        self._channel = channel
        self._deadline_s = deadline_s
        self._registry = rpcs.RegistryServiceStub(channel)
        self._workers = worker_rpcs.WorkerServiceStub(channel)
        calls = Calls(deadline_s=deadline_s)
        self._call, self._pages = calls.call, calls.pages
        self._reports = WorkerReports(self._workers, calls)
        # Tokens, the audit log and protected aliases.
        self.admin = AdminClient(self._registry, calls)
        self.upkeep = UpkeepClient(channel, calls)
        self.signing = SigningClient(channel, calls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and the channel."""
        await self._channel.close()

    async def create_base_model(
        self, name: str, description: BaseModelDescription, *, parents: Sequence[BaseModelParent] = ()
    ) -> CreatedBaseModel:
        """Adds a base model, or returns the one already there under the same name and digest."""
        shapes = [ModuleShape(module, *shape) for module, shape in description.modules.items()]
        answer = await self._call(
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

    async def get_base_model(self, name: str) -> BaseModel:
        """With its modules."""
        answer = await self._call(self._registry.GetBaseModel, pb.GetBaseModelRequest(name=name))
        return messages.read_base_model(answer.base_model)

    async def list_base_models(self) -> list[BaseModel]:
        """All, by name, without their modules."""
        pages = self._pages(self._registry.ListBaseModels, pb.ListBaseModelsRequest(page_size=PAGE_SIZE))
        return [messages.read_base_model(one) async for page in pages for one in page.base_models]

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
        answer = await self._call(
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
            deadline_s=self._deadline_s + manifest.size_bytes / 100e6,
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
        answer = await self._call(
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
        answer = await self._call(
            self._registry.FindMissingBlobs, request, deadline_s=self._deadline_s + manifest.size_bytes / 100e6
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

    async def get_adapter(self, name: str) -> Adapter:
        """With its aliases."""
        answer = await self._call(self._registry.GetAdapter, pb.GetAdapterRequest(adapter=name))
        return messages.read_adapter(answer.adapter)

    async def list_adapters(self, *, base_model: str = "", name_prefix: str = "") -> list[Adapter]:
        """All that the caller may see, or those of one base model or with names that begin so, by name."""
        request = pb.ListAdaptersRequest(base_model=base_model, name_prefix=name_prefix, page_size=PAGE_SIZE)
        pages = self._pages(self._registry.ListAdapters, request)
        return [messages.read_adapter(one) async for page in pages for one in page.adapters]

    async def get_version(self, adapter: str, number: int) -> AdapterVersion:
        """One version."""
        request = pb.GetAdapterVersionRequest(adapter=adapter, version=number)
        answer = await self._call(self._registry.GetAdapterVersion, request)
        return messages.read_version(answer.version)

    async def list_versions(self, adapter: str) -> list[AdapterVersion]:
        """All versions of an adapter, newest first."""
        request = pb.ListAdapterVersionsRequest(adapter=adapter, page_size=PAGE_SIZE)
        pages = self._pages(self._registry.ListAdapterVersions, request)
        return [messages.read_version(one) async for page in pages for one in page.versions]

    async def verify(self, adapter: str, number: int) -> tuple[str, ...]:
        """Hashes the stored files again and repeats the check at registration: sentences, none when all is well."""
        version = await self.get_version(adapter, number)
        answer = await self._call(
            self._registry.VerifyAdapterVersion,
            pb.VerifyAdapterVersionRequest(adapter=adapter, version=number),
            # The registry reads every number of the files twice before it answers.
            deadline_s=self._deadline_s + version.size_bytes / 50e6,
        )
        return tuple(answer.problems)

    async def retire(self, adapter: str, number: int, *, force: bool = False, message: str = "") -> AdapterVersion:
        """Withdraws a version; with `force` although aliases point at it."""
        answer = await self._call(
            self._registry.RetireAdapterVersion,
            pb.RetireAdapterVersionRequest(
                adapter=adapter, version=number, force=force, request_id=new_request_id(), message=message
            ),
        )
        return messages.read_version(answer.version)

    async def unretire(self, adapter: str, number: int) -> AdapterVersion:
        """Makes a retired version promotable again."""
        answer = await self._call(
            self._registry.UnretireAdapterVersion,
            pb.UnretireAdapterVersionRequest(adapter=adapter, version=number, request_id=new_request_id()),
        )
        return messages.read_version(answer.version)

    async def promote(
        self,
        adapter: str,
        number: int,
        *,
        alias: str = "",
        canary_weight: int = 0,
        expected_version: int | None = None,
        validate_only: bool = False,
        message: str = "",
    ) -> Promoted:
        """Points an alias at a version, or `canary_weight` hundredths of a percent of it.

        `expected_version` is what it must point at now, 0 for nothing.
        """
        answer = await self._call(
            self._registry.PromoteAdapterVersion,
            pb.PromoteAdapterVersionRequest(
                adapter=adapter,
                alias=alias,
                version=number,
                canary_weight=canary_weight,
                expected_version=expected_version,
                validate_only=validate_only,
                request_id=new_request_id(),
                message=message,
            ),
        )
        return Promoted(
            alias=messages.read_alias(answer.alias),
            before=messages.read_targets(answer.before),
            revision=answer.revision,
            changed=answer.changed,
        )

    async def rollback(
        self, adapter: str, *, alias: str = "", expected_version: int | None = None, message: str = ""
    ) -> Promoted:
        """Points an alias back at what it pointed at before; `expected_version` is what it must point at now."""
        answer = await self._call(
            self._registry.RollbackAlias,
            pb.RollbackAliasRequest(
                adapter=adapter,
                alias=alias,
                expected_version=expected_version,
                request_id=new_request_id(),
                message=message,
            ),
        )
        return Promoted(messages.read_alias(answer.alias), messages.read_targets(answer.before), answer.revision, True)

    async def list_alias_changes(self, adapter: str, *, alias: str = "") -> list[AliasChange]:
        """An alias's history, newest first."""
        request = pb.ListAliasChangesRequest(adapter=adapter, alias=alias, page_size=PAGE_SIZE)
        pages = self._pages(self._registry.ListAliasChanges, request)
        return [messages.read_alias_change(one) async for page in pages for one in page.changes]

    async def resolve(self, reference: str, *, base_model_digest: str = "", request_key: str = "") -> Resolved:
        """What a reference means now; with a base model's digest, refused when it is for another one."""
        answer = await self._call(
            self._registry.ResolveAdapter,
            pb.ResolveAdapterRequest(reference=reference, base_model_digest=base_model_digest, request_key=request_key),
        )
        return Resolved(messages.read_version(answer.version), answer.revision)

    async def lineage(
        self, start: LineageKey, direction: LineageDirection = LineageDirection.ANCESTORS, *, max_depth: int = 0
    ) -> Lineage:
        """What a version or a base model was made from, or what was made from it; depth 0 means the most."""
        is_version = start.kind is LineageKind.ADAPTER_VERSION
        request = pb.GetLineageRequest(
            adapter_version=start.id if is_version else None,
            base_model=None if is_version else start.id,
            direction=admin_messages.write_direction(direction),
            max_depth=max_depth,
        )
        return admin_messages.read_lineage(await self._call(self._registry.GetLineage, request))

    async def status(self) -> Status:
        """The store's identity and revision."""
        answer = await self._call(self._registry.GetStatus, pb.GetStatusRequest())
        return Status(answer.store_id, answer.revision, answer.compacted_revision, answer.server_version)

    async def report_worker(self, worker: Worker, *, lease_s: float | None = None) -> int:
        """Says what a worker runs, of which what has not changed is not sent again; returns the registry's revision."""
        return await self._reports.report(worker, lease_s=lease_s)

    async def list_workers(self, *, base_model: str = "", adapter: str = "") -> list[Worker]:
        """All workers, or those of one base model, by id; the lost ones too. `adapter` keeps what they say of it."""
        request = worker_pb.ListWorkersRequest(base_model=base_model, adapter=adapter, page_size=PAGE_SIZE)
        pages = self._pages(self._workers.ListWorkers, request)
        return [messages.read_worker(one) async for page in pages for one in page.workers]

    def watch(
        self,
        *,
        after_revision: int | None = None,
        store_id: str = "",
        base_model: str = "",
        on_connection: Callable[[RegistryError | None], None] | None = None,
    ) -> AsyncGenerator[WatchMessage]:
        """What exists and what changes, for ever; see `registry.following`."""
        return follow(
            self._channel,
            after_revision=after_revision,
            store_id=store_id,
            base_model=base_model,
            on_connection=on_connection,
        )
