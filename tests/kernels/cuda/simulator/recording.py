"""A stand-in for a CUDA graph: what a computation asks of torch and of the device is recorded, and done again.

As of a graph, everything that the host decided stays as it was: the sizes, the grids, the scalars, the addresses. A
replay does the same operations on the memory that they had, whose contents are spoiled first. What a capture forbids,
reading the device's memory from the host, is an error while one is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.kernels.cuda.simulator.device import Device

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select", "unique", "_unique2")
HOST_METHODS = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__")


class HostRead(AssertionError):
    """A captured step waited for the device."""


class RecordedCapture:
    """`inference.engine.graphs.Capture` on a simulated device. num_captures and num_replays count."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        compute()
        recorder = _Recorder()
        with recorder, _no_reads(), self._device.recording(recorder.steps):
            compute()
        self.num_captures += 1
        return partial(self._replay, recorder)

    def _replay(self, recorder: _Recorder) -> None:
        self.num_replays += 1
        for tensor in recorder.made:
            tensor.view(torch.uint8).fill_(0xFF)  # NaN in every float
        for step in recorder.steps:
            step()


class _Recorder(TorchDispatchMode):
    """`steps` do everything again; `made` are the tensors that did not exist before."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__.split(".")[0] in READS:
            raise HostRead(f"{func} reads the device's memory")
        out = func(*args, **kwargs)
        self._record(partial(func, *args, **kwargs), (args, kwargs), out)
        return out

    def opaque(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """One step, whatever it does inside."""
        with _disable_current_modes(), _reads_allowed():
            out = function(*args, **kwargs)
        self._record(partial(function, *args, **kwargs), (args, kwargs), out)
        return out

    def _record(self, again: Callable[[], Any], inputs: Any, out: Any) -> None:
        known = {one.untyped_storage().data_ptr() for one in _tensors(inputs)}
        outputs = _tensors(out)
        made = [one.untyped_storage().data_ptr() not in known for one in outputs]
        self.made += [one for one, is_new in zip(outputs, made, strict=True) if is_new and one.numel()]

        def step() -> None:
            for target, source, is_new in zip(outputs, _tensors(again()), made, strict=True):
                if is_new:
                    target.copy_(source)

        self.steps.append(step)


def _tensors(tree: Any) -> list[Tensor]:
    """Those of a tree that lie in plain memory: weights packed by oneDNN do not, and never change."""
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor) and one.layout == torch.strided]


def opaque(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that a recording takes as one operation, as it would a kernel of torch's own."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        if isinstance(mode, _Recorder):
            return mode.opaque(function, *args, **kwargs)
        return function(*args, **kwargs)

    return call


_ORIGINALS = {name: getattr(Tensor, name) for name in HOST_METHODS}


@contextmanager
def _no_reads() -> Iterator[None]:
    def refuse(name: str) -> Callable[..., Any]:
        def method(tensor: Tensor, *_: Any, **__: Any) -> Any:
            raise HostRead(f"Tensor.{name} reads the device's memory")

        return method

    with pytest.MonkeyPatch.context() as patch:
        for name in HOST_METHODS:
            patch.setattr(Tensor, name, refuse(name))
        yield


@contextmanager
def _reads_allowed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, method in _ORIGINALS.items():
            patch.setattr(Tensor, name, method)
        yield
