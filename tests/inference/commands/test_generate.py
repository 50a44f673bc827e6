"""`inference generate`: every flag reaches the request, answers come whole and in order, mistakes are one line."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

from inference.cli import cli
from inference.commands.generate import Printer, generate, make_request
from inference.errors import GuideRefused, InvalidRequest
from loraplex.inference.v1 import inference_service_pb2 as pb

CALL = {"id": "1", "function": {"name": "b", "arguments": {"z": 1, "a": 2}}}


def request_of(*arguments: str, stdin: str = "") -> pb.GenerateRequest:
    """The request that a command line means."""
    found: list[pb.GenerateRequest] = []

    class Recorder:
        def __init__(self, *_: object) -> None: ...

        def call(self, _: object) -> None: ...

    def record(**flags: Any) -> pb.GenerateRequest:
        found.append(make_request(**flags))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inference.commands.generate.make_request", record)
        patch.setattr("inference.commands.generate.Worker", Recorder)
        result = CliRunner().invoke(generate, list(arguments), input=stdin)
    assert result.exit_code == 0, result.output
    return found[0]


def refusal_of(*arguments: str) -> str:
    result = CliRunner().invoke(generate, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return str(result.output)


def test_every_flag_reaches_the_request(tmp_path: Any) -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "b"},
    ]
    (tmp_path / "messages").write_text(json.dumps(messages))
    (tmp_path / "tool").write_text('{"type": "function", "a": 1}')
    request = request_of(
        "Hello", "--system", "Be brief.", "--messages", str(tmp_path / "messages"), "--tool", str(tmp_path / "tool"),
        "--template-arguments", '{"bold": true}', "--adapter", "sql", "--adapter", "a@b=0.5", "-n", "2",
        "--best-of", "3", "--max-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "4",
        "--min-p", "0.25", "--typical-p", "0.75", "--repetition-penalty", "1.5", "--presence-penalty", "0.5",
        "--frequency-penalty", "-0.5", "--logit-bias", "7=2.5", "--bad-word", "x", "--bad-word", " y",
        "--seed", str(2**64 - 1), "--regex", "a+", "--stop", "end", "--stop-token", "5", "--min-tokens", "2",
        "--echo", "--logprobs", "1", "--prompt-logprobs", "0", "--priority", "-3", "--tenant", "acme",
    )  # fmt: skip
    expected = pb.GenerateRequest(
        chat=pb.Chat(
            messages=[
                pb.ChatMessage(role="system", content="Be brief."),
                pb.ChatMessage(role="assistant", tool_calls=[json.dumps(CALL)]),
                pb.ChatMessage(role="tool", content="sunny", tool_call_id="1", name="b"),
                pb.ChatMessage(role="user", content="Hello"),
            ],
            tool_texts=['{"type": "function", "a": 1}'],
            template_arguments='{"bold": true}',
        ),
        adapters=[pb.AdapterUse(reference="sql"), pb.AdapterUse(reference="a@b", weight=0.5)],
        sampling=pb.SamplingParams(
            temperature=0.5, top_p=0.9, top_k=4, min_p=0.25, typical_p=0.75, repetition_penalty=1.5,
            presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={7: 2.5}, bad_words=["x", " y"], seed=2**64 - 1,
        ),
        stop=pb.StopConditions(max_tokens=9, strings=["end"], token_ids=[5], min_tokens=2),
        guide=pb.Guide(regex="a+"), n=2, best_of=3, echo=True, logprobs=1, prompt_logprobs=0, priority=-3,
        tenant="acme",
    )  # fmt: skip
    assert request == expected


def test_what_is_not_said_is_left_to_the_worker() -> None:
    expected = pb.GenerateRequest(text="a b", stop=pb.StopConditions(max_tokens=128), sampling=pb.SamplingParams())
    found = request_of("--raw", "a b")
    found.ClearField("echo")
    found.stop.ClearField("ignore_eos")
    found.stop.ClearField("min_tokens")
    assert found == expected
    assert request_of("--raw", "-", stdin="from a pipe").text == "from a pipe"


@pytest.mark.parametrize(
    ("flags", "guide"),
    [
        (["--json-schema", "FILE"], pb.Guide(json_schema="{}")),
        (["--json-object"], pb.Guide(json_object=True)),
        (["--grammar", "FILE"], pb.Guide(grammar="{}")),
        (["--regex", ""], pb.Guide(regex="")),
        (["--choice", "a", "--choice", "b"], pb.Guide(choices=pb.Choices(texts=["a", "b"]))),
        ([], None),
    ],
)
def test_one_flag_says_what_the_answer_looks_like(tmp_path: Any, flags: list[str], guide: Any) -> None:
    (tmp_path / "FILE").write_text("{}")
    request = request_of("hi", *(str(tmp_path / flag) if flag == "FILE" else flag for flag in flags))
    assert (request.guide if request.HasField("guide") else None) == guide


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'PROMPT', or --messages"),
        (["hi", "--regex", "a", "--json-object"], "At most one of"),
        (["hi", "--raw", "--system", "x"], "--raw takes a PROMPT"),
        (["--raw"], "--raw takes a PROMPT"),
        (["hi", "-n", "17"], "1<=x<=16"),
        (["hi", "--seed", "-1"], "0<=x<="),
        (["hi", "--top-k", "-1"], "0<=x<="),
        (["hi", "--logprobs", "21"], "0<=x<=20"),
        (["hi", "--json-schema", "nowhere.json"], "does not exist"),
        (["hi", "--logit-bias", "x=1"], "expected ID=BIAS, found 'x=1'"),
        (["hi", "--logit-bias", "-1=1"], "expected ID=BIAS, found '-1=1'"),
        (["hi", "--logit-bias", "4294967296=1"], "expected ID=BIAS, found '4294967296=1'"),
        (["hi", "--json-schema", "BYTES"], "Expected text in UTF-8"),
        (["hi", "--tool", "BYTES"], "is not JSON"),
        (["a\udcff"], "Expected text in UTF-8"),
        (["hi", "--adapter", "sql=much"], "expected REF=WEIGHT, found 'sql=much'"),
        (["hi", "--tool", "BROKEN"], "is not JSON"),
        (["hi", "--tool", "LIST"], "expected a JSON dict"),
        (["hi", "--messages", "LIST"], "expected messages of texts, found 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    (tmp_path / "BROKEN").write_text("{")
    (tmp_path / "LIST").write_text("[1]")
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    # Click wraps lines in a box as wide as it thinks the terminal is.
    assert words in " ".join(refusal_of(*arguments).split())


def test_answers_that_come_mixed_are_printed_whole_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def chunk(answer: int, text: str) -> pb.GenerateResponse:
        return pb.GenerateResponse(chunk=pb.TokenChunk(answer=answer, text=text))

    def end(answer: int, reason: int = pb.FINISH_REASON_STOP) -> pb.GenerateResponse:
        return pb.GenerateResponse(finished=pb.Finished(answer=answer, reason=reason, output_tokens=3))

    printer = Printer(answers=3)
    steps = [chunk(2, "c"), chunk(0, "a"), chunk(1, "b"), end(1), chunk(0, "A"), chunk(2, "C")]
    for message in steps:
        printer(message)
    assert capsys.readouterr().out == "aA", "the first streams"
    printer(end(0))
    out, err = capsys.readouterr()
    assert out == "\nb\ncC", "the second had ended, the third goes on"
    assert err.count("[3 tokens") == 2
    printer(chunk(2, "!"))
    printer(end(2, pb.FINISH_REASON_LENGTH))
    out, err = capsys.readouterr()
    assert out == "!\n"
    assert "cut at its length" in err


def test_an_answer_that_is_broken_off_leaves_the_error_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(answers=1)
    printer(pb.GenerateResponse(chunk=pb.TokenChunk(text="half an ans")))
    printer.close()
    assert capsys.readouterr().out == "half an ans\n"
    printer = Printer(answers=1)
    printer(pb.GenerateResponse(chunk=pb.TokenChunk(text="a whole one")))
    printer(pb.GenerateResponse(finished=pb.Finished(output_tokens=3)))
    printer.close()
    assert capsys.readouterr().out == "a whole one\n"


def test_a_terminal_is_not_told_what_to_do_by_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(answers=1)
    printer(pb.GenerateResponse(chunk=pb.TokenChunk(text="é\t\x1b[2J\r\x9b1m\x07\n日")))
    assert capsys.readouterr().out == "é\t\\x1b[2J\\x0d\\x9b1m\\x07\n日"


async def test_it_prints_what_a_worker_answers(open_worker: Any) -> None:
    async with open_worker() as worker:

        async def run(*arguments: str) -> Any:
            command = ["generate", "--raw", "Hello", "--server", worker.address, "--max-tokens", "9", *arguments]
            return await asyncio.to_thread(CliRunner().invoke, cli, command)

        plain = await run("--regex", "[a-f]{4}", "--seed", "1", "--temperature", "1", "-n", "3")
        assert plain.exit_code == 0
        assert re.fullmatch(r"([a-f]{4}\n){3}", plain.stdout)
        echoed = await run("--echo", "--choice", "yes", "--choice", "no")
        assert echoed.stdout in ("Helloyes\n", "Hellono\n")
        lines = (await run("-o", "json", "--prompt-logprobs", "1", "-n", "2", "--choice", "a")).stdout.splitlines()
        kinds = [next(iter(json.loads(line))) for line in lines]
        assert kinds[:2] == ["started", "prompt"]
        assert sorted(kinds[2:]).count("finished") == 2
        assert isinstance((await run("--regex", "(")).exception, GuideRefused)
        wrong = (await run("--top-p", "2")).exception
        assert isinstance(wrong, InvalidRequest)
        assert wrong.field == "top_p"
