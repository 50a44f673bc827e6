"""The registry as an async Python object: typed values in, typed values out, errors from `registry.errors`.

Every call has a deadline. A call that failed because the registry could not be reached is tried again with jitter:
reads because they change nothing, writes because each carries a request id that makes a repeat harmless. A watch goes
on by itself after a broken connection, from the last revision it handed out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

import grpc

from loraplex.registry.v1 import registry_service_pb2 as pb
from loraplex.registry.v1 import registry_service_pb2_grpc as rpcs
from loraplex.registry.v1 import worker_service_pb2 as worker_pb
from loraplex.registry.v1 import worker_service_pb2_grpc as worker_rpcs
from registry import admin_messages, fleet_messages, messages
from registry.admin_client import AdminClient
from registry.answers import MovedAlias, ResolvedVersion
from registry.calls import Calls, new_request_id
from registry.errors import RegistryError
from registry.following import follow
from registry.publish_client import PublishClient
from registry.resources import (
    Adapter,
    AdapterVersion,
    AliasChange,
    BaseModel,
    Lineage,
    LineageDirection,
    LineageKey,
    LineageKind,
    Status,
    WatchMessage,
    Worker,
)
from registry.signing_client import SigningClient
from registry.upkeep_client import UpkeepClient
from registry.worker_reports import WorkerReports

# Long enough for a registry that waits for a lock or for Postgres to come back, short enough for a person.
DEADLINE_S = 15.0
# The most that the registry gives at once.
PAGE_SIZE = 1000


class RegistryClient(PublishClient):
    """All of the registry over one channel, which the client closes. Methods raise the classes of `registry.errors`."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline_s: float = DEADLINE_S) -> None:
        calls = Calls(deadline_s=deadline_s)
        super().__init__(rpcs.RegistryServiceStub(channel), calls)
        self._channel = channel
        self._workers = worker_rpcs.WorkerServiceStub(channel)
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

    async def get_base_model(self, name: str) -> BaseModel:
        """With its modules."""
        answer = await self._calls.call(self._registry.GetBaseModel, pb.GetBaseModelRequest(name=name))
        return messages.read_base_model(answer.base_model)

    async def list_base_models(self) -> list[BaseModel]:
        """All, by name, without their modules."""
        pages = self._calls.pages(self._registry.ListBaseModels, pb.ListBaseModelsRequest(page_size=PAGE_SIZE))
        return [messages.read_base_model(one) async for page in pages for one in page.base_models]

    async def get_adapter(self, name: str) -> Adapter:
        """With its aliases."""
        answer = await self._calls.call(self._registry.GetAdapter, pb.GetAdapterRequest(adapter=name))
        return messages.read_adapter(answer.adapter)

    async def list_adapters(self, *, base_model: str = "", name_prefix: str = "") -> list[Adapter]:
        """All that the caller may see, or those of one base model or with names that begin so, by name."""
        request = pb.ListAdaptersRequest(base_model=base_model, name_prefix=name_prefix, page_size=PAGE_SIZE)
        pages = self._calls.pages(self._registry.ListAdapters, request)
        return [messages.read_adapter(one) async for page in pages for one in page.adapters]

    async def get_version(self, adapter: str, number: int) -> AdapterVersion:
        """One version."""
        request = pb.GetAdapterVersionRequest(adapter=adapter, version=number)
        answer = await self._calls.call(self._registry.GetAdapterVersion, request)
        return messages.read_version(answer.version)

    async def list_versions(self, adapter: str) -> list[AdapterVersion]:
        """All versions of an adapter, newest first."""
        request = pb.ListAdapterVersionsRequest(adapter=adapter, page_size=PAGE_SIZE)
        pages = self._calls.pages(self._registry.ListAdapterVersions, request)
        return [messages.read_version(one) async for page in pages for one in page.versions]

    async def verify(self, adapter: str, number: int) -> tuple[str, ...]:
        """Hashes the stored files again and repeats the check at registration: sentences, none when all is well."""
        version = await self.get_version(adapter, number)
        answer = await self._calls.call(
            self._registry.VerifyAdapterVersion,
            pb.VerifyAdapterVersionRequest(adapter=adapter, version=number),
            # The registry reads every number of the files twice before it answers.
            deadline_s=self._calls.deadline_s + version.size_bytes / 50e6,
        )
        return tuple(answer.problems)

    async def retire(self, adapter: str, number: int, *, force: bool = False, message: str = "") -> AdapterVersion:
        """Withdraws a version; with `force` although aliases point at it."""
        answer = await self._calls.call(
            self._registry.RetireAdapterVersion,
            pb.RetireAdapterVersionRequest(
                adapter=adapter, version=number, force=force, request_id=new_request_id(), message=message
            ),
        )
        return messages.read_version(answer.version)

    async def unretire(self, adapter: str, number: int) -> AdapterVersion:
        """Makes a retired version promotable again."""
        answer = await self._calls.call(
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
    ) -> MovedAlias:
        """Points an alias at a version, or `canary_weight` hundredths of a percent of it.

        `expected_version` is what it must point at now, 0 for nothing.
        """
        answer = await self._calls.call(
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
        return MovedAlias(
            alias=messages.read_alias(answer.alias),
            before=messages.read_targets(answer.before),
            revision=answer.revision,
            changed=answer.changed,
        )

    async def rollback(
        self, adapter: str, *, alias: str = "", expected_version: int | None = None, message: str = ""
    ) -> MovedAlias:
        """Points an alias back at what it pointed at before; `expected_version` is what it must point at now."""
        answer = await self._calls.call(
            self._registry.RollbackAlias,
            pb.RollbackAliasRequest(
                adapter=adapter,
                alias=alias,
                expected_version=expected_version,
                request_id=new_request_id(),
                message=message,
            ),
        )
        return MovedAlias(
            messages.read_alias(answer.alias), messages.read_targets(answer.before), answer.revision, True
        )

    async def list_alias_changes(self, adapter: str, *, alias: str = "") -> list[AliasChange]:
        """An alias's history, newest first."""
        request = pb.ListAliasChangesRequest(adapter=adapter, alias=alias, page_size=PAGE_SIZE)
        pages = self._calls.pages(self._registry.ListAliasChanges, request)
        return [messages.read_alias_change(one) async for page in pages for one in page.changes]

    async def resolve(self, reference: str, *, base_model_digest: str = "", request_key: str = "") -> ResolvedVersion:
        """What a reference means now; with a base model's digest, refused when it is for another one."""
        answer = await self._calls.call(
            self._registry.ResolveAdapter,
            pb.ResolveAdapterRequest(reference=reference, base_model_digest=base_model_digest, request_key=request_key),
        )
        return ResolvedVersion(messages.read_version(answer.version), answer.revision)

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
        return admin_messages.read_lineage(await self._calls.call(self._registry.GetLineage, request))

    async def status(self) -> Status:
        """The store's identity and revision."""
        answer = await self._calls.call(self._registry.GetStatus, pb.GetStatusRequest())
        return Status(answer.store_id, answer.revision, answer.compacted_revision, answer.server_version)

    async def report_worker(self, worker: Worker, *, lease_s: float | None = None) -> int:
        """Says what a worker runs, of which what has not changed is not sent again; returns the registry's revision."""
        return await self._reports.report(worker, lease_s=lease_s)

    async def list_workers(self, *, base_model: str = "", adapter: str = "") -> list[Worker]:
        """All workers, or those of one base model, by id; the lost ones too. `adapter` keeps what they say of it."""
        request = worker_pb.ListWorkersRequest(base_model=base_model, adapter=adapter, page_size=PAGE_SIZE)
        pages = self._calls.pages(self._workers.ListWorkers, request)
        return [fleet_messages.read_worker(one) async for page in pages for one in page.workers]

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
