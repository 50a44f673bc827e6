"""What stands in for CuPy and for torch's CUDA calls, so that the product's own launch code runs on the simulator.

Tensors lie in the host's memory; a launch gets their addresses and nothing else, as on a device. The bytes behind an
address are known because `torch.Tensor.data_ptr` is watched. Arguments are packed as CuPy 14 packs them
(cupy/cuda/function.pyx): a Python int becomes 8 bytes, a numpy scalar keeps its width, anything else is a TypeError.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.cuda.simulator import nvrtc
from tests.kernels.cuda.simulator.memory import Buffer, Traffic
from tests.kernels.cuda.simulator.simulator import Simulator

ENTRY = 'extern "C" __global__'

# What CuPy adds to a module's own options.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

FAR_BYTES = 1 << 30  # between rows, from which on nothing may lie there

SCALARS = {np.dtype(character).type for character in "?bhilqBHILQefdFD"}


@dataclass(frozen=True)
class Stream:
    """torch.cuda.Stream, as far as a launch asks."""

    cuda_stream: int


@dataclass(frozen=True)
class Launch:
    """What was launched, where, and what it moved."""

    name: str
    grid: tuple[int, ...]
    stream: int
    shared_bytes: int
    traffic: Traffic


class Device:
    """One device without silicon. `architecture` is what its PTX is compiled for, the rest what torch reports."""

    def __init__(self, *, architecture: str = "compute_90", num_processors: int = 4) -> None:
        self.architecture = architecture
        self.num_processors = num_processors
        self.is_available = True
        self.stream = Stream(7)
        self.launches: list[Launch] = []
        self._buffers: dict[int, list[Buffer]] = {}
        self._recorded: list[Callable[[], None]] | None = None

    @property
    def properties(self) -> SimpleNamespace:
        capability = int(self.architecture.removeprefix("compute_"))
        return SimpleNamespace(
            name="a simulated device",
            major=capability // 10,
            minor=capability % 10,
            multi_processor_count=self.num_processors,
        )

    def traffic(self, name: str) -> Traffic:
        """Of the one launch of a kernel."""
        (launch,) = (launch for launch in self.launches if launch.name == name)
        return launch.traffic

    def saw(self, tensor: torch.Tensor, address: int) -> None:
        """Keeps what lies behind an address until the next launch; rows that are far apart one by one."""
        if tensor.device.type != "cpu" or not tensor.numel():
            return
        is_far = tensor.dim() == 2 and tensor.stride(0) * tensor.itemsize > FAR_BYTES
        pieces = list(tensor) if is_far else [tensor]
        self._buffers[address] = []
        for piece in pieces:
            begin = address + (piece.storage_offset() - tensor.storage_offset()) * tensor.itemsize
            last = sum((size - 1) * stride for size, stride in zip(piece.shape, piece.stride(), strict=True))
            size = (last + 1) * tensor.itemsize
            data = np.frombuffer((ctypes.c_uint8 * size).from_address(begin), np.uint8)
            self._buffers[address].append(Buffer(f"{begin:#x}", begin, data))

    def launch(
        self, module: RawModule, name: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any, **how: Any
    ) -> None:
        shared_bytes, stream = how["shared_mem"], how["stream"]
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"expected tuples, found a grid of {grid} and a block of {block}")
        packed = [_pack(argument) for argument in arguments]
        buffers = [
            Buffer(f"{name}.{index}", buffer.address, buffer.data)
            for index, value in enumerate(packed)
            if value.itemsize == 8
            for buffer in self._buffers.get(int(value), ())
        ]
        unique = list({buffer.address: buffer for buffer in buffers}.values())
        self._buffers.clear()

        def run() -> None:
            traffic = module.simulator(name).launch(name, grid, block, packed, unique, shared_bytes=shared_bytes)
            self.launches.append(Launch(name, grid, stream.ptr, shared_bytes, traffic))

        run()
        if self._recorded is not None:
            self._recorded.append(run)

    @contextmanager
    def recording(self, steps: list[Callable[[], None]]) -> Iterator[None]:
        """Appends every launch to `steps`, to be done again with the same arguments on the same memory."""
        self._recorded = steps
        yield
        self._recorded = None


class RawModule:
    """cupy.RawModule for the device that is current. Each kernel is compiled alone, and no sooner than it is asked for:
    whole files, as a device has them, are compiled by the gate (test_compiled).
    """

    def __init__(self, device: Device, code: str, options: tuple[str, ...]) -> None:
        self._device, self._code, self._options = device, code, options

    def compile(self) -> None:
        assert ENTRY in self._code

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._device, self, name)

    def simulator(self, name: str) -> Simulator:
        code = _with_one_entry(self._code, name)
        return _simulator(code, self._device.architecture, (*self._options, *CUPY_OPTIONS))


@dataclass(frozen=True)
class RawKernel:
    """cupy.RawKernel, except that it cannot be called: it would load the function, which has to be done before."""

    device: Device
    module: RawModule
    name: str

    @property
    def kernel(self) -> Any:
        """cupy.cuda.Function, loaded."""
        return functools.partial(self.device.launch, self.module, self.name)


@contextmanager
def installed(device: Device) -> Iterator[Device]:
    """Puts the device where torch and CuPy would be, and takes what was compiled for another one away."""
    from kernels.cuda import module

    caches = (module.require_cupy, module._module, module._function, module.facts)
    cupy = SimpleNamespace(
        RawModule=functools.partial(RawModule, device),
        cuda=SimpleNamespace(
            is_available=lambda: device.is_available,
            Device=lambda _: _Current(),
        ),
    )
    address_of = torch.Tensor.data_ptr

    def watched(tensor: torch.Tensor) -> int:
        address = address_of(tensor)
        device.saw(tensor, address)
        return address

    with pytest.MonkeyPatch.context() as patch:
        for cached in caches:
            cached.cache_clear()
        patch.setitem(sys.modules, "cupy", cupy)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: device.properties)
        patch.setattr(torch.cuda, "current_stream", lambda _: device.stream)
        patch.setattr(torch.Tensor, "data_ptr", watched)
        patch.setattr(torch, "empty", _poisoned(torch.empty))
        yield device
    for cached in caches:
        cached.cache_clear()


class _Current:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _pack(argument: Any) -> np.generic:
    if type(argument) in SCALARS:
        return argument
    if isinstance(argument, int):
        return np.int64(argument)
    if isinstance(argument, float):
        return np.float64(argument)
    raise TypeError(f"Unsupported type {type(argument)}")


def _poisoned(empty: Any) -> Any:
    """Memory that nobody has written is not a number, so that whoever reads it is seen."""

    def run(*shape: Any, **how: Any) -> torch.Tensor:
        tensor: torch.Tensor = empty(*shape, **how)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return run


def _with_one_entry(code: str, name: str) -> str:
    """The source without its other kernels; lines keep their numbers."""
    starts = [match.start() for match in re.finditer(f"^{re.escape(ENTRY)}", code, re.MULTILINE)]
    for begin in reversed(starts):
        end = code.index("\n}\n", begin) + 3 if "\n}\n" in code[begin:] else len(code)
        text = code[begin:end]
        if not re.search(rf"\b{name}\(", text[: text.index("{")]):
            code = code[:begin] + "\n" * text.count("\n") + code[end:]
    return code


@functools.cache
def _simulator(code: str, architecture: str, options: tuple[str, ...]) -> Simulator:
    return Simulator(nvrtc.compile_ptx(code, architecture, options))
