"""Transactions: what a read and a write are, and what Postgres's refusals mean. It knows no resource.

A write, from begin to commit:

    SELECT … FROM registry_head FOR UPDATE       writers queue here, so what follows sees every earlier commit
    request id known? give the first answer      (RequestIdReused when the content differs)
    the body: checks, rows
      advance: UPDATE registry_head SET revision = revision + 1 RETURNING revision
      record: the revision's events, one audit entry, pg_notify
    keep the answer under the request id
    COMMIT                                       a writer that dies before it leaves no revision behind

A body that changes nothing does not advance, and a dry run is the same transaction rolled back.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL, Executable, Result, Row, func, insert, make_url, select, text, update
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from registry.documents import Document, decode, encode
from registry.errors import (
    AdapterNotFound,
    BaseModelExists,
    BaseModelNotFound,
    InvalidRequest,
    RegistryError,
    RequestIdReused,
    StateRefused,
    StorageFull,
    StoreUnavailable,
    VersionNotFound,
)
from registry.grants import EVERYTHING, Grant
from registry.models import AuditRow, EventRow, RegistryHead, RequestRow
from registry.resources import Event, Happening

# The channel of NOTIFY; its payload is the revision, for people who listen with psql.
CHANNEL = "loraplex_registry"
RETRY_AFTER_S = 1.0
# A connection that waits longer for the counter row, or holds it longer, is given up: another writer is stuck.
SESSION_OPTIONS = "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=60s"
# What a refusal by a constraint means. Checks before the write give better messages; these hold under any race.
CONFLICTS: dict[str, type[RegistryError]] = {
    "pk_base_models": BaseModelExists,
    "fk_adapters_base_models": BaseModelNotFound,
    "fk_adapter_versions_adapters": AdapterNotFound,
    "fk_aliases_adapters": AdapterNotFound,
    "fk_adapter_versions_parent": VersionNotFound,
    "ck_adapter_versions_own_parent": VersionNotFound,
    "fk_alias_targets_adapter_versions": VersionNotFound,
    "ck_adapter_versions_transition": StateRefused,
}

_PING = text("SELECT 1")
_LOCK_HEAD = select(RegistryHead.revision).with_for_update()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """Who writes and what: the RPC's name, the digest of its request's content, and its request id or ''.

    `grant` is what the caller may do, for what only the rows can tell: whether an alias is protected.
    """

    actor: str
    action: str
    request_id: str
    content_digest: str
    grant: Grant = EVERYTHING


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision in the making."""

    number: int
    time: datetime


class Write:
    """An open write transaction that holds the counter row."""

    def __init__(self, session: AsyncSession, call: Call, head: int) -> None:
        self.session = session
        self.call = call
        self.head = head

    async def advance(self) -> Revision:
        """The next revision; it becomes real with the commit."""
        row = (
            await self.session.execute(
                update(RegistryHead)
                .values(revision=RegistryHead.revision + 1)
                .returning(RegistryHead.revision, func.clock_timestamp())
            )
        ).one()
        self.head = row[0]
        return Revision(row[0], row[1])

    async def record(
        self,
        revision: Revision,
        happenings: Sequence[Happening],
        *,
        base_model: str,
        resource: str,
        before: object,
        after: object,
        adapter: str | None = None,
        message: str = "",
    ) -> None:
        """Writes the revision's events and its audit entry, and wakes the listeners at the commit."""
        if happenings:
            await self.session.execute(
                insert(EventRow),
                [
                    {
                        "revision": revision.number,
                        "ordinal": ordinal,
                        "base_model": base_model,
                        "document": encode(Event(revision.number, revision.time, happening)),
                    }
                    for ordinal, happening in enumerate(happenings)
                ],
            )
        await self.session.execute(
            insert(AuditRow).values(
                revision=revision.number,
                time=revision.time,
                actor=self.call.actor,
                action=self.call.action,
                resource=resource,
                adapter=adapter,
                request_id=self.call.request_id,
                message=message,
                before=None if before is None else encode(before),
                after=encode(after),
            )
        )
        await self.session.execute(select(func.pg_notify(CHANNEL, str(revision.number))))


class Database:
    """Connections to one Postgres database."""

    def __init__(self, url: str, *, pool_size: int) -> None:
        self.engine = _make_engine(parse_url(url), pool_size)
        self._readers = self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._singles = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    async def close(self) -> None:
        """Closes every connection."""
        await self.engine.dispose()

    async def run(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one statement, which is a transaction of its own and costs one round trip.

        It is run again when its connection turns out dead, so it must be safe to repeat.
        """
        try:
            try:
                return await self._run(statement, parameters)
            except sqlalchemy_errors.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return await self._run(statement, parameters)
        except (sqlalchemy_errors.SQLAlchemyError, psycopg.Error) as error:
            raise translate(error) from error

    async def _run(self, statement: Executable, parameters: Mapping[str, Any] | None) -> Sequence[Row[Any]]:
        async with self._singles.connect() as connection:
            return (await connection.execute(statement, parameters)).all()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A read-only transaction that sees one state of the database; for one statement `run` is cheaper."""
        try:
            async with AsyncSession(self._readers, expire_on_commit=False) as session:
                await _first(session, _PING)
                yield session
        except (sqlalchemy_errors.SQLAlchemyError, psycopg.Error) as error:
            raise translate(error) from error

    @asynccontextmanager
    async def edit(self) -> AsyncIterator[AsyncSession]:
        """A transaction that makes no revision; it commits when the block ends without an error."""
        try:
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                await _first(session, _PING)
                yield session
                await session.commit()
        except (sqlalchemy_errors.SQLAlchemyError, psycopg.Error) as error:
            raise translate(error) from error

    async def write(
        self, call: Call, answer_type: type[T], body: Callable[[Write], Awaitable[T]], *, dry_run: bool = False
    ) -> T:
        """Runs the body as one write, once per request id. Raises what the body raises."""
        try:
            async with AsyncSession(self.engine, expire_on_commit=False) as session:
                head = (await _first(session, _LOCK_HEAD)).scalar_one()
                write = Write(session, call, head)
                if dry_run:
                    return await body(write)
                if call.request_id:
                    kept = await session.get(RequestRow, call.request_id)
                    if kept is not None:
                        return decode(answer_type, _first_answer(kept, call))
                answer = await body(write)
                if call.request_id:
                    session.add(
                        RequestRow(
                            request_id=call.request_id,
                            action=call.action,
                            content_digest=call.content_digest,
                            answer=encode(answer),
                        )
                    )
                await session.commit()
                return answer
        except (sqlalchemy_errors.SQLAlchemyError, psycopg.Error) as error:
            raise translate(error) from error


async def _first(session: AsyncSession, statement: Executable) -> Result[Any]:
    """Runs a transaction's first statement, on a second connection when the first has died in the pool."""
    try:
        return await session.execute(statement)
    except sqlalchemy_errors.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        await session.rollback()
        return await session.execute(statement)


def parse_url(url: str) -> URL:
    """A URL for psycopg, whatever driver or spelling (`postgres://`) it came with."""
    try:
        parsed = make_url(url)
    except sqlalchemy_errors.ArgumentError as error:
        raise InvalidRequest("DATABASE_URL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from error
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise InvalidRequest(f"DATABASE_URL: expected a postgresql:// URL, found {parsed.drivername}://")
    return parsed.set(drivername="postgresql+psycopg")


def connection_string(url: str) -> str:
    """The same URL for psycopg itself."""
    return parse_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def translate(error: Exception) -> Exception:
    """The registry's error for what Postgres said; the error itself when that is a fault of ours."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, psycopg.IntegrityError):
        conflict = CONFLICTS.get(cause.diag.constraint_name or "")
        return error if conflict is None else conflict(_describe(conflict, cause.diag.message_detail or ""))
    if isinstance(cause, psycopg.DataError):
        return InvalidRequest(f"a value cannot be stored: {str(cause).splitlines()[0]}")
    if isinstance(cause, psycopg.errors.DiskFull):
        return StorageFull("Postgres has no room left on its disk", retry_after_s=60.0)
    gone = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)
    if isinstance(cause, gone) or isinstance(error, sqlalchemy_errors.TimeoutError):
        return StoreUnavailable(
            f"Postgres cannot be reached: {(str(cause).splitlines() or [type(cause).__name__])[0]}",
            retry_after_s=RETRY_AFTER_S,
        )
    return error


def _make_engine(url: URL, pool_size: int) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10.0,
        connect_args={"connect_timeout": 5, "options": SESSION_OPTIONS},
    )


def _first_answer(kept: RequestRow, call: Call) -> Document:
    if (kept.action, kept.content_digest) != (call.action, call.content_digest):
        raise RequestIdReused(
            f"request id {call.request_id!r} was used before by {kept.action} with other content; take a new id"
        )
    return kept.answer


def _describe(conflict: type[RegistryError], detail: str) -> str:
    """Postgres's detail is `Key (adapter, number)=(sql, 9) is not present in table …`."""
    found = re.search(r"\)=\((.*?)\)", detail)
    sentence = (conflict.__doc__ or "").strip().rstrip(".")
    return f"{sentence}: {found.group(1)}" if found else sentence
