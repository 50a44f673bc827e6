"""RegistryService: protobuf in, protobuf out. It translates and delegates; what holds is decided behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from importlib.metadata import version as package_version
from typing import Any, NoReturn

from adapter.base_model import config_digest, tokenizer_digest, weights_digest
from adapter.manifest import MAX_FILES, Manifest
from adapter.splits import FULL_WEIGHT
from loraplex.registry.v1 import registry_service_pb2 as pb
from registry import admin_messages, messages
from registry.access import grant
from registry.admin_service import AdminService, make_call
from registry.answers import MovedAlias
from registry.blobs import CHUNK_BYTES, BlobStore
from registry.errors import InvalidManifest, InvalidRequest, NotImplementedYet, PermissionDenied, RegistryError
from registry.registration import Registration
from registry.requests import (
    MAX_PROVENANCE_BYTES,
    check_alias,
    check_digest,
    check_modules,
    check_name,
    check_parents,
    check_reference,
    check_text,
    check_version_name,
    read_page,
)
from registry.resources import DEFAULT_ALIAS, BaseModel, LineageKey, LineageKind
from registry.store import Store
from registry.store.lineage import MAX_DEPTH
from registry.verification import find_problems

# Chunks of a refused upload that are read and dropped, and how long they may take to come.
MAX_DISCARDED, DISCARD_S = 8, 0.5
# mypy-protobuf's own context type is private to each stub.
Context = Any


class RegistryService(AdminService):
    """Base models, blobs, adapters, versions and aliases, beside what it inherits."""

    def __init__(self, store: Store, blobs: BlobStore, registration: Registration) -> None:
        super().__init__(store)
        self._blobs = blobs
        self._registration = registration
        self._release = package_version("loraplex")  # reads a file

    async def CreateBaseModel(self, request: pb.CreateBaseModelRequest, context: Context) -> pb.CreateBaseModelResponse:
        manifest = _check_base_manifest(messages.read_manifest(request.manifest))
        if not request.architecture:
            raise InvalidRequest(
                "architecture: expected a name such as LlamaForCausalLM, found none", field="architecture"
            )
        base_model = BaseModel(
            name=check_name(request.name, "name"),
            digest=manifest.digest,
            config_digest=config_digest(manifest),
            weights_digest=weights_digest(manifest),
            tokenizer_digest=tokenizer_digest(manifest),
            manifest=manifest,
            architecture=check_text(request.architecture, "architecture"),
            modules=check_modules(messages.read_modules(request.modules)),
            parents=check_parents(messages.read_parents(request.parents)),
        )
        answer = await self._store.base_models.create(make_call("CreateBaseModel", request), base_model)
        return pb.CreateBaseModelResponse(
            base_model=messages.write_base_model(answer.base_model), revision=answer.revision, created=answer.created
        )

    async def GetBaseModel(self, request: pb.GetBaseModelRequest, context: Context) -> pb.GetBaseModelResponse:
        found = await self._store.base_models.get(request.name)
        return pb.GetBaseModelResponse(base_model=messages.write_base_model(found))

    async def ListBaseModels(self, request: pb.ListBaseModelsRequest, context: Context) -> pb.ListBaseModelsResponse:
        page = await self._store.base_models.list(read_page(request))
        return pb.ListBaseModelsResponse(
            base_models=[messages.write_base_model(one) for one in page.items], next_page_token=page.next_token
        )

    async def FindMissingBlobs(
        self, request: pb.FindMissingBlobsRequest, context: Context
    ) -> pb.FindMissingBlobsResponse:
        if len(request.blobs) > MAX_FILES:
            raise InvalidRequest(f"blobs: expected at most {MAX_FILES}, found {len(request.blobs)}", field="blobs")
        await self._store.blob_uses.note(check_digest(blob.digest) for blob in request.blobs)
        missing = await self._blobs.missing((blob.digest, blob.size_bytes) for blob in request.blobs)
        received = {digest: await self._blobs.received(digest) for digest in missing}
        return pb.FindMissingBlobsResponse(
            digests=missing,
            partial=[pb.PartialBlob(digest=one, received_bytes=count) for one, count in received.items() if count],
        )

    async def UploadBlob(
        self, request_iterator: AsyncIterator[pb.UploadBlobRequest], context: Context
    ) -> pb.UploadBlobResponse:
        parts = aiter(request_iterator)
        first = await anext(parts, pb.UploadBlobRequest())
        if first.WhichOneof("part") != "header":
            raise InvalidRequest("expected the header in the first message, found none", field="header")
        digest = first.header.digest
        try:
            await self._store.blob_uses.note([check_digest(digest)])
            stored = await self._blobs.receive(
                digest, first.header.size_bytes, _chunks(parts), offset=first.header.offset_bytes
            )
        except RegistryError:
            await _discard(parts)
            raise
        await self._store.blob_uses.note([digest])  # the upload may have taken longer than any grace
        return pb.UploadBlobResponse(digest=digest, existed=not stored)

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Context) -> AsyncIterator[pb.ReadBlobResponse]:
        adapters = grant().adapters
        if adapters and not await self._store.blob_uses.is_of(check_digest(request.digest), adapters):
            raise PermissionDenied(f"no version of the adapters that these rights are limited to has {request.digest}")
        async for chunk in self._blobs.read(request.digest, offset=request.offset_bytes):
            yield pb.ReadBlobResponse(chunk=chunk)

    async def RegisterAdapterVersion(
        self, request: pb.RegisterAdapterVersionRequest, context: Context
    ) -> pb.RegisterAdapterVersionResponse:
        size = request.provenance.ByteSize()
        if size > MAX_PROVENANCE_BYTES:
            raise InvalidRequest(
                f"provenance: expected at most {MAX_PROVENANCE_BYTES} bytes, found {size}", field="provenance"
            )
        adapter, base_model = check_name(request.adapter, "adapter"), check_name(request.base_model, "base_model")
        answer = await self._registration.register(
            make_call("RegisterAdapterVersion", request),
            adapter=adapter,
            base_model=base_model,
            manifest=await self._manifest(request),
            parent=check_version_name(request.parent, "parent"),
            provenance=messages.read_provenance(request.provenance),
            dry_run=request.validate_only,
            keep_rejected=request.keep_rejected,
        )
        return pb.RegisterAdapterVersionResponse(
            version=messages.write_version(answer.version), revision=answer.revision, created=answer.created
        )

    async def _manifest(self, request: pb.RegisterAdapterVersionRequest) -> Manifest:
        """Of what was uploaded, or of what the registry fetches itself."""
        if not request.source:
            return messages.read_manifest(request.manifest)
        if request.manifest.files:
            raise InvalidRequest("expected a manifest or a source, found both", field="source")
        return await self._registration.fetch(check_text(request.source, "source"))

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.GetAdapterResponse:
        return pb.GetAdapterResponse(adapter=messages.write_adapter(await self._store.adapters.get(request.adapter)))

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        page = await self._store.adapters.list(
            read_page(request),
            base_model=request.base_model,
            name_prefix=request.name_prefix,
            names=grant().adapters,
        )
        return pb.ListAdaptersResponse(
            adapters=[messages.write_adapter(one) for one in page.items], next_page_token=page.next_token
        )

    async def GetAdapterVersion(
        self, request: pb.GetAdapterVersionRequest, context: Context
    ) -> pb.GetAdapterVersionResponse:
        found = await self._store.versions.get(request.adapter, request.version)
        return pb.GetAdapterVersionResponse(version=messages.write_version(found))

    async def ListAdapterVersions(
        self, request: pb.ListAdapterVersionsRequest, context: Context
    ) -> pb.ListAdapterVersionsResponse:
        page = await self._store.versions.list(request.adapter, read_page(request))
        return pb.ListAdapterVersionsResponse(
            versions=[messages.write_version(one) for one in page.items], next_page_token=page.next_token
        )

    async def VerifyAdapterVersion(
        self, request: pb.VerifyAdapterVersionRequest, context: Context
    ) -> pb.VerifyAdapterVersionResponse:
        found = await self._store.versions.get(request.adapter, request.version)
        shapes = await self._store.base_models.shapes(found.base_model)
        problems = await find_problems(self._blobs, found, shapes)
        return pb.VerifyAdapterVersionResponse(version=messages.write_version(found), problems=problems)

    async def RetireAdapterVersion(
        self, request: pb.RetireAdapterVersionRequest, context: Context
    ) -> pb.RetireAdapterVersionResponse:
        answer = await self._store.versions.retire(
            make_call("RetireAdapterVersion", request),
            request.adapter,
            request.version,
            force=request.force,
            message=check_text(request.message, "message"),
        )
        return pb.RetireAdapterVersionResponse(version=messages.write_version(answer.version), revision=answer.revision)

    async def UnretireAdapterVersion(
        self, request: pb.UnretireAdapterVersionRequest, context: Context
    ) -> pb.UnretireAdapterVersionResponse:
        call = make_call("UnretireAdapterVersion", request)
        answer = await self._store.versions.unretire(call, request.adapter, request.version)
        return pb.UnretireAdapterVersionResponse(
            version=messages.write_version(answer.version), revision=answer.revision
        )

    async def PromoteAdapterVersion(
        self, request: pb.PromoteAdapterVersionRequest, context: Context
    ) -> pb.PromoteAdapterVersionResponse:
        if request.canary_weight > FULL_WEIGHT:
            raise InvalidRequest(
                f"canary_weight: expected at most {FULL_WEIGHT}, found {request.canary_weight}", field="canary_weight"
            )
        if request.shadow:
            _not_yet("shadow")
        moved = await self._store.aliases.promote(
            make_call("PromoteAdapterVersion", request),
            request.adapter,
            request.version,
            alias=check_alias(request.alias),
            weight=request.canary_weight or FULL_WEIGHT,
            expected_version=_expected(request),
            message=check_text(request.message, "message"),
            dry_run=request.validate_only,
        )
        return pb.PromoteAdapterVersionResponse(changed=moved.changed, **_write_moved(moved))

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.RollbackAliasResponse:
        moved = await self._store.aliases.rollback(
            make_call("RollbackAlias", request),
            request.adapter,
            alias=check_alias(request.alias),
            expected_version=_expected(request),
            message=check_text(request.message, "message"),
        )
        return pb.RollbackAliasResponse(**_write_moved(moved))

    async def ListAliasChanges(
        self, request: pb.ListAliasChangesRequest, context: Context
    ) -> pb.ListAliasChangesResponse:
        alias = request.alias or DEFAULT_ALIAS
        page = await self._store.aliases.history(request.adapter, alias, read_page(request))
        return pb.ListAliasChangesResponse(
            changes=[messages.write_alias_change(one) for one in page.items], next_page_token=page.next_token
        )

    async def ResolveAdapter(self, request: pb.ResolveAdapterRequest, context: Context) -> pb.ResolveAdapterResponse:
        reference = check_reference(request.reference, "reference")
        found = await self._store.references.resolve(
            reference, base_model_digest=request.base_model_digest, request_key=request.request_key
        )
        return pb.ResolveAdapterResponse(version=messages.write_version(found.version), revision=found.revision)

    async def GetLineage(self, request: pb.GetLineageRequest, context: Context) -> pb.GetLineageResponse:
        direction = admin_messages.read_direction(request.direction)
        if request.max_depth > MAX_DEPTH:
            raise InvalidRequest(
                f"max_depth: expected at most {MAX_DEPTH}, found {request.max_depth}", field="max_depth"
            )
        match request.WhichOneof("start"):
            case "adapter_version":
                name = check_version_name(request.adapter_version, "adapter_version")
                start = LineageKey(LineageKind.ADAPTER_VERSION, name)
            case "base_model":
                start = LineageKey(LineageKind.BASE_MODEL, check_name(request.base_model, "base_model"))
            case _:
                raise InvalidRequest("start: expected a version or a base model, found none", field="start")
        found = await self._store.lineages.walk(start, direction, max_depth=request.max_depth or MAX_DEPTH)
        return admin_messages.write_lineage(found)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        status = await self._store.changes.status()
        return pb.GetStatusResponse(
            store_id=status.store_id,
            revision=status.revision,
            compacted_revision=status.compacted_revision,
            server_version=self._release,
        )


def _not_yet(what: str) -> NoReturn:
    raise NotImplementedYet(f"{what} is part of the contract and not of this release")


def _expected(request: pb.PromoteAdapterVersionRequest | pb.RollbackAliasRequest) -> int | None:
    return request.expected_version if request.HasField("expected_version") else None


def _write_moved(moved: MovedAlias) -> dict[str, Any]:
    return {
        "alias": messages.write_alias(moved.alias),
        "before": messages.write_targets(moved.before),
        "revision": moved.revision,
    }


def _check_base_manifest(manifest: Manifest) -> Manifest:
    if not config_digest(manifest) or not weights_digest(manifest):
        paths = ", ".join(file.path for file in manifest.files[:10])
        raise InvalidManifest(f"expected config.json and *.safetensors, found {paths}", field="manifest")
    return manifest


async def _discard(parts: AsyncIterator[pb.UploadBlobRequest]) -> None:
    """Takes what a client is likely to have sent already: its library may report a broken stream, and not our error,
    when it finds the call ended while it writes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            for _ in range(MAX_DISCARDED):
                if await anext(parts, None) is None:
                    return


async def _chunks(parts: AsyncIterator[pb.UploadBlobRequest]) -> AsyncIterator[bytes]:
    async for part in parts:
        if part.WhichOneof("part") != "chunk":
            raise InvalidRequest("expected a chunk in every message but the first, found another", field="chunk")
        if len(part.chunk) > CHUNK_BYTES:
            raise InvalidRequest(f"chunk: expected at most {CHUNK_BYTES} bytes, found {len(part.chunk)}", field="chunk")
        yield part.chunk
