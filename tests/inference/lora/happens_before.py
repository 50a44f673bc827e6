"""A stand-in for torch's streams and events that knows what happens before what, and reports races on memory.

Each stream and each host thread has a vector clock (Mattern 1989): what is queued on a stream comes after what the
stream did before and after what the thread knows; an event carries a stream's clock to whoever waits for it, and
`synchronize` carries it to the thread. Two accesses to the same bytes, one of them a write, race unless one is before
the other. Operations run at once, on the host's memory; which memory they meet is read off torch's own schemas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = Counter[str]
COMPUTE = "compute"


class Race(AssertionError):
    """Two accesses that nothing orders."""


@dataclass(frozen=True)
class Access:
    """Bytes that one operation of a stream met. `time` is its place in its own stream."""

    stream: str
    time: int
    what: str
    first: int
    end: int
    is_write: bool


class FakeStream:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.clock: Clock = Counter()

    def wait_event(self, event: FakeEvent) -> None:
        self.clock |= event.clock | self.world.host

    def wait_stream(self, other: FakeStream) -> None:
        self.clock |= other.clock | self.world.host

    def synchronize(self) -> None:
        self.world.host |= self.clock

    def queue(self) -> int:
        self.clock |= self.world.host
        self.clock[self.name] += 1
        return self.clock[self.name]


class FakeEvent:
    """Never recorded, it stands for nothing, as CUDA's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock: Clock = Counter()

    def record(self, stream: FakeStream | None = None) -> None:
        source = stream or self.world.stream
        source.clock |= self.world.host
        self.clock = Counter(source.clock)


class World(TorchDispatchMode):
    """Streams, threads and every access so far. Threads take turns in the test, by `thread`."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = [FakeStream(self, COMPUTE)]
        self.stream = self.streams[0]
        self.host: Clock = Counter()
        self._hosts: dict[str, Clock] = {}
        self._accesses: list[Access] = []
        self._watched: list[tuple[int, int]] = []

    @property
    def compute(self) -> FakeStream:
        return self.streams[0]

    @contextmanager
    def thread(self, name: str) -> Iterator[None]:
        """What is called inside, a thread of this name calls; each has its own current stream, at first compute's."""
        before = self.host, self.stream
        self.host, self.stream = self._hosts.setdefault(name, Counter()), self.compute
        yield
        self._hosts[name] = self.host
        self.host, self.stream = before

    def tell(self, teller: str, listener: str) -> None:
        """A message from one thread to another, such as an adapter's publication."""
        self._hosts[listener] = self._hosts.get(listener, Counter()) | self._hosts.get(teller, Counter())

    def watch(self, *tensors: Tensor) -> None:
        """Only what these hold is looked at: memory that torch gives out again and again has no story."""
        self._watched += [_span(tensor) for tensor in tensors]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
            written = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            written += [kwargs["out"]] if "out" in kwargs else []
            self._note(func, args, kwargs, written)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, written: list[Any]) -> None:
        time = self.stream.queue()
        targets = [one for one in tree_leaves(written) if isinstance(one, Tensor)]
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.numel():
                is_write = any(tensor is target for target in targets)
                if is_write and func.__name__.startswith("index_put_"):
                    [indices] = args[1]
                    spans = [_span(tensor[index]) for index in indices.tolist()]
                else:
                    spans = [_span(tensor)]
                for first, end in spans:
                    if any(begin <= first and end <= last for begin, last in self._watched):
                        self._meet(Access(self.stream.name, time, func.__name__, first, end, is_write))

    def _meet(self, new: Access) -> None:
        for old in self._accesses:
            if (
                (old.is_write or new.is_write)
                and old.first < new.end
                and new.first < old.end
                and self.stream.clock[old.stream] < old.time
            ):
                raise Race(f"{new.what} on {new.stream} meets {old.what} on {old.stream}, and neither waits")
        self._accesses.append(new)


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


@contextmanager
def fake_streams() -> Iterator[World]:
    """Where torch's CUDA streams would be, a World's; its operations are watched inside."""
    world = World()

    def make_stream(device: Any = None) -> FakeStream:
        world.streams.append(FakeStream(world, f"stream {len(world.streams)}"))
        return world.streams[-1]

    @contextmanager
    def use(stream: FakeStream) -> Iterator[None]:
        before, world.stream = world.stream, stream
        yield
        world.stream = before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", make_stream)
        patch.setattr(torch.cuda, "Event", lambda: FakeEvent(world))
        patch.setattr(torch.cuda, "stream", use)
        patch.setattr(torch.cuda, "current_stream", lambda _=None: world.stream)
        with world:
            yield world
