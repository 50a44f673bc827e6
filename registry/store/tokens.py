"""Bearer tokens in the database: make, rotate, revoke, find. It keeps hashes; no secret ever comes here.

A token's rights never change. One is rotated by another with the same rights, which exists before the old one ends.
Every change is a revision with no event: watchers are not told about tokens, and the audit log is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from registry.errors import InvalidRequest, TokenNotFound, TokenNotInForce
from registry.models import TokenRow
from registry.resources import Scope, Token
from registry.store.database import Call, Database, Revision, Write
from registry.store.paging import Page, PageRequest, make_page


@dataclass(frozen=True, slots=True)
class NewSecret:
    """The id that a new token gets and the SHA-256 of its secret in hex; both are the caller's."""

    id: str
    secret_hash: str


@dataclass(frozen=True, slots=True)
class ChangedToken:
    """A token after a call."""

    token: Token
    revision: int


@dataclass(frozen=True, slots=True)
class RotatedToken:
    """The new token, and the old one with the time at which it ends."""

    token: Token
    replaced: Token
    revision: int


class Tokens:
    """The tokens of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # How often this process ended a token; other processes hear of it by the revision.
        self.num_ended = 0

    async def create(self, call: Call, secret: NewSecret, token: Token) -> ChangedToken:
        """Adds a token with the rights and the expiry of `token`. Raises InvalidRequest for a time that has passed."""

        async def body(write: Write) -> ChangedToken:
            revision = await write.advance()
            made = await _insert(write.session, revision, secret, token)
            await _record(write, revision, made, before=None, after=made)
            return ChangedToken(made, revision.number)

        return await self._database.write(call, ChangedToken, body)

    async def rotate(
        self, call: Call, token_id: str, secret: NewSecret, *, grace: timedelta, expire_time: datetime | None
    ) -> RotatedToken:
        """Makes another token with the same rights, and ends the old one after `grace`.

        Raises TokenNotFound, TokenNotInForce, and InvalidRequest for a time that has passed.
        """

        async def body(write: Write) -> RotatedToken:
            old = token_of(await _get(write.session, token_id))
            revision = await write.advance()
            if not old.is_in_force(revision.time):
                raise TokenNotInForce(f"token {old.id} ({old.name}) was revoked or has expired; create a new one")
            if grace:
                end = revision.time + grace
                replaced = replace(old, expire_time=min(end, old.expire_time or end))
            else:
                replaced = replace(old, revoke_time=revision.time)
            made = await _insert(write.session, revision, secret, replace(old, expire_time=expire_time))
            await write.session.execute(
                update(TokenRow)
                .where(TokenRow.id == old.id)
                .values(expire_time=replaced.expire_time, revoke_time=replaced.revoke_time)
            )
            answer = RotatedToken(made, replaced, revision.number)
            await _record(write, revision, old, before=old, after=answer)
            return answer

        rotated = await self._database.write(call, RotatedToken, body)
        self.num_ended += 1
        return rotated

    async def revoke(self, call: Call, token_id: str) -> ChangedToken:
        """Ends a token at once; harmless when it was revoked before. Raises TokenNotFound."""

        async def body(write: Write) -> ChangedToken:
            old = token_of(await _get(write.session, token_id))
            if old.revoke_time is not None:
                return ChangedToken(old, write.head)
            revision = await write.advance()
            revoked = replace(old, revoke_time=revision.time)
            await write.session.execute(update(TokenRow).where(TokenRow.id == old.id).values(revoke_time=revision.time))
            await _record(write, revision, old, before=old, after=revoked)
            return ChangedToken(revoked, revision.number)

        revoked = await self._database.write(call, ChangedToken, body)
        self.num_ended += 1
        return revoked

    async def list(self, request: PageRequest) -> Page[Token]:
        """Tokens, newest first; those that ended too."""
        listing = "tokens"
        before = request.after(listing, int)
        query = select(TokenRow).order_by(TokenRow.revision.desc()).limit(request.limit + 1)
        if before is not None:
            query = query.where(TokenRow.revision < before)
        async with self._database.read() as session:
            rows = list(await session.scalars(query))
        page = make_page(request, listing, rows, lambda one: one.revision)
        return Page(tuple(token_of(row) for row in page.items), page.next_token)

    async def find(self, secret_hash: str) -> Token | None:
        """The token with this secret, in force or not."""
        rows = await self._database.run(_BY_SECRET, {"secret_hash": secret_hash})
        return token_of(rows[0]) if rows else None


_BY_SECRET = select(*TokenRow.__table__.columns).where(TokenRow.secret_hash == bindparam("secret_hash"))


def token_of(row: TokenRow | Row[Any]) -> Token:
    """The token of a row."""
    return Token(
        id=row.id,
        name=row.name,
        scopes=tuple(Scope(one) for one in row.scopes),
        adapters=tuple(row.adapters),
        aliases=tuple(row.aliases),
        create_time=row.create_time,
        expire_time=row.expire_time,
        revoke_time=row.revoke_time,
    )


async def _get(session: AsyncSession, token_id: str) -> TokenRow:
    row = await session.get(TokenRow, token_id)
    if row is None:
        raise TokenNotFound(f"no token {token_id!r}", metadata={"token": token_id})
    return row


async def _insert(session: AsyncSession, revision: Revision, secret: NewSecret, token: Token) -> Token:
    if token.expire_time is not None and token.expire_time <= revision.time:
        raise InvalidRequest(
            f"expire_time: expected a time to come, found {token.expire_time:%Y-%m-%d %H:%M:%S %Z}",
            field="expire_time",
        )
    made = replace(token, id=secret.id, create_time=revision.time, revoke_time=None)
    await session.execute(
        insert(TokenRow).values(
            id=made.id,
            name=made.name,
            secret_hash=secret.secret_hash,
            scopes=[one.value for one in made.scopes],
            adapters=list(made.adapters),
            aliases=list(made.aliases),
            create_time=made.create_time,
            expire_time=made.expire_time,
            revision=revision.number,
        )
    )
    return made


async def _record(write: Write, revision: Revision, token: Token, *, before: object, after: object) -> None:
    # A name cannot hold a slash, so no adapter's version looks like this.
    await write.record(revision, [], base_model="", resource=f"token/{token.id}", before=before, after=after)
