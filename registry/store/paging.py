"""Pages by key: a page begins after the last key of the one before, so rows that come or go never shift it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from registry.errors import InvalidPageToken

DEFAULT_SIZE = 100
MAX_SIZE = 1000

T = TypeVar("T")
K = TypeVar("K", str, int)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What a caller asks for; size 0 means the default, and more than the most means the most."""

    size: int = 0
    token: str = ""

    @property
    def limit(self) -> int:
        """Rows of the page."""
        return min(self.size or DEFAULT_SIZE, MAX_SIZE)

    def after(self, listing: str, kind: type[K]) -> K | None:
        """The key to begin after, None for the first page. Raises InvalidPageToken.

        `listing` names the list and its filters: a token is good only for the list that it came from.
        """
        if not self.token:
            return None
        try:
            found = json.loads(base64.urlsafe_b64decode(self.token.encode()))
        except (binascii.Error, ValueError) as error:
            raise InvalidPageToken(field="page_token") from error
        match found:
            case [str(name), key] if name == listing and type(key) is kind:
                return key
        raise InvalidPageToken(field="page_token")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Items and the token of the next page, empty on the last one."""

    items: tuple[T, ...]
    next_token: str


def make_page(request: PageRequest, listing: str, rows: Sequence[T], key: Callable[[T], str | int]) -> Page[T]:
    """A page of rows that were fetched with one more than the limit."""
    if len(rows) <= request.limit:
        return Page(tuple(rows), "")
    kept = tuple(rows[: request.limit])
    token = base64.urlsafe_b64encode(json.dumps([listing, key(kept[-1])]).encode()).decode()
    return Page(kept, token)
