"""Wrong input, as users send it: a status, a stable reason, a sentence; and the worker goes on as if nothing was."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from inference.errors import InferenceError
from loraplex.inference.v1 import inference_service_pb2 as pb
from rpc.status import from_rpc_error

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(**fields: Any) -> pb.GenerateRequest:
    message = pb.ChatMessage(role="user", content="Hello!")
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), **fields)


def with_adapter(reference: str, **fields: Any) -> pb.GenerateRequest:
    return chat(adapters=[pb.AdapterUse(reference=reference, **fields)])


BAD = ("INVALID_ARGUMENT", "INVALID_REQUEST")
BAD_REFERENCE = ("INVALID_ARGUMENT", "INVALID_REFERENCE")
TOO_LONG = ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
NOT_FOUND = ("NOT_FOUND", "ADAPTER_NOT_FOUND")
REFUSED = ("INVALID_ARGUMENT", "GUIDE_REFUSED")
CASES = [
    ("no prompt", pb.GenerateRequest(), *BAD, "found none"),
    ("empty text", pb.GenerateRequest(text=""), *BAD, "at least one token"),
    ("no ids", pb.GenerateRequest(token_ids=pb.TokenIds()), *BAD, "at least one"),
    ("no messages", pb.GenerateRequest(chat=pb.Chat()), *BAD, "at least one message"),
    ("an empty message", pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user")])), *BAD, "content"),
    ("an id too far", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[49152])), *BAD, "below 49152, found 49152"),
    ("a long prompt", pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 8192)), *TOO_LONG, "found 8192"),
    ("cold", chat(sampling=pb.SamplingParams(temperature=-1)), *BAD, "found -1"),
    ("nan", chat(sampling=pb.SamplingParams(temperature=float("nan"))), *BAD, "nan"),
    ("top_p 0", chat(sampling=pb.SamplingParams(top_p=0)), *BAD, "top_p"),
    ("top_p 2", chat(sampling=pb.SamplingParams(top_p=2)), *BAD, "top_p"),
    ("no tokens", chat(stop=pb.StopConditions(max_tokens=0)), *BAD, "max_tokens"),
    ("an empty stop", chat(stop=pb.StopConditions(strings=[""])), *BAD, "stop.strings"),
    ("many logprobs", chat(logprobs=21), *BAD, "[0, 20]"),
    ("a priority too high", chat(priority=101), *BAD, "-100 to 100"),
    ("seventeen answers", chat(n=17), *BAD, "at most 16"),
    ("a broken schema", chat(guide=pb.Guide(json_schema="{")), *REFUSED, "guide.json_schema"),
    ("a look-behind", chat(guide=pb.Guide(regex="(?<=a)b")), *REFUSED, "look-around"),
    ("typical_p 0", chat(sampling=pb.SamplingParams(typical_p=0)), *BAD, "typical_p"),
    ("a bias too far", chat(sampling=pb.SamplingParams(logit_bias={49152: 1})), *BAD, "below 49152"),
    ("a bias of nan", chat(sampling=pb.SamplingParams(logit_bias={1: float("nan")})), *BAD, "nan for 1"),
    ("more at least than at most", chat(stop=pb.StopConditions(max_tokens=2, min_tokens=3)), *BAD, "min_tokens"),
    ("unknown adapter", with_adapter("nobody"), *NOT_FOUND, "nobody"),
    ("unknown alias", with_adapter("sql@moon"), *NOT_FOUND, "moon"),
    ("unknown version", with_adapter("sql:99"), *NOT_FOUND, "99"),
    ("unknown digest", with_adapter("sha256:" + "0" * 64), *NOT_FOUND, "sha256"),
    ("no reference", with_adapter(""), *BAD_REFERENCE, "expected"),
    ("a path", with_adapter("../../etc/passwd"), *BAD_REFERENCE, "expected"),
    ("version 0", with_adapter("sql:0"), *BAD_REFERENCE, "version number"),
    ("half a digest", with_adapter("sha256:12"), *BAD_REFERENCE, "64"),
    ("weight nan", with_adapter("sql", weight=float("nan")), *BAD, "finite"),
    ("nine adapters", chat(adapters=[pb.AdapterUse(reference="sql")] * 9), *BAD, "at most 8"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
async def test_a_wrong_request_gets_its_status_and_reason(system: Any, e2e: Any, case: tuple[Any, ...]) -> None:
    _, wrong, code, reason, words = case
    async with system.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await e2e.generate(stub, wrong)
        assert caught.value.code().name == code, caught.value.details()
        assert words in str(caught.value.details())
        details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
        assert reason.encode() in details
        assert str(from_rpc_error(caught.value, InferenceError))
        assert (await e2e.generate(stub, e2e.ask("Hello!", "sql", max_tokens=1))).version == 1


async def test_a_retired_version_is_refused_by_name_and_never_replaced(
    system: Any, e2e: Any, adapters_dir: Any
) -> None:
    await system.cli("register", str(adapters_dir / "pirate"), "--name", "old", "--base", e2e.BASE)
    async with system.stub() as stub:
        assert (await e2e.generate(stub, e2e.ask("Hello!", "old:1"))).version == 1
        await system.cli("retire", "old", "1")

        async def is_refused() -> bool:
            try:
                await e2e.generate(stub, e2e.ask("Hello!", "old:1", max_tokens=1))
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.FAILED_PRECONDITION
            return False

        await e2e.until(is_refused, "the worker to hear of it")
        await system.cli("promote", "old", "1", code=4)


async def test_an_adapter_in_production_cannot_be_retired(system: Any, e2e: Any) -> None:
    error = await system.cli("retire", "sql", "1", code=4)
    assert "production" in error
    async with system.stub() as stub:
        assert (await e2e.generate(stub, e2e.ask("Hello!", "sql"))).version == 1
