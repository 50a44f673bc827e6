"""What an op refuses before it touches memory.

KernelError
├── UnsupportedDevice     no kernels for where the tensors are, or nothing to run them with
└── UnsupportedTensor     a dtype, shape or stride that the op is not made for; also a ValueError
"""

from __future__ import annotations


class KernelError(Exception):
    """An op cannot run."""


class UnsupportedDevice(KernelError):
    """There are no kernels for the device, or its driver or CuPy is missing."""


class UnsupportedTensor(KernelError, ValueError):
    """The op is not made for such a tensor."""
