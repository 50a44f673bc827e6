"""Compiled kernels and their launches: the only place that imports CuPy.

A kernel is compiled once per file, dtype and device, by CuPy, which keeps the machine code on disk. A launch goes to
the stream that torch uses at that moment: CuPy does not follow torch's stream, and a CUDA graph's capture changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cuda.source import flatten, options
from kernels.errors import UnsupportedDevice, UnsupportedTensor

MIN_CAPABILITY = 80  # sm_80 brought cp.async and bfloat16 to the tensor cores

Argument = Tensor | np.int32 | np.int64 | np.float32


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry of one file."""

    file: str
    name: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What choices depend on. capability: 90 for sm_90."""

    name: str
    capability: int
    num_processors: int


@dataclass(frozen=True, slots=True)
class _Stream:
    """torch's stream as CuPy's launch takes it. Made anew for each launch, and never a cupy.cuda.Stream: that destroys
    the stream behind it when it is collected, which `from_external` of some releases does not keep it from."""

    ptr: int


def launch(
    kernel: Kernel,
    arguments: tuple[Argument, ...],
    *,
    grid: tuple[int, ...],
    num_threads: int,
    dtype: torch.dtype,
    device: torch.device,
    shared_bytes: int = 0,
) -> None:
    """Queues a kernel on torch's current stream of a device; a grid without blocks is nothing to do.

    Tensors go as their addresses, scalars by their own width: CuPy would send a plain int as 8 bytes. A tensor's memory
    stays alive as torch gives it to another tensor of the same stream only.
    """
    if 0 in grid:
        return  # CuPy would make one block of it
    if max(grid[1:], default=0) > 65535:
        raise UnsupportedTensor(f"expected at most 65535 blocks beside the first dimension, found a grid of {grid}")
    stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
    words = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    function = _function(kernel, dtype, device)
    function(grid, (num_threads,), words, shared_mem=shared_bytes, stream=stream)


def load(kernel: Kernel, *, dtype: torch.dtype, device: torch.device) -> None:
    """Compiles a kernel, or takes it from CuPy's disk cache, so that no launch waits and a capture may begin."""
    _function(kernel, dtype, device)


@cache
def facts(device: torch.device) -> Facts:
    """Raises UnsupportedDevice for a device that the kernels are not made for, and where CuPy finds no driver."""
    require_cupy()
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    if capability < MIN_CAPABILITY:
        raise UnsupportedDevice(
            f"expected a device of sm_{MIN_CAPABILITY} or later, found {properties.name}, sm_{capability}"
        )
    return Facts(properties.name, capability, properties.multi_processor_count)


@cache
def require_cupy() -> Any:
    """CuPy, on a machine that it can use. Raises UnsupportedDevice."""
    try:
        import cupy
    except ImportError as error:
        raise UnsupportedDevice(
            f"expected CuPy for a CUDA device (pip install 'loraplex[gpu]'), found {error}"
        ) from error
    if not cupy.cuda.is_available():
        raise UnsupportedDevice("expected an NVIDIA driver and a device, CuPy found none")
    return cupy


@cache
def _function(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> Callable[..., None]:
    """A kernel that is loaded. CuPy's RawKernel would load it at its first launch, which no capture forgives."""
    facts(device)  # refuses what could not compile
    with require_cupy().cuda.Device(device.index or 0):
        function: Callable[..., None] = _module(kernel.file, dtype, device).get_function(kernel.name).kernel
    return function


@cache
def _module(file: str, dtype: torch.dtype, device: torch.device) -> Any:
    cupy = require_cupy()
    with cupy.cuda.Device(device.index or 0):
        module = cupy.RawModule(code=flatten(file), options=options(dtype))
        module.compile()
    return module
