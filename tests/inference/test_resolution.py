"""A worker finds adapters where its settings say, in the order that they have, and needs none of them."""

from __future__ import annotations

import json

import grpc
import pytest

from adapter.manifest import manifest_of_adapter
from inference.errors import InvalidRequest
from loraplex.inference.v1 import inference_service_pb2 as pb

PROMPT = [5, 6, 7]


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_worker_of_the_base_model_alone_serves_it_and_says_what_it_is(open_worker):
    async with open_worker() as worker:
        started, *_, end = await worker.generate(PROMPT)
        assert (started.started.base_model, list(started.started.adapters)) == ("tiny", [])
        assert end.finished.output_tokens == 8
        (model,) = (await worker.stub.ListModels(pb.ListModelsRequest())).models
        assert (model.reference, model.root, model.parent, model.digest) == (
            "tiny", "tiny", "", started.started.base_model_digest,
        )  # fmt: skip
        error = await refusal(worker.generate(PROMPT, "sql"))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_first_place_that_has_a_name_serves_it_and_the_listing_says_which_version(
    open_worker, tiny_adapter, tmp_path
):
    named = tiny_adapter("named", seed=1)
    (tmp_path / "dir").mkdir()
    other = tiny_adapter("other", seed=2).rename(tmp_path / "dir" / "named")
    found = tiny_adapter("found", seed=3).rename(tmp_path / "dir" / "found")
    module = json.dumps({"name": "named", "path": str(named), "base_model_name": "tiny"})
    async with open_worker(adapters=(module,), adapter_urls=(f"file://{tmp_path}/dir",)) as worker:
        for name, folder in (("named", named), ("found", found)):
            started, *_ = await worker.generate(PROMPT, name)
            (served,) = started.started.adapters
            assert (served.adapter, served.version) == (name, 0)
            assert served.digest == manifest_of_adapter(folder).digest
        models = (await worker.stub.ListModels(pb.ListModelsRequest())).models
        assert [(one.reference, one.parent) for one in models] == [("tiny", ""), ("found", "tiny"), ("named", "tiny")]
        assert manifest_of_adapter(other).digest not in {one.digest for one in models}


async def test_a_folder_replaced_by_a_rename_is_served_at_the_next_request(open_worker, tiny_adapter, tmp_path):
    (tmp_path / "dir" / "tiny").mkdir(parents=True)
    place = tmp_path / "dir" / "tiny" / "sql"
    tiny_adapter("one", seed=1).rename(place)
    async with open_worker(adapter_dirs=(str(tmp_path / "dir"),)) as worker:
        before = await worker.tokens(PROMPT, "sql")
        place.rename(tmp_path / "old")
        tiny_adapter("two", seed=2).rename(place)
        after = await worker.tokens(PROMPT, "sql")
        assert after != before
        place.rename(tmp_path / "new")
        (tmp_path / "old").rename(place)
        assert await worker.tokens(PROMPT, "sql") == before


async def test_a_damaged_adapter_is_an_error_and_not_the_next_place(open_worker, tiny_adapter, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        tiny_adapter(f"of-{name}").rename(tmp_path / name / "sql")
    (tmp_path / "first" / "sql" / "adapter_config.json").unlink()
    directories = tuple(str(tmp_path / name) for name in ("first", "second"))
    async with open_worker(adapter_dirs=directories) as worker:
        error = await refusal(worker.generate(PROMPT, "sql"))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "adapter_config.json" in error.details()
        assert await worker.tokens(PROMPT), "the worker goes on"


async def test_settings_that_cannot_be_followed_are_refused_before_anything_is_served(open_worker):
    for fields in (
        {"adapter_dirs": ("/nowhere",)},
        {"adapter_urls": ("http://host/x",)},
        {"hub": ("sql=owner/repo@main",)},
        {"resolvers": ("nobody",)},
        {"adapters": ('{"name": "a", "path": "x", "base_model_name": "other"}',)},
    ):
        (field,) = fields
        with pytest.raises(InvalidRequest) as caught:
            async with open_worker(**fields):
                pass
        assert caught.value.field == field
