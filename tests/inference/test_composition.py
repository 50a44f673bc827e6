"""Sums of adapters through the service: what has no meaning in one is refused with the reason, and nothing leaks."""

from __future__ import annotations

import grpc
import pytest

from inference.errors import InferenceError
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

PROMPT = [5, 6, 7]


@pytest.fixture
def modules(tiny_adapter):
    """Two plain adapters, and one whose magnitudes scale what the base model computes."""
    folders = {
        "plain": tiny_adapter("plain", seed=1),
        "other": tiny_adapter("other", seed=2, rank=8),
        "dora": tiny_adapter("dora", seed=3, use_dora=True),
    }
    return tuple(f"{name}={folder}" for name, folder in folders.items())


def ask(worker, *uses):
    request = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=PROMPT),
        adapters=[pb.AdapterUse(reference=reference, weight=weight) for reference, weight in uses],
        stop=pb.StopConditions(max_tokens=4, ignore_eos=True),
    )
    return worker.stub.Generate(request, timeout=60)


@pytest.mark.parametrize(
    ("uses", "found"),
    [
        ((("dora", 1.0), ("plain", 1.0)), "2 adapters"),
        ((("plain", 0.5), ("dora", 1.0)), "2 adapters"),
        ((("dora", 0.5),), "the weight 0.5"),
        ((("dora", 1.0), ("dora", 1.0)), "2 adapters"),
    ],
)
async def test_an_adapter_that_scales_the_base_model_is_refused_in_a_sum_and_at_a_weight(
    open_worker, modules, uses, found
):
    async with open_worker(adapters=modules) as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(worker, *uses).read()
        error = from_rpc_error(caught.value, InferenceError)
        assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "adapters")
        assert "because it scales or replaces what the base model computes" in str(error)
        assert str(error).endswith(f"found {found}")
        assert all(loaded.leases == 0 for loaded in worker.core.adapters.loaded())
        assert await worker.tokens(PROMPT, "dora") != await worker.tokens(PROMPT)


async def test_plain_adapters_are_summed_at_any_weights(open_worker, modules):
    async with open_worker(adapters=modules) as worker:
        messages = [message async for message in ask(worker, ("plain", 0.5), ("other", -1.0))]
        assert [one.weight for one in messages[0].started.adapters] == [0.5, -1.0]
        assert sum(len(message.chunk.token_ids) for message in messages) == 4
