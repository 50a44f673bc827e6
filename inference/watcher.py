"""Follows the registry: keeps the alias table true, loads what was promoted, says what really runs.

Four loops share the table, all on the event loop:

    follow      the watch stream into `desired`; goes on by itself when the registry comes back
    reconcile   desired against serving: load beside, switch in one assignment, let the old version go
    report      what this worker serves, to the registry, on every change and before its lease ends
    save        the table to disk after every change, so that the next start needs no registry

A worker reconciles, it does not replay: ten promotions in a row load only the last. A version that cannot be loaded
changes nothing but the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from pathlib import Path

from inference.adapters import AdapterDesk
from inference.errors import AdapterMemoryFull, DiskCacheFull, InferenceError, RegistryUnreachable
from inference.lora.lease import LoadedAdapter
from inference.lora.loader import Adapters
from inference.prefetching import Prefetcher
from inference.resolver import Version
from inference.resolver.registry import to_version
from inference.resolver.table import Key, Side, Split, Table, save
from registry.client import RegistryClient
from registry.errors import RegistryError
from registry.resources import AdapterVersion as RegistryVersion
from registry.resources import (
    Alias,
    AliasChanged,
    Change,
    Event,
    SnapshotEnd,
    SnapshotItem,
    VersionRegistered,
    VersionRetired,
    VersionState,
    VersionUnretired,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
)

log = logging.getLogger(__name__)

LEASE_S = 15.0
# Loads of promoted versions at once; more would only share the same disk and cores.
MAX_LOADS = 4
# What waiting mends: a promotion is tried until it is done or another takes its place.
PASSING = (RegistryUnreachable, AdapterMemoryFull, DiskCacheFull)
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0


class Watcher:
    """Keeps one worker's table and memory in step with the registry. `run` until cancelled."""

    def __init__(
        self,
        client: RegistryClient,
        table: Table,
        desk: AdapterDesk,
        adapters: Adapters,
        *,
        prefetcher: Prefetcher,
        table_path: Path,
        identity: Worker,
    ) -> None:
        """`identity` says who reports; the watcher fills in the revision and the adapters."""
        self._client = client
        self._table = table
        self._desk = desk
        self._adapters = adapters
        self._prefetcher = prefetcher
        self._table_path = table_path
        self._identity = identity
        self._changed = asyncio.Event()  # the table or what is served; reconcile and report wait for it
        self._report_due = asyncio.Event()
        self._unsaved = asyncio.Event()
        table.on_remembered = self._unsaved.set
        self._loading: dict[Key, asyncio.Task[None]] = {}
        self.is_connected = False

    async def run(self) -> None:
        """Follows, reconciles and reports until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow())
                tasks.create_task(self._reconcile())
                tasks.create_task(self._report())
                tasks.create_task(self._save())
        finally:
            for task in self._loading.values():
                task.cancel()
            await self._prefetcher.close()

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_once()
            except RegistryError as error:  # such as a token that was revoked: an operator must act, and may
                self._note_connection(error)
                log.error("the registry refuses the watch, trying again in %.0f s: %s", LAST_RETRY_S, error)
                await asyncio.sleep(LAST_RETRY_S)

    async def _follow_once(self) -> None:
        aliases: list[Alias] = []
        versions: dict[tuple[str, int], RegistryVersion] = {}
        table = self._table
        stream = self._client.watch(
            after_revision=table.revision if table.store_id else None,
            store_id=table.store_id,
            base_model=self._identity.base_model,
            on_connection=self._note_connection,
        )
        async for message in stream:
            if isinstance(message, SnapshotItem):
                if isinstance(message.item, Alias):
                    aliases.append(message.item)
                elif isinstance(message.item, RegistryVersion):
                    versions[message.item.adapter, message.item.number] = message.item
                    self._prefetcher.see(message.item)
                continue
            if isinstance(message, SnapshotEnd):
                desired = {Key(alias.adapter, alias.alias): _split(alias, versions) for alias in aliases}
                retired = {key for key, version in versions.items() if version.state is VersionState.RETIRED}
                for gone in table.replace(desired, retired, store_id=message.store_id, revision=message.revision):
                    self._let_go(gone)
                aliases, versions = [], {}
            elif isinstance(message, Change):
                for event in message.events:
                    self._apply(event)
                table.revision = message.revision
            else:
                table.revision = message.revision
                self._report_due.set()
                continue
            self._note_change()

    def _note_connection(self, error: RegistryError | None) -> None:
        """The watch came up, or broke with an error and is being made again."""
        if error is not None and self.is_connected:
            log.warning("the registry cannot be reached, serving what is known: %s", error)
        self.is_connected = error is None
        self._report_due.set()

    def _note_change(self) -> None:
        """The table has changed: save it, reconcile, report."""
        self._unsaved.set()
        self._changed.set()
        self._report_due.set()

    async def _save(self) -> None:
        while True:
            await self._unsaved.wait()
            self._unsaved.clear()
            try:
                await asyncio.to_thread(save, self._table_path, self._table.to_json())
            except OSError as error:
                log.error("cannot save %s: %s", self._table_path, error)

    def _apply(self, event: Event) -> None:
        table, happening = self._table, event.happening
        if isinstance(happening, AliasChanged):
            versions = {(version.adapter, version.number): version for version in happening.versions}
            key = Key(happening.alias.adapter, happening.alias.alias)
            table.desire(key, _split(happening.alias, versions))
        elif isinstance(happening, VersionRegistered):
            self._prefetcher.see(happening.version)
        elif isinstance(happening, VersionRetired):
            table.retired.add((happening.version.adapter, happening.version.number))
        elif isinstance(happening, VersionUnretired):
            table.retired.discard((happening.version.adapter, happening.version.number))

    async def _reconcile(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            for key in self._table.pending():
                if key not in self._loading and len(self._loading) < MAX_LOADS:
                    task = asyncio.create_task(self._advance(key))
                    self._loading[key] = task
                    task.add_done_callback(functools.partial(self._ended, key))

    async def _advance(self, key: Key) -> None:
        """Brings one alias to what is desired when the load ends, which may not be what was when it began."""
        table, retry_s = self._table, FIRST_RETRY_S
        while (split := table.desired.get(key)) is not None and table.serving.get(key) != split:
            for version in split.versions:
                try:
                    await self._load(key, version)
                except PASSING as error:
                    log.warning("%s: cannot load %s yet: %s", key, version.name, error)
                    await asyncio.sleep(retry_s)
                    retry_s = min(2 * retry_s, LAST_RETRY_S)
                    break
                except Exception as error:
                    if not isinstance(error, InferenceError):
                        log.exception("%s: loading %s failed", key, version.name)
                    reasons = [one for one in getattr(error, "reasons", ()) if one not in str(error)]
                    table.failures[version.digest] = "; ".join((str(error), *reasons))
                    kept = table.serving.get(key)
                    log.error("%s: %s is not served: %s%s", key, split, error, f"; keeping {kept}" if kept else "")
                    return
            else:
                if table.desired.get(key) == split:
                    self._switch(key, split)

    async def _load(self, key: Key, version: Version) -> None:
        """Loads beside what is served. A first target that would evict others stays on disk until it is asked for."""
        size = sum(file.size_bytes for file in version.manifest.files)
        if key in self._table.serving or self._adapters.fits_free(size):
            await self._desk.load(version)
        else:
            await self._desk.fetch(version)

    def _switch(self, key: Key, split: Split) -> None:
        old = self._table.serving.get(key)
        self._table.serving[key] = split
        log.info("%s now serves %s (%s)%s", key, split, split.main.digest, f", was {old}" if old else "")
        for version in old.versions if old is not None else ():
            self._let_go(version)

    def _let_go(self, version: Version) -> None:
        """Frees a version's memory once its running requests have ended, unless another alias wants it."""
        if not self._table.is_wanted(version.digest):
            self._adapters.retire(version.digest)

    def _ended(self, key: Key, _: asyncio.Task[None]) -> None:
        del self._loading[key]
        self._note_change()

    async def _report(self) -> None:
        while True:
            self._report_due.clear()
            try:
                await self._client.report_worker(self._account(), lease_s=LEASE_S)
            except RegistryError as error:
                log.debug("cannot report: %s", error)
            with contextlib.suppress(TimeoutError):
                # Three reports in the time of one lease, so that losing two of them is not losing the worker.
                # Not wait_for, which can swallow a cancellation before Python 3.12.
                async with asyncio.timeout(LEASE_S / 3):
                    await self._report_due.wait()

    def _account(self) -> Worker:
        """What this worker really runs."""
        table = self._table
        loaded = {adapter.digest: adapter for adapter in self._adapters.loaded()}
        # By name and number: the same bytes may be two versions, of two adapters.
        wanted = {(version.adapter, version.number): version for version in table.wanted()}
        adapters = []
        for version in wanted.values():
            served = table.aliases_of(version)
            if served:
                state = WorkerAdapterState.READY
            elif version.digest in table.failures:
                state = WorkerAdapterState.FAILED
            else:
                state = WorkerAdapterState.LOADING
            failure = table.failures.get(version.digest, "")
            adapters.append(_entry(version, state, served, loaded.get(version.digest), failure))
        for memory in loaded.values():
            other = table.find_digest(memory.digest)
            if other is not None and (other.adapter, other.number) not in wanted:
                state = WorkerAdapterState.DRAINING if memory.is_retired else WorkerAdapterState.READY
                adapters.append(_entry(other, state, [], memory))
        return dataclasses.replace(self._identity, observed_revision=table.revision, adapters=tuple(adapters))


def _entry(
    version: Version, state: WorkerAdapterState, served: list[str], memory: LoadedAdapter | None, failure: str = ""
) -> WorkerAdapter:
    return WorkerAdapter(
        adapter=version.adapter,
        version=version.number,
        digest=version.digest,
        state=state,
        aliases=tuple(served),
        failure=failure,
        size_bytes=memory.size_bytes if memory else 0,
        in_flight=memory.leases if memory else 0,
    )


def _split(alias: Alias, versions: dict[tuple[str, int], RegistryVersion]) -> Split:
    """What the worker keeps of an alias: shadow targets get no answers that anyone sees."""
    return Split(
        tuple(
            Side(to_version(versions[alias.adapter, target.version]), target.weight)
            for target in alias.targets
            if not target.shadow
        )
    )
