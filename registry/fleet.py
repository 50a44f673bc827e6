"""Whether the workers serve what an alias says. Knows reports of workers; knows neither terminal nor RPC.

A worker that is live serves an alias when it has seen the promotion and its report lists exactly the alias's targets
as READY under it. It failed when its report says so of a target. One whose lease ran out serves nobody and is not
waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from registry.client import RegistryClient
from registry.errors import AliasMoved
from registry.resources import Alias, Worker, WorkerAdapterState, WorkerState
from rpc.errors import DomainError

POLL_S = 0.25


class Standing(StrEnum):
    """Where one worker is with what the alias points at."""

    WAITING = "waiting"
    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerStanding:
    """One live worker; `failure` says why it failed."""

    worker: str
    standing: Standing
    failure: str = ""


class NotConverged(DomainError):
    """Not every live worker serves what the alias points at."""

    code, reason = "FAILED_PRECONDITION", "FLEET_NOT_CONVERGED"
    domain: ClassVar[str] = "loraplex.registry"


def standings(workers: Sequence[Worker], alias: Alias) -> list[WorkerStanding]:
    """Where each live worker is with the alias's targets; `alias.revision` is the promotion's."""
    return [_standing(worker, alias) for worker in workers if worker.state is WorkerState.LIVE]


def _standing(worker: Worker, alias: Alias) -> WorkerStanding:
    wanted = {target.version for target in alias.targets if not target.shadow}
    here = [one for one in worker.adapters if one.adapter == alias.adapter]
    served = {one.version for one in here if one.state is WorkerAdapterState.READY and alias.alias in one.aliases}
    found = [one for one in here if one.version in wanted]
    # A report from before the promotion may tell of an earlier attempt, or of other weights.
    if worker.observed_revision >= alias.revision:
        if served == wanted:
            return WorkerStanding(worker.id, Standing.SERVING)
        failure = next((one.failure for one in found if one.state is WorkerAdapterState.FAILED), None)
        if failure is not None:
            return WorkerStanding(worker.id, Standing.FAILED, failure or "no reason given")
    is_loading = any(one.state is WorkerAdapterState.LOADING for one in found)
    return WorkerStanding(worker.id, Standing.LOADING if is_loading else Standing.WAITING)


async def wait_until_served(
    client: RegistryClient,
    alias: Alias,
    *,
    base_model: str,
    timeout_s: float,
    on_change: Callable[[list[WorkerStanding]], None],
) -> list[WorkerStanding]:
    """Waits until every live worker of the base model serves the alias's targets; empty when none is live.

    Raises NotConverged when one failed or time is up, AliasMoved when the alias points elsewhere meanwhile.
    """
    give_up = time.monotonic() + timeout_s
    seen: list[WorkerStanding] | None = None
    while True:
        now = standings(await client.list_workers(base_model=base_model, adapter=alias.adapter), alias)
        if now != seen:
            on_change(now)
            seen = now
        if all(one.standing is Standing.SERVING for one in now):
            return now
        if all(one.standing in (Standing.SERVING, Standing.FAILED) for one in now):
            raise _not_converged(now, "could not load it")
        if time.monotonic() > give_up:
            raise _not_converged(now, f"did not serve it within {timeout_s:g} s")
        await _check_alias(client, alias)
        await asyncio.sleep(POLL_S)


def _not_converged(now: Sequence[WorkerStanding], what: str) -> NotConverged:
    behind = [one for one in now if one.standing is not Standing.SERVING]
    reasons = tuple(f"{one.worker}: {one.failure or one.standing}" for one in behind)
    return NotConverged(f"{len(behind)} of {len(now)} live workers {what}", reasons=reasons)


async def _check_alias(client: RegistryClient, alias: Alias) -> None:
    adapter = await client.get_adapter(alias.adapter)
    current = next((one for one in adapter.aliases if one.alias == alias.alias), None)
    if current is None or current.targets != alias.targets:
        where = " and ".join(f"{alias.adapter}:{one.version}" for one in current.targets) if current else "nothing"
        raise AliasMoved(f"{alias.adapter}@{alias.alias} was moved to {where} while waiting")
