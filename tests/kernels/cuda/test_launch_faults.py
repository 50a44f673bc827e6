"""Faults of a launch: a grid too small, an argument of another width or in another's place, too little memory.

Each is put between the ops and the launch, and one of the kernels' own cases must see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kernels.cuda
from kernels.cuda import module
from tests.kernels.cuda import cases
from tests.kernels.cuda.simulator.ptx import PtxError

CASES = (cases.rows, cases.composed_rows, cases.tiles, cases.groups, cases.look_up, cases.affine, cases.cache)
PADDING = 2  # entries and rows that stand for nothing, in the cases of look_up and rescale
Arguments = tuple[Any, ...]
Change = Callable[[Arguments, dict[str, Any]], tuple[Arguments, dict[str, Any]]]


def grid(axis: int, by: int) -> Change:
    def change(arguments: Arguments, how: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
        size = tuple(count + by if place == axis else count for place, count in enumerate(how["grid"]))
        return arguments, {**how, "grid": size}

    return change


def swapped(first: int, second: int) -> Change:
    def change(arguments: Arguments, how: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
        order = list(range(len(arguments)))
        order[first], order[second] = second, first
        return tuple(arguments[place] for place in order), how

    return change


def converted(kind: type, to: Callable[[Any], Any]) -> Change:
    def change(arguments: Arguments, how: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
        return tuple(to(value) if type(value) is kind else value for value in arguments), how

    return change


def told(**settings: Any) -> Change:
    return lambda arguments, how: (arguments, {**how, **settings})


def less_shared(arguments: Arguments, how: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    return arguments, {**how, "shared_bytes": how["shared_bytes"] // 8}


def last_less(arguments: Arguments, how: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    """The last scalar: a slice's length, or how many slices there are."""
    return (*arguments[:-1], type(arguments[-1])(arguments[-1] - 1)), how


FAULTS: dict[str, tuple[str, Change]] = {
    f"{kernel}: {fault}": (kernel, change)
    for kernel, changes in {
        "shrink_rows": {
            "a block too few": grid(0, -1),
            "a tile of ranks too few": grid(1, -1),
            "a slice too few": grid(2, -1),
            "rows and segments swapped": swapped(6, 7),
            "slots and segments swapped": swapped(7, 8),
            "less shared memory": less_shared,
            "strides of 4 bytes": converted(np.int64, np.int32),
            "sizes of 8 bytes": converted(np.int32, int),
            "compiled for another dtype": told(dtype=torch.float16),
            "half the threads": told(num_threads=64),
            "a shorter slice": last_less,
        },
        "expand_rows": {
            "a block too few": grid(0, -1),
            "a tile of columns too few": grid(1, -1),
            "s and the arena swapped": swapped(0, 1),
            "ends of parts swapped": swapped(6, 7),
            "a slice too few": last_less,
            "less shared memory": less_shared,
            "half the threads": told(num_threads=64),
        },
        "expand_composed": {"a row too few": grid(0, -1), "rows and segments swapped": swapped(9, 12)},
        "shrink_tiles": {
            "a unit too few": grid(0, -1),
            "a tile of ranks too few": grid(1, -1),
            "compiled for another dtype": told(dtype=torch.float16),
        },
        "expand_tiles": {
            "a unit too few": grid(0, -1),
            "a tile of columns too few": grid(1, -1),
            "rows and segments swapped": swapped(9, 13),
        },
        "expand_groups": {
            "a unit too few": grid(0, -1),
            "rows and their groups swapped": swapped(12, 14),
            "members and their entries swapped": swapped(15, 16),
        },
        "look_up": {"an entry too few": grid(0, -1 - PADDING), "a tile of ranks too few": grid(1, -1)},
        "rescale": {"a row too few": grid(0, -1 - PADDING), "a tile of columns too few": grid(1, -1)},
        "write_kv": {"k alone": grid(1, -1), "strides swapped": swapped(5, 6)},
    }.items()
    for fault, change in changes.items()
}


@pytest.mark.parametrize(("kernel", "change"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_launch_is_caught(kernel, change, bench, monkeypatch):
    def launch(launched: module.Kernel, arguments: Arguments, **how: Any) -> None:
        if launched.name == kernel:
            arguments, how = change(arguments, how)
        module.launch(launched, arguments, **how)

    monkeypatch.setattr(kernels.cuda, "launch", launch)
    for case in CASES:
        try:
            case(bench)
        except (PtxError, AssertionError):
            return
    pytest.fail("no case tells this launch from a right one")
