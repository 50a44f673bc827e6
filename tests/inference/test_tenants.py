from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from inference.engine.tenants import TenantPolicy
from inference.errors import InferenceError, InvalidRequest, TenantRateExceeded
from inference.tenants import read_tenants
from rpc.status import from_rpc_error


def test_each_tenant_has_its_own_policy_and_a_star_is_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "tenants.json"
    acme = {"weight": 3, "max_rows": 16, "tokens_per_s": 0.5, "burst_tokens": 20}
    path.write_text(json.dumps({"acme": acme, "*": {"max_rows": 1}}))
    tenants = read_tenants(path)
    assert tenants.of("acme") == TenantPolicy(weight=3, max_rows=16, tokens_per_s=0.5, burst_tokens=20)
    assert tenants.of("anybody") == TenantPolicy(max_rows=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"expected an object of tenants in .*, found \[\]"),
        ({"acme": 3}, "tenants.acme: expected an object, found 3"),
        ({"acme": {"wieght": 1}}, "tenants.acme: expected weight, max_rows, .*, found wieght"),
        ({"acme": {"weight": 0}}, "tenants.acme.weight: expected a number of at least 1e-06, found 0"),
        ({"acme": {"max_rows": 1.5}}, "tenants.acme.max_rows: expected a whole number of at least 1, found 1.5"),
        ({"*": {"max_rows": True}}, r"tenants.\*.max_rows: expected a whole number of at least 1, found True"),
        ({"*": {"tokens_per_s": float("inf")}}, r"tenants.\*.tokens_per_s: expected a number"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidRequest, match=message):
        read_tenants(path)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(InvalidRequest, match=f"expected a JSON file at .*{name}"):
            read_tenants(tmp_path / name)


async def test_a_worker_refuses_who_is_over_its_rate_by_name_or_by_its_adapter(
    open_worker: Any, tiny_adapter: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps({name: {"tokens_per_s": 0.01, "burst_tokens": 4} for name in ("acme", "one")}))
    adapters = tuple(f"{name}={tiny_adapter(name)}" for name in ("one", "two"))
    async with open_worker(tenants=path, adapters=adapters) as worker:
        for used, free in (({"tenant": "acme"}, {"tenant": "other"}), ({"adapter": "one"}, {"adapter": "two"})):
            await ask(worker, **used)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(worker, **used)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = from_rpc_error(caught.value, InferenceError)
            assert isinstance(error, TenantRateExceeded)
            assert error.retry_after_s is not None
            assert error.retry_after_s > 100
            await ask(worker, **free)


async def ask(worker: Any, *, tenant: str = "", adapter: str = "") -> None:
    messages = await worker.generate([3, 4, 5], *([adapter] if adapter else []), max_tokens=4, tenant=tenant)
    assert messages[-1].finished.output_tokens == 4
