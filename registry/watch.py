"""One watcher's stream: a snapshot or a place to resume, then every revision after it. It knows no gRPC.

    no revision ──> snapshot items, SnapshotEnd(R) ──┐
    revision R ──> R is checked ─────────────────────┴──> pages of (R, head] ──> Progress ──> wait ──┐
                                                               ^                                     │
                                                               └─────────────────────────────────────┘

Nothing is queued for a watcher: it reads the table at its own pace, a page at a time, so a slow one costs its page and
no more. Watchers that are at the same place share one read of the page.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from registry.errors import RevisionCompacted, RevisionFuture, StoreChanged, StoreUnavailable
from registry.events import Listener
from registry.resources import Change, Progress, SnapshotEnd, Status, WatchMessage, adapter_of
from registry.store.changes import PAGE, Changes
from registry.store.database import RETRY_AFTER_S

# A snapshot holds a connection while it is sent; a watcher that takes longer for it is told to come back.
SNAPSHOT_TIMEOUT_S = 60.0
# Pages that are kept for others who are at the same place; almost always all are at the newest.
SHARED_PAGES = 4

Send = Callable[[str, WatchMessage], Awaitable[None]]
"""Takes the store's id and a message; returns when there is room for the next one."""
Page = tuple[Status, tuple[Change, ...]]


class Watches:
    """The watches of one process."""

    def __init__(self, changes: Changes, listener: Listener, *, progress_s: float, max_snapshots: int) -> None:
        """At most `max_snapshots` are sent at a time, so that they leave connections to others."""
        self._changes = changes
        self._listener = listener
        self._progress_s = progress_s
        self._snapshots = asyncio.Semaphore(max_snapshots)
        self._pages: OrderedDict[tuple[int, int, str], asyncio.Task[Page]] = OrderedDict()

    async def stream(
        self,
        send: Send,
        *,
        after: int | None,
        store_id: str = "",
        base_model: str = "",
        adapters: frozenset[str] = frozenset(),
    ) -> None:
        """Sends for ever. `after` None asks for a snapshot first; `base_model` keeps one base model's events.

        `adapters` leaves out what concerns others, and nothing when it is empty.

        Raises RevisionCompacted, RevisionFuture, StoreChanged, StoreUnavailable and Draining.
        """
        if after is None:
            store_id, position = await self._send_snapshot(send, base_model, adapters)
            told = position
        else:
            status = await self._changes.status()
            store_id, position = store_id or status.store_id, after
            _check_place(status, store_id, position)
            self._listener.observe(status)
            told = -1  # even a watcher that missed nothing is told so
        while True:
            self._check_open(store_id)
            while (status_now := self._listener.status) is not None and position < status_now.revision:
                up_to = min(position + PAGE, status_now.revision)
                status, changes = await self._page(position, up_to, base_model)
                _check_place(status, store_id, position)
                for change in _about(changes, adapters):
                    await send(store_id, change)
                    told = change.revision
                position = up_to
            if told < position:
                await send(store_id, Progress(position))
                told = position
            if not await self._listener.wait_past(store_id, position, timeout_s=self._progress_s):
                await send(store_id, Progress(position))

    def _check_open(self, store_id: str) -> None:
        """Raises like `Listener.check`, and StoreChanged when the listener found another store."""
        self._listener.check()
        status = self._listener.status
        if status is not None:
            _check_store(status, store_id)

    async def _send_snapshot(self, send: Send, base_model: str, adapters: frozenset[str]) -> tuple[str, int]:
        try:
            async with self._snapshots, asyncio.timeout(SNAPSHOT_TIMEOUT_S):
                async with self._changes.snapshot(base_model=base_model, adapters=adapters) as snapshot:
                    status = snapshot.status
                    async for item in snapshot.items:
                        await send(status.store_id, item)
                await send(status.store_id, SnapshotEnd(status.revision, status.store_id))
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the snapshot was not taken within {SNAPSHOT_TIMEOUT_S:.0f} s", retry_after_s=RETRY_AFTER_S
            ) from error
        self._listener.observe(status)
        return status.store_id, status.revision

    async def _page(self, after: int, up_to: int, base_model: str) -> Page:
        """Revisions never change, so a page that one watcher read is good for all."""
        key = (after, up_to, base_model)
        task = self._pages.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(self._changes.page(after, up_to, base_model=base_model))
            task.add_done_callback(_retrieve)
            self._pages[key] = task
            while len(self._pages) > SHARED_PAGES:
                self._pages.popitem(last=False)
        return await asyncio.shield(task)


def _retrieve(task: asyncio.Task[Page]) -> None:
    """Takes the error of a page that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _about(changes: Sequence[Change], adapters: frozenset[str]) -> Iterator[Change]:
    """The changes with the events of the adapters and of base models; those with none are left out."""
    if not adapters:
        yield from changes
        return
    for change in changes:
        events = tuple(one for one in change.events if adapter_of(one.happening) in (None, *adapters))
        if events:
            yield replace(change, events=events)


def _check_store(status: Status, store_id: str) -> None:
    if status.store_id != store_id:
        raise StoreChanged(
            f"this is store {status.store_id}, not {store_id}; take a snapshot", metadata={"store_id": status.store_id}
        )


def _check_place(status: Status, store_id: str, position: int) -> None:
    """Raises unless every revision after the position is still there."""
    _check_store(status, store_id)
    if position > status.revision:
        raise RevisionFuture(
            f"expected a revision of at most {status.revision}, found {position}; take a snapshot",
            metadata={"revision": str(status.revision)},
        )
    if position < status.compacted_revision:
        raise RevisionCompacted(
            f"the events up to {status.compacted_revision} are gone, and {position} is before it; take a snapshot",
            metadata={"compacted_revision": str(status.compacted_revision)},
        )
