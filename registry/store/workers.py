"""Workers' reports and their leases. They make no revision: what a worker runs is not what the registry decided."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from registry.documents import decode, encode
from registry.errors import ReportUnknown
from registry.models import RegistryHead, WorkerRow
from registry.resources import Worker, WorkerState
from registry.store.database import Database
from registry.store.paging import Page, PageRequest, make_page


@dataclass(frozen=True, slots=True)
class WorkersPage:
    """A page of workers, and the registry's revision at which it was read."""

    page: Page[Worker]
    revision: int


class Workers:
    """The workers of one database. Postgres's clock decides about leases, so that all replicas agree."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, worker: Worker, *, lease_s: float, adapters_digest: str = "") -> int:
        """Replaces what the worker last said and renews its lease. Returns the registry's revision."""
        said = {
            "base_model": worker.base_model,
            "document": encode(worker),
            "observed_revision": worker.observed_revision,
            "adapters_digest": adapters_digest or None,
            "report_time": func.clock_timestamp(),
            "lease_end": func.clock_timestamp() + timedelta(seconds=lease_s),
        }
        statement = (
            upsert(WorkerRow)
            .values(id=worker.id, **said)
            .on_conflict_do_update(constraint="pk_workers", set_=said)
            .returning(select(RegistryHead.revision).scalar_subquery().label("head"))
        )
        ((revision,),) = await self._database.run(statement)
        return int(revision)

    async def renew(self, worker_id: str, *, observed_revision: int, lease_s: float, adapters_digest: str) -> int:
        """Renews the lease of what the worker said under this digest. Returns the registry's revision.

        Raises ReportUnknown when it last said something else, or nothing.
        """
        statement = (
            update(WorkerRow)
            .where(WorkerRow.id == worker_id, WorkerRow.adapters_digest == adapters_digest)
            .values(
                observed_revision=observed_revision,
                report_time=func.clock_timestamp(),
                lease_end=func.clock_timestamp() + timedelta(seconds=lease_s),
            )
            .returning(select(RegistryHead.revision).scalar_subquery().label("head"))
        )
        rows = await self._database.run(statement)
        if not rows:
            raise ReportUnknown(f"worker {worker_id!r} has no report {adapters_digest!r} here; send all of it")
        return int(rows[0].head)

    async def forget(self, *, lost_for_s: float) -> tuple[str, ...]:
        """Removes the workers whose lease ran out so long ago; returns their ids."""
        since = func.clock_timestamp() - timedelta(seconds=lost_for_s)
        rows = await self._database.run(delete(WorkerRow).where(WorkerRow.lease_end < since).returning(WorkerRow.id))
        return tuple(row.id for row in rows)

    async def list(
        self, request: PageRequest, *, base_model: str = "", adapters: frozenset[str] = frozenset()
    ) -> WorkersPage:
        """Workers by id, LOST where the lease ran out; of one base model when it is given.

        `adapters` keeps what they say of these adapters, and everything when it is empty.
        """
        listing = f"workers of {base_model}"
        after = request.after(listing, str)
        query = (
            select(WorkerRow, WorkerRow.lease_end > func.clock_timestamp())
            .order_by(WorkerRow.id)
            .limit(request.limit + 1)
        )
        if base_model:
            query = query.where(WorkerRow.base_model == base_model)
        if after is not None:
            query = query.where(WorkerRow.id > after)
        async with self._database.read() as session:
            revision = (await session.scalars(select(RegistryHead.revision))).one()
            found = [
                replace(
                    _about(decode(Worker, row.document), adapters),
                    state=WorkerState.LIVE if is_live else WorkerState.LOST,
                    report_time=row.report_time,
                    observed_revision=row.observed_revision,
                )
                for row, is_live in await session.execute(query)
            ]
        return WorkersPage(make_page(request, listing, found, lambda one: one.id), revision)


def _about(worker: Worker, adapters: frozenset[str]) -> Worker:
    if not adapters:
        return worker
    return replace(worker, adapters=tuple(one for one in worker.adapters if one.adapter in adapters))
