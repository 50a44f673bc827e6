"""Loads beside steps: nothing races, nothing waits that need not, and each thing that orders them is needed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

import kernels
from inference.engine.kv_cache import KVCache
from inference.engine.request import Request, SamplingParams, SlotUse
from inference.engine.runner import Runner
from inference.engine.sequence import Chunk, Sequence
from inference.lora import bank as bank_module
from inference.lora.bank import Bank
from inference.lora.extents import Extent
from inference.lora.ordering import BesideSteps, InTurn, ordering_of
from inference.lora.weights import Layout
from inference.models.sites import SitePart, SiteShape
from kernels import reference
from tests.inference.lora.happens_before import COMPUTE, Race, fake_streams

RANK, WIDTH = 2, 8
SLAB = 2 * RANK * WIDTH  # A and B
EXTENTS = [Extent(begin, begin + 64 * -(-4 * SLAB // 64)) for begin in (0, 256, 512)]
LAYOUT = Layout(
    SLAB,
    a_start=np.array([0]),
    ranks=np.array([RANK], np.int32),
    b_start=np.array([RANK * WIDTH]),
    scales=np.array([1], np.float32),
    kinds=np.array([0], np.int32),
    vector_start=np.array([0]),
    places=(),
    norms=(),
)


class OneSite:
    """A model of one site. Reads the weights of its rows' adapters; fails after that, if told so."""

    is_failing = False

    def forward(self, batch, kv) -> torch.Tensor:
        x = torch.ones(batch.token_ids.shape[0], WIDTH)
        y = torch.zeros_like(x)
        if batch.lora is not None:
            batch.lora.add(0, x, y)
        if self.is_failing:
            raise RuntimeError("out of memory")
        return y[batch.logit_rows]


class Scene:
    """An engine's thread and a loader's thread around one bank, in an order that the test writes down."""

    def __init__(self, world, ordering) -> None:
        self.world = world
        site = SiteShape("o", WIDTH, (SitePart("model.layers.0.self_attn.o_proj", WIDTH),))
        self.bank = Bank([site], capacity_bytes=1024, dtype=torch.float32, max_slots=4)
        self.bank._ordering = ordering
        tables = self.bank._sites[0]
        world.watch(self.bank._arena, tables.a_start, tables.ranks, tables.b_start, tables.scales)
        self.model = OneSite()
        kv = KVCache(num_layers=1, num_blocks=1, block_size=8, num_kv_heads=1, head_dim=8, dtype=torch.float32)
        self.runner = Runner(self.model, kv, self.bank)

    def step(self, *slots: int, samples: bool = False) -> None:
        """The engine computes a row for each of the slots; a chunk of a prompt unless it samples."""
        chunks = []
        for slot in slots:
            uses = (SlotUse(slot, f"adapter of {slot}"),)
            sequence = Sequence(Request("r", (1, 2), SamplingParams(1), uses=uses), 0, blocks=[0])
            chunks.append(Chunk(sequence, 0, 1, samples=samples))
        with self.world.thread("engine"):
            self.runner.run(chunks)

    def load(self, slot: int, extent: Extent) -> None:
        """A loader, told by the loop what the engine has ended, writes; the loop publishes, and tells the engine."""
        self.world.tell("engine", "loader")
        with self.world.thread("loader"):
            self.bank.write(slot, extent, torch.randn(SLAB), LAYOUT)
        self.bank.publish(slot, f"adapter of {slot}")
        self.world.tell("loader", "engine")


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(kernels, "_ops", lambda _: reference)
    monkeypatch.setattr(bank_module, "_copy", lambda source, target: target.copy_(source))  # as to a device
    with fake_streams() as world:
        yield world


def churn(scene: Scene) -> None:
    """Loads beside steps, first uses, and an extent and a slot that are written again while a step may read them."""
    scene.load(0, EXTENTS[0])
    scene.step(0)
    scene.load(1, EXTENTS[1])
    scene.step(0, 1)
    scene.bank.disown(1)  # its request was cancelled: nothing has waited for the step
    scene.load(2, EXTENTS[1])
    scene.step(0, 2)
    scene.bank.disown(0)
    scene.load(0, EXTENTS[2])
    scene.step(0, 2)
    scene.model.is_failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        scene.step(2)
    scene.model.is_failing = False
    scene.bank.disown(2)
    scene.load(3, EXTENTS[1])
    scene.step(0, 3)


def test_loads_never_race_with_steps(world):
    churn(Scene(world, BesideSteps(torch.device("cpu"))))


def test_steps_never_wait_for_a_load(world):
    scene = Scene(world, BesideSteps(torch.device("cpu")))
    scene.load(0, EXTENTS[0])
    scene.step(0)
    known = dict(world.compute.clock)
    with world.thread("loader"), scene.bank._ordering.writing():
        scene.bank._arena[64:128].fill_(1.0)
        scene.step(0)
    side = {stream.name for stream in world.streams} - {COMPUTE}
    assert side, "writes have no stream of their own"
    assert all(world.compute.clock[name] == known.get(name, 0) for name in side), "a step waits for a write under way"


def test_a_write_waits_for_the_steps_before_it_and_for_no_later_one(world):
    scene = Scene(world, BesideSteps(torch.device("cpu")))
    scene.load(0, EXTENTS[0])
    scene.step(0)
    before = world.compute.clock[COMPUTE]
    with world.thread("loader"), scene.bank._ordering.writing():
        scene.step(0)
        assert world.compute.clock[COMPUTE] > before
        assert world.stream.clock[COMPUTE] == before


class NoEvent(BesideSteps):
    def mark_step(self):
        pass


class EventBeforeTheStep(BesideSteps):
    """Each mark stands for the step before."""

    def mark_step(self):
        self._last_step.clock, self._next = getattr(self, "_next", self._last_step.clock), self._recorded()

    def _recorded(self):
        event = torch.cuda.Event()
        event.record()
        return event.clock


class EventOfTheWrites(BesideSteps):
    def mark_step(self):
        self._last_step.record(self._side)


class NoWait(BesideSteps):
    @contextlib.contextmanager
    def writing(self):
        with torch.cuda.stream(self._side):
            yield
        self._side.synchronize()


class WaitAfterwards(BesideSteps):
    @contextlib.contextmanager
    def writing(self):
        with torch.cuda.stream(self._side):
            yield
        self._side.wait_event(self._last_step)
        self._side.synchronize()


class WrongStreamWaits(BesideSteps):
    @contextlib.contextmanager
    def writing(self):
        torch.cuda.current_stream().wait_event(self._last_step)
        with torch.cuda.stream(self._side):
            yield
        self._side.synchronize()


class PublishedUnwritten(BesideSteps):
    @contextlib.contextmanager
    def writing(self):
        self._side.wait_event(self._last_step)
        with torch.cuda.stream(self._side):
            yield


class WrongStreamSynchronised(BesideSteps):
    @contextlib.contextmanager
    def writing(self):
        self._side.wait_event(self._last_step)
        with torch.cuda.stream(self._side):
            yield
        torch.cuda.current_stream().synchronize()


class NothingAtAll(BesideSteps):
    def mark_step(self):
        pass

    @contextlib.contextmanager
    def writing(self):
        with torch.cuda.stream(self._side):
            yield


FAULTS = [
    NoEvent,
    EventBeforeTheStep,
    EventOfTheWrites,
    NoWait,
    WaitAfterwards,
    WrongStreamWaits,
    PublishedUnwritten,
    WrongStreamSynchronised,
    NothingAtAll,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_ordering_is_a_race(fault, world):
    with pytest.raises(Race):
        churn(Scene(world, fault(torch.device("cpu"))))


def test_a_step_that_fails_is_marked_too(world, monkeypatch):
    scene = Scene(world, BesideSteps(torch.device("cpu")))
    scene.load(0, EXTENTS[0])
    scene.model.is_failing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        scene.step(0)
    scene.bank.disown(0)
    scene.load(1, EXTENTS[0])


def test_the_cpu_needs_no_order():
    assert isinstance(ordering_of(torch.device("cpu")), InTurn)
