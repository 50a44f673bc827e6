from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

import kernels
from kernels.cpu import native


def test_threads_may_call_at_the_same_time():
    gate_up = torch.randn(64, 2048)
    expected = kernels.silu_mul(gate_up)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kernels.silu_mul(gate_up), range(40)))
    assert all(torch.equal(result, expected) for result in results)


def test_without_openmp_the_work_is_done_by_the_caller(monkeypatch):
    gate_up = torch.randn(64, 2048)
    expected = kernels.silu_mul(gate_up)
    monkeypatch.setattr(native, "_pool", lambda: (native._run_alone, native._run_alone))
    assert torch.equal(kernels.silu_mul(gate_up), expected)


def test_torchs_own_openmp_is_found():
    assert native._run_alone not in native._pool()


def test_where_no_cache_can_be_written_it_compiles_anew(monkeypatch, caplog):
    monkeypatch.setattr(native.Path, "mkdir", _refuse)
    native._cache_place.cache_clear()
    try:
        assert native._cache_place() == ""
    finally:
        native._cache_place.cache_clear()
    assert "compiled anew in each process" in caplog.text


def _refuse(*_args, **_named):
    raise PermissionError("read-only")
