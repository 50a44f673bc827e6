from __future__ import annotations

import grpc
import pytest

from inference.errors import InvalidRequest
from inference.tiers import PREFETCH_LABEL, Tier, labelled_tier
from loraplex.inference.v1 import inference_service_pb2 as pb


@pytest.mark.parametrize("tier", list(Tier))
def test_a_label_names_a_tier(tier: Tier) -> None:
    assert labelled_tier({PREFETCH_LABEL: tier.value, "team": "data"}) is tier


def test_without_the_label_there_is_no_wish() -> None:
    assert labelled_tier({"team": "data"}) is None


def test_a_word_that_is_no_tier_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="expected one of disk, host, arena, found 'gpu'"):
        labelled_tier({PREFETCH_LABEL: "gpu"})


# through a worker


async def where(worker) -> dict[str, int]:
    models = (await worker.stub.ListModels(pb.ListModelsRequest())).models
    return {model.reference: model.tier for model in models}


async def test_an_adapter_is_brought_to_a_tier_and_listed_there(open_worker, tiny_adapter):
    folder = tiny_adapter("a")
    async with open_worker(adapters=(f"a={folder}",)) as worker:
        sizes = {}
        for asked in (pb.TIER_DISK, pb.TIER_HOST, pb.TIER_UNSPECIFIED):
            answer = await worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference="a", tier=asked))
            sizes[asked] = answer.size_bytes
            assert (await where(worker))["a"] == (asked or pb.TIER_ARENA)
        state = await worker.stub.GetWorker(pb.GetWorkerRequest())
        assert (state.adapters_loaded, state.adapter_bytes_used) == (1, sizes[pb.TIER_UNSPECIFIED])
        assert 0 < state.host_bytes_used == sizes[pb.TIER_HOST] <= state.host_bytes
        assert 0 < state.disk_bytes_used == sizes[pb.TIER_DISK] <= state.disk_bytes
        await worker.stub.UnloadAdapter(pb.UnloadAdapterRequest(reference="a"))
        assert (await where(worker))["a"] == pb.TIER_HOST


async def test_no_more_adapters_than_allowed_are_in_memory(open_worker, tiny_adapter):
    folders = {name: tiny_adapter(name, seed=number) for number, name in enumerate("abc")}
    adapters = tuple(f"{name}={folder}" for name, folder in folders.items())
    async with open_worker(adapters=adapters, max_loras=2, max_cpu_loras=1) as worker:
        for name in "abc":
            await worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference=name))
        found = await where(worker)
        assert (found["a"], found["b"], found["c"]) == (pb.TIER_DISK, pb.TIER_ARENA, pb.TIER_ARENA)
        assert len(worker.core.adapters.host) == 1


async def test_an_adapter_of_a_larger_rank_than_allowed_is_refused_with_both(open_worker, tiny_adapter):
    async with open_worker(adapters=(f"a={tiny_adapter('a')}",), max_lora_rank=1) as worker:
        with pytest.raises(grpc.aio.AioRpcError, match=r"expected a rank of at most 1, found \d+"):
            await worker.stub.LoadAdapter(pb.LoadAdapterRequest(reference="a"))
