"""Where to compute: on a CUDA device that every kernel runs on, or on the CPU. Chosen once, when a process starts."""

from __future__ import annotations

import logging

import torch

from kernels.errors import UnsupportedDevice

log = logging.getLogger(__name__)


def choose_device(asked: str) -> torch.device:
    """The device for "cpu", "cuda" or "auto", which is a CUDA device where one will do and says once why it is not.

    Raises UnsupportedDevice where "cuda" cannot be had, with what was found and what is needed, and for another name.
    """
    if asked == "cpu":
        return torch.device("cpu")
    if asked not in ("auto", "cuda"):
        raise UnsupportedDevice(f"expected the device auto, cpu or cuda, found {asked!r}")
    try:
        return _cuda()
    except UnsupportedDevice as error:
        if asked == "cuda":
            raise
        log.info("the device is the CPU: %s", error)
        return torch.device("cpu")


def _cuda() -> torch.device:
    if not torch.cuda.is_available():
        raise UnsupportedDevice(f"expected a CUDA device and its driver, torch {torch.__version__} finds none")
    from kernels.cuda.module import facts  # only now, as most machines have no use for it

    device = torch.device("cuda", torch.cuda.current_device())
    facts(device)
    return device
