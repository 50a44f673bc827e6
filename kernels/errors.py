"""What an op refuses before it touches memory.

KernelError
├── UnsupportedDevice     no kernels for where the tensors are
└── UnsupportedTensor     a dtype, shape or stride that the op is not made for; also a ValueError
"""

from __future__ import annotations


class KernelError(Exception):
    """An op cannot run."""


class UnsupportedDevice(KernelError):
    """This release has no kernels for the device."""


class UnsupportedTensor(KernelError, ValueError):
    """The op is not made for such a tensor."""
