"""A promotion is served when every live worker says so, and says who does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from registry import fleet
from registry.errors import AliasMoved
from registry.fleet import NotConverged, Standing, WorkerStanding, standings, wait_until_served
from registry.resources import (
    Adapter,
    Alias,
    AliasTarget,
    Worker,
    WorkerAdapter,
    WorkerAdapterState,
    WorkerState,
)

OLD, NEW = f"sha256:{'0' * 64}", f"sha256:{'1' * 64}"
ALIAS = Alias("sql", "production", (AliasTarget(2, NEW),), revision=7)
SERVING = [("2", NEW, WorkerAdapterState.READY, ("production",), "")]
LOADING = [("1", OLD, WorkerAdapterState.READY, ("production",), ""), ("2", NEW, WorkerAdapterState.LOADING, (), "")]
BOTH = [("1", OLD, WorkerAdapterState.READY, ("production",), ""), *SERVING]
FAILED = [("2", NEW, WorkerAdapterState.FAILED, (), "NaN in lora_A")]


def worker(
    name: str, adapters: Sequence[tuple[Any, ...]], *, revision: int = 7, state: WorkerState = WorkerState.LIVE
) -> Worker:
    entries = tuple(
        WorkerAdapter("sql", int(number), digest, how, aliases, failure)
        for number, digest, how, aliases, failure in adapters
    )
    return Worker(name, "", "base", OLD, revision, entries, state)


class FakeClient:
    """Workers as a script of rounds; the last one repeats."""

    def __init__(self, *rounds: list[Worker], alias: Alias = ALIAS) -> None:
        self.rounds = list(rounds)
        self.alias = alias

    async def list_workers(self, *, base_model: str = "", adapter: str = "") -> list[Worker]:
        assert (base_model, adapter) == ("base", "sql")
        return self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]

    async def get_adapter(self, name: str) -> Adapter:
        return Adapter(name, "base", 2, (self.alias,))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses too short to notice."""
    monkeypatch.setattr(fleet, "POLL_S", 0.001)


async def wait(client: FakeClient, *, timeout_s: float = 5.0) -> list[list[WorkerStanding]]:
    seen: list[list[WorkerStanding]] = []
    await wait_until_served(
        client,  # type: ignore[arg-type]  # two of its methods are all that is used
        ALIAS,
        base_model="base",
        timeout_s=timeout_s,
        on_change=seen.append,
    )
    return seen


@pytest.mark.parametrize(
    ("found", "standing"),
    [
        (worker("w", SERVING), Standing.SERVING),
        (worker("w", LOADING), Standing.LOADING),
        (worker("w", FAILED), Standing.FAILED),
        (worker("w", FAILED, revision=6), Standing.WAITING),
        (worker("w", []), Standing.WAITING),
        (worker("w", [("2", NEW, WorkerAdapterState.READY, ("canary",), "")]), Standing.WAITING),
        (worker("w", SERVING, revision=6), Standing.WAITING),
        (worker("w", BOTH), Standing.WAITING),
    ],
)
def test_a_report_says_where_a_worker_is(found: Worker, standing: Standing) -> None:
    assert [one.standing for one in standings([found], ALIAS)] == [standing]


@pytest.mark.parametrize(
    ("found", "standing"),
    [
        (worker("w", BOTH), Standing.SERVING),
        (worker("w", SERVING), Standing.WAITING),
        (worker("w", [*BOTH[:1], *FAILED]), Standing.FAILED),
        (worker("w", [*BOTH[:1], ("2", NEW, WorkerAdapterState.LOADING, (), "")]), Standing.LOADING),
        (worker("w", BOTH, revision=6), Standing.WAITING),
    ],
)
def test_a_split_is_served_when_all_its_targets_are(found: Worker, standing: Standing) -> None:
    split = Alias("sql", "production", (AliasTarget(1, OLD, 9000), AliasTarget(2, NEW, 1000)), revision=7)
    assert [one.standing for one in standings([found], split)] == [standing]


def test_a_lost_worker_is_not_waited_for() -> None:
    assert standings([worker("w", LOADING, state=WorkerState.LOST)], ALIAS) == []


async def test_waiting_ends_when_every_worker_serves() -> None:
    seen = await wait(
        FakeClient(
            [worker("a", LOADING), worker("b", [])],
            [worker("a", LOADING), worker("b", [])],
            [worker("a", SERVING), worker("b", LOADING)],
            [worker("a", SERVING), worker("b", SERVING)],
        )
    )
    assert [[one.standing.value for one in now] for now in seen] == [
        ["loading", "waiting"],
        ["serving", "loading"],
        ["serving", "serving"],
    ]


async def test_no_live_worker_means_nothing_to_wait_for() -> None:
    assert await wait(FakeClient([worker("w", LOADING, state=WorkerState.LOST)])) == [[]]


async def test_a_worker_that_failed_is_named_with_its_reason_once_all_have_settled() -> None:
    client = FakeClient([worker("a", FAILED), worker("b", LOADING)], [worker("a", FAILED), worker("b", SERVING)])
    with pytest.raises(NotConverged, match="1 of 2 live workers could not load it") as caught:
        await wait(client)
    assert caught.value.reasons == ("a: NaN in lora_A",)


async def test_time_that_is_up_names_who_is_behind() -> None:
    with pytest.raises(NotConverged, match=r"did not serve it within 0\.01 s") as caught:
        await wait(FakeClient([worker("a", SERVING), worker("b", LOADING)]), timeout_s=0.01)
    assert caught.value.reasons == ("b: loading",)


async def test_an_alias_that_moves_on_ends_the_waiting() -> None:
    moved = Alias("sql", "production", (AliasTarget(1, OLD),), revision=8)
    with pytest.raises(AliasMoved, match="moved to sql:1"):
        await wait(FakeClient([worker("a", LOADING)], alias=moved))
