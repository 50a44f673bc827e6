from __future__ import annotations

import logging

import pytest
import torch

from kernels import UnsupportedDevice
from kernels.device import choose_device
from tests.kernels.cuda.simulator.device import Device, installed


@pytest.fixture
def has_cuda(monkeypatch):
    """torch finds a device; whether it will do is for the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_will_do_is_taken(has_cuda):
    with installed(Device()):
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)


def test_cuda_without_a_device_says_what_was_found(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedDevice, match=r"expected a CUDA device and its driver, torch 2\S+ finds none"):
        choose_device("cuda")


def test_cuda_on_an_old_device_says_what_was_found(has_cuda):
    with (
        installed(Device(architecture="compute_75")),
        pytest.raises(UnsupportedDevice, match=r"or later, found .* sm_75"),
    ):
        choose_device("cuda")


def test_auto_falls_back_to_the_cpu_and_says_why_once(has_cuda, caplog):
    with installed(Device(architecture="compute_75")), caplog.at_level(logging.INFO):
        assert choose_device("auto") == torch.device("cpu")
    (record,) = caplog.records
    assert record.message.startswith("the device is the CPU: expected a device of sm_80 or later")


def test_another_name_is_refused():
    with pytest.raises(UnsupportedDevice, match="expected the device auto, cpu or cuda, found 'tpu'"):
        choose_device("tpu")
