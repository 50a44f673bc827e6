"""The tests tested: a classic fault, put into a kernel on purpose, must be caught by the simulator or by a result."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kernels.cuda import module, source
from kernels.cuda.families import Family
from tests.kernels.cuda import cases
from tests.kernels.cuda.cases import Bench
from tests.kernels.cuda.classic_faults import FAULTS
from tests.kernels.cuda.mutants import AFFINE, CACHE, FAR, LOOKUP, ROWS, TILES, Mutant
from tests.kernels.cuda.simulator.ptx import PtxError

EVERY_CASE = sorted({case for group in cases.OF_FILE.values() for case in group}, key=lambda case: case.__name__)
KINDS = {
    "streaming": (ROWS, (cases.rows, cases.composed_rows)),
    "tiled": (TILES, (cases.tiles,)),
    "rescaling": (AFFINE, (cases.affine,)),
    "look-up": (LOOKUP, (cases.look_up,)),
    "cache's": (CACHE, (cases.cache,)),
}


def put_in(monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str, *, count: int = 1) -> None:
    """Every kernel that reads the file is compiled with the fault."""
    found = (source.FOLDER / file).read_text().count(right)
    assert found == count, f"expected the faulty text {count} times in {file}, found it {found} times: {right}"
    flatten = source.flatten
    monkeypatch.setattr(module, "flatten", lambda name: flatten(name).replace(right, wrong))


def assert_caught(bench: Bench, tried: tuple[Callable[[Bench], None], ...]) -> None:
    for case in tried:
        try:
            case(bench)
        except (PtxError, AssertionError):
            return
    pytest.fail("no case tells this kernel from a right one")


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: case.__name__)
def test_a_right_kernel_passes_every_case(case, bench):
    case(bench)


@pytest.mark.parametrize(
    ("mutant", "tried"),
    [
        pytest.param(mutant, tried, id=f"{kind}: {mutant.fault}")
        for kind, (mutants, tried) in KINDS.items()
        for mutant in mutants
    ],
)
def test_a_fault_is_caught(mutant, tried, bench, monkeypatch):
    put_in(monkeypatch, mutant.file, mutant.right, mutant.wrong)
    assert_caught(bench, tried)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_that_was_listed_first_is_caught(fault, bench, monkeypatch):
    put_in(monkeypatch, fault.file, fault.old, fault.new, count=fault.count)
    assert_caught(bench, cases.OF_FILE[fault.file])


@pytest.mark.parametrize("family", Family)
def test_a_slot_beyond_two_to_the_31_elements_is_found(family, bench):
    cases.far_slot(bench, family)


@pytest.mark.parametrize(("family", "mutant"), FAR, ids=[f"{mutant.fault} {f.value}" for f, mutant in FAR])
def test_an_offset_of_32_bits_is_caught(family, mutant: Mutant, bench, monkeypatch):
    put_in(monkeypatch, mutant.file, mutant.right, mutant.wrong)
    assert_caught(bench, (lambda bench: cases.far_slot(bench, family),))
