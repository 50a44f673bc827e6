"""Random calls at once, on two registries of one database: there is an order in which one caller alone would have got
the same answers, and it is the order of the revisions. Every watcher ends where the database is.

A call that changed something has its revision. One that changed nothing, or was refused, must have an answer that the
model gives somewhere between the first and the last change of its round.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapter.manifest import manifest_of_adapter
from loraplex.registry.v1 import registry_service_pb2 as pb
from registry import messages
from registry.errors import RegistryError
from registry.resources import (
    Alias,
    AliasChanged,
    Change,
    Progress,
    SnapshotItem,
    VersionState,
    WatchMessage,
)

SEEDS = (1, 2, 3)
ALIASES = ("production", "canary")


@dataclass(frozen=True)
class Step:
    """One call: what, about which version or seed, which alias, and for promote what it expects there."""

    what: str
    number: int
    alias: str = "production"
    expected: int | None = None


STEPS = st.one_of(
    st.builds(Step, st.just("register"), st.sampled_from(SEEDS)),
    st.builds(
        Step,
        st.just("promote"),
        st.integers(1, 4),
        st.sampled_from(ALIASES),
        st.none() | st.integers(0, 3),
    ),
    st.builds(Step, st.just("rollback"), st.just(0), st.sampled_from(ALIASES)),
    st.builds(Step, st.sampled_from(["retire", "unretire"]), st.integers(1, 4)),
)
ROUNDS = st.lists(st.lists(STEPS, min_size=1, max_size=6), min_size=1, max_size=5)


@dataclass(frozen=True)
class Model:
    """One adapter: the seeds of its versions, which are retired, and where each alias pointed, the last one now."""

    seeds: tuple[int, ...] = ()
    retired: frozenset[int] = frozenset()
    aliases: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def now(self) -> dict[str, int]:
        """Where the aliases point."""
        return {alias: past[-1] for alias, past in self.aliases.items()}

    def call(self, step: Step) -> tuple[str, Model]:
        """What one caller alone is answered: `changed`, `same` or the name of an error; and the model after it."""
        if step.what == "register":
            is_new = step.number not in self.seeds
            return ("changed", replace(self, seeds=(*self.seeds, step.number))) if is_new else ("same", self)
        if not self.seeds:
            return "AdapterNotFound", self
        if step.number > len(self.seeds):
            return "VersionNotFound", self
        calls = {"promote": self.promote, "rollback": self.roll_back, "retire": self.retire, "unretire": self.unretire}
        return calls[step.what](step)

    def roll_back(self, step: Step) -> tuple[str, Model]:
        past = self.aliases.get(step.alias)
        if past is None:
            return "AliasNotFound", self
        earlier = [number for number in past if number != past[-1]]
        return self.point(step.alias, earlier[-1]) if earlier else ("NoEarlierTarget", self)

    def promote(self, step: Step) -> tuple[str, Model]:
        if step.number in self.retired:
            return "VersionRetired", self
        if step.expected is not None and step.expected != self.now().get(step.alias, 0):
            return "AliasMoved", self
        if self.now().get(step.alias) == step.number:
            return "same", self
        return self.point(step.alias, step.number)

    def point(self, alias: str, number: int) -> tuple[str, Model]:
        if number in self.retired:
            return "VersionRetired", self
        return "changed", replace(self, aliases=self.aliases | {alias: (*self.aliases.get(alias, ()), number)})

    def retire(self, step: Step) -> tuple[str, Model]:
        if step.number in self.retired:
            return "same", self
        if step.number in self.now().values():
            return "VersionInUse", self
        return "changed", replace(self, retired=self.retired | {step.number})

    def unretire(self, step: Step) -> tuple[str, Model]:
        if step.number not in self.retired:
            return "VersionNotRetired", self
        return "changed", replace(self, retired=self.retired - {step.number})


async def ask(server: Any, adapter: str, step: Step, manifests: dict[int, Any], request_id: str) -> str:
    """`answered`, or the name of the error."""
    stub = server.stub
    about = {"adapter": adapter, "request_id": request_id}
    requests: dict[str, tuple[Any, Any]] = {
        "register": (
            stub.RegisterAdapterVersion,
            lambda: pb.RegisterAdapterVersionRequest(**about, base_model="base", manifest=manifests[step.number]),
        ),
        "promote": (
            stub.PromoteAdapterVersion,
            lambda: pb.PromoteAdapterVersionRequest(
                **about, version=step.number, alias=step.alias, expected_version=step.expected
            ),
        ),
        "rollback": (stub.RollbackAlias, lambda: pb.RollbackAliasRequest(**about, alias=step.alias)),
        "retire": (stub.RetireAdapterVersion, lambda: pb.RetireAdapterVersionRequest(**about, version=step.number)),
        "unretire": (
            stub.UnretireAdapterVersion,
            lambda: pb.UnretireAdapterVersionRequest(**about, version=step.number),
        ),
    }
    method, make = requests[step.what]
    try:
        await server.ask(method, make())
    except RegistryError as error:
        return type(error).__name__
    return "answered"


@pytest.fixture
async def servers(registry_server: Any, serve_here: Any, new_base_model: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Two registries of one database, with a base model."""
    await registry_server.client.create_base_model("base", new_base_model(0))
    async with serve_here(registry_server.settings) as other:
        yield registry_server, other


@pytest.fixture
async def manifests(servers: tuple[Any, Any], new_adapter: Any) -> dict[int, Any]:
    """Of an adapter for each seed, whose files are uploaded."""
    found = {seed: manifest_of_adapter(new_adapter(seed)) for seed in SEEDS}
    for seed, manifest in found.items():
        for file in manifest.files:
            path = new_adapter(seed) / file.path
            await servers[0].client.upload_blob(path, digest=file.digest, size_bytes=file.size_bytes)
    return {seed: messages.write_manifest(manifest) for seed, manifest in found.items()}


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.generate],  # a smaller example of a race is another race
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rounds=ROUNDS)
async def test_calls_at_once_have_an_order_in_which_each_answer_is_right(servers, manifests, rounds) -> None:
    start = (await servers[0].client.status()).revision
    adapter, end = f"adapter-{start}", asyncio.get_running_loop().create_future()
    watches = [asyncio.create_task(collect(server.client, after, end)) for server in servers for after in (start, None)]
    model, position = Model(), start
    # Without versions there is little to do.
    for number, steps in enumerate([[Step("register", 1), Step("register", 2)], *rounds]):
        model = await play(servers, adapter, number, steps, manifests, model, position)
        position = (await servers[0].client.status()).revision
    end.set_result(position)
    for told in await asyncio.wait_for(asyncio.gather(*watches), 60):
        first = told[0].revision if isinstance(told[0], Progress | Change) else None
        revisions = [one.revision for one in told if isinstance(one, Change)]
        if first is not None:
            assert revisions == list(range(start + 1, position + 1))
        assert revisions == sorted(set(revisions))
        assert aliases_in(told, adapter) == model.now()
    if model.seeds:
        found = await servers[1].client.get_adapter(adapter)
        assert {one.alias: one.targets[0].version for one in found.aliases} == model.now()
        versions = await servers[1].client.list_versions(adapter)
        assert {one.number for one in versions if one.state is VersionState.RETIRED} == model.retired
        assert len(versions) == len(model.seeds)


async def play(
    servers: Any, adapter: str, number: int, steps: list[Step], manifests: dict[int, Any], model: Model, position: int
) -> Model:
    """Makes a round's calls at once and finds their order; the model after it."""
    ids = [f"{adapter}-{number}-{index}" for index in range(len(steps))]
    answers = await asyncio.gather(
        *(ask(servers[index % 2], adapter, step, manifests, ids[index]) for index, step in enumerate(steps))
    )
    entries = await servers[0].client.admin.list_audit_entries(limit=len(steps))
    new = sorted((one for one in entries if one.revision > position), key=lambda one: one.revision)
    assert [one.revision for one in new] == list(range(position + 1, position + 1 + len(new)))
    order, states = [ids.index(one.request_id) for one in new], [model]
    for index in order:
        answer, model = model.call(steps[index])
        assert (answer, answers[index]) == ("changed", "answered"), (steps, answers, order)
        states.append(model)
    for index in set(range(len(steps))) - set(order):
        found = "same" if answers[index] == "answered" else answers[index]
        assert found in {state.call(steps[index])[0] for state in states}, (steps, answers, order)
    return model


async def collect(client: Any, after: int | None, end: asyncio.Future[int]) -> list[WatchMessage]:
    """What a watch is told until nothing is missing up to the end, once that is known."""
    told: list[WatchMessage] = []
    async with aclosing(client.watch(after_revision=after)) as watch:
        async for message in watch:
            told.append(message)
            if end.done() and not isinstance(message, SnapshotItem) and message.revision >= end.result():
                break
    return told


def aliases_in(told: list[WatchMessage], adapter: str) -> dict[str, int]:
    """Where the adapter's aliases point, as a watcher knows."""
    aliases: dict[str, int] = {}
    for message in told:
        if isinstance(message, SnapshotItem) and isinstance(message.item, Alias) and message.item.adapter == adapter:
            aliases[message.item.alias] = message.item.targets[0].version
        for event in message.events if isinstance(message, Change) else ():
            if isinstance(event.happening, AliasChanged) and event.happening.alias.adapter == adapter:
                aliases[event.happening.alias.alias] = event.happening.alias.targets[0].version
    return aliases
