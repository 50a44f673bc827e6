"""`inference generate`: flags to a GenerateRequest, and its answers to the terminal as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inference.commands.calling import Worker, server_options, to_json

if TYPE_CHECKING:
    from loraplex.inference.v1 import inference_service_pb2 as pb
    from loraplex.inference.v1 import inference_service_pb2_grpc as pb_grpc

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ALTERNATIVES = click.IntRange(0, 20)
ANSWERS = click.IntRange(1, 16)
MAX_TOKEN_ID = 2**32 - 1
TOKEN_ID = click.IntRange(0, MAX_TOKEN_ID)
GUIDES = ("json_schema", "json_object", "regex", "grammar", "choices")
# A terminal would obey these characters of a text; it gets their codes instead. `-o json` has them as they are.
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@click.command()
@click.argument("prompt", required=False)
@click.option("--adapter", "adapters", multiple=True, metavar="REF[=WEIGHT]", help="NAME, NAME@ALIAS, NAME:NUMBER …")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--system", help="A system message for the chat template.")
@click.option("--messages", type=FILE, help="JSON list of messages to go before PROMPT, tool calls and all.")
@click.option("--tool", "tools", type=FILE, multiple=True, help="JSON of a tool for the chat template; repeatable.")
@click.option("--template-arguments", metavar="JSON", help='For the chat template: {"enable_thinking": false}.')
@click.option("-n", type=ANSWERS, help="How many answers.  [default: 1]")
@click.option("--best-of", type=ANSWERS, help="Compute so many, print the likeliest, best first.  [default: n]")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0]")
@click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability.  [default: 1]")
@click.option("--top-k", type=click.IntRange(0, 2**32 - 1), help="Keep so many tokens.  [default: all]")
@click.option("--min-p", type=float, help="Keep tokens of this share of the likeliest one's probability.  [default: 0]")
@click.option("--typical-p", type=float, help="Keep the typical tokens up to this probability.  [default: 1]")
@click.option("--repetition-penalty", type=float, help="Divides the logits of tokens seen.  [default: 1]")
@click.option("--presence-penalty", type=float, help="Taken from the logits of tokens answered.  [default: 0]")
@click.option("--frequency-penalty", type=float, help="Taken once for each time that one was answered.  [default: 0]")
@click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Added to a token's logit; repeatable.")
@click.option("--bad-word", "bad_words", multiple=True, help="Never in the answer; repeatable.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Makes a sampled answer repeatable.")
@click.option("--json-schema", type=FILE, help="Answer with JSON of this schema.")
@click.option("--json-object", "json_object", is_flag=True, help="Answer with a JSON object.")
@click.option("--regex", help="Answer with what matches this expression as a whole.")
@click.option("--grammar", type=FILE, help="Answer with what this grammar, in Lark's notation, allows.")
@click.option("--choice", "choices", multiple=True, help="Answer with one of these; repeatable.")
@click.option("--stop", multiple=True, help="End before this string; repeatable.")
@click.option("--stop-token", "stop_tokens", type=TOKEN_ID, multiple=True, help="End with this token id; repeatable.")
@click.option("--min-tokens", type=click.IntRange(min=0), default=0, help="Do not stop at an end token before these.")
@click.option("--ignore-eos", is_flag=True, help="Do not stop at the model's end token.")
@click.option("--echo", is_flag=True, help="Print the prompt, as the model reads it, before the answer.")
@click.option("--logprobs", type=ALTERNATIVES, help="Log-probabilities and so many alternatives; shown by -o json.")
@click.option("--prompt-logprobs", type=ALTERNATIVES, help="The same of the prompt's tokens; shown by -o json.")
@click.option("--priority", type=click.IntRange(-100, 100), help="The higher goes first.  [default: 0]")
@click.option("--tenant", help="Whose share of the worker to use.  [default: the adapters']")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for the whole answer.")
@server_options
def generate(server: str, token_file: Path | None, ca: Path | None, output: str, timeout: float, **flags: Any) -> None:
    """Stream an answer to PROMPT, or to what comes on standard input where PROMPT is -.

    With -o json one line for each message of the stream. Several answers are printed one after the other.
    """
    try:
        request = make_request(**flags)
    except UnicodeError:
        raise click.UsageError("Expected text in UTF-8, found other bytes.") from None
    printer = _print_json if output == "json" else Printer(answers=request.n or 1)

    async def ask(stub: pb_grpc.InferenceServiceAsyncStub) -> None:
        async for message in stub.Generate(request, timeout=timeout):
            printer(message)

    try:
        Worker(server, token_file, ca).call(ask)
    finally:
        if isinstance(printer, Printer):
            printer.close()


class Printer:
    """Prints answers as text, each whole where there are several; what is about them goes to standard error."""

    def __init__(self, *, answers: int) -> None:
        self._held: dict[int, list[Callable[[], None]]] = {number: [] for number in range(answers)}
        self._next = 0
        self._is_ended: set[int] = set()
        self._is_in_line = False

    def close(self) -> None:
        """Ends the line of an answer that was broken off, so that the error has its own."""
        if self._is_in_line:
            click.echo()

    def __call__(self, message: pb.GenerateResponse) -> None:
        if message.HasField("started"):
            served = [
                f"{use.adapter}:{use.version} {use.digest[:19]}" if use.version else f"{use.adapter} {use.digest[:19]}"
                for use in message.started.adapters
            ]
            _remark(f"[{' + '.join(served) or message.started.base_model}]")
        elif message.HasField("reloaded"):
            served = [f"{use.adapter} {use.digest[:19]}" for use in message.reloaded.adapters]
            _remark(f"\n[from token {message.reloaded.index} on: {' + '.join(served)}]")
        elif message.HasField("prompt"):
            self._write(message.prompt.text, dim=True)
        elif message.HasField("chunk"):
            self._print(message.chunk.answer, lambda: self._write(message.chunk.text))
        elif message.HasField("finished"):
            self._print(message.finished.answer, lambda: self._end(message.finished))
            self._is_ended.add(message.finished.answer)
            while self._next in self._is_ended:
                self._next += 1
                for held in self._held.pop(self._next, ()):
                    held()

    def _print(self, answer: int, show: Callable[[], None]) -> None:
        """Now, if it is this answer's turn."""
        if answer == self._next:
            show()
        else:
            self._held[answer].append(show)

    def _write(self, text: str, *, dim: bool | None = None) -> None:
        click.secho(text.translate(CONTROLS), dim=dim, nl=False)
        self._is_in_line = True

    def _end(self, done: pb.Finished) -> None:
        click.echo()
        self._is_in_line = False
        _remark(_outcome(done))


def make_request(
    *, prompt: str | None, raw: bool, system: str | None, messages: Path | None, tools: tuple[Path, ...],
    template_arguments: str | None, adapters: tuple[str, ...], logit_bias: tuple[str, ...], stop: tuple[str, ...],
    stop_tokens: tuple[int, ...], max_tokens: int, min_tokens: int, ignore_eos: bool, **flags: Any,
) -> pb.GenerateRequest:  # fmt: skip
    """The request that the flags mean. Raises click.UsageError."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    guide = {name: flags.pop(name) for name in GUIDES}
    whole = ("n", "best_of", "echo", "logprobs", "prompt_logprobs", "priority", "tenant")
    request = pb.GenerateRequest(
        **{name: value for name in whole if (value := flags.pop(name)) is not None},
        sampling=pb.SamplingParams(
            logit_bias=dict(_pair(item, _token_id, "--logit-bias", "ID=BIAS") for item in logit_bias),
            **{name: value for name, value in flags.items() if value is not None},
        ),
        stop=pb.StopConditions(
            max_tokens=max_tokens, min_tokens=min_tokens, strings=stop, token_ids=stop_tokens, ignore_eos=ignore_eos
        ),
    )
    _set_guide(request, guide)
    for item in adapters:
        reference, weight = _pair(item, str, "--adapter", "REF=WEIGHT") if "=" in item else (item, None)
        request.adapters.add(reference=reference, weight=weight)
    text = sys.stdin.read() if prompt == "-" else prompt
    if raw:
        if text is None or system or messages or tools or template_arguments:
            raise click.UsageError("--raw takes a PROMPT, and nothing for the chat template.")
        request.text = text
        return request
    if system:
        request.chat.messages.add(role="system", content=system)
    if messages:
        request.chat.messages.extend(map(_message, _read_json(messages, list, "--messages")))
    if text is not None:
        request.chat.messages.add(role="user", content=text)
    if not request.chat.messages:
        raise click.UsageError("Missing argument 'PROMPT', or --messages.")
    request.chat.tool_texts.extend(json.dumps(_read_json(path, dict, "--tool"), ensure_ascii=False) for path in tools)
    request.chat.template_arguments = template_arguments or ""
    return request


def _set_guide(request: pb.GenerateRequest, found: dict[str, Any]) -> None:
    asked = {name: value for name, value in found.items() if value not in (None, False, ())}
    if len(asked) > 1:
        names = ("--json-schema", "--json-object", "--regex", "--grammar", "--choice")
        raise click.UsageError(f"At most one of {', '.join(names)} says what the answer looks like.")
    for name, value in asked.items():
        if name == "choices":
            request.guide.choices.texts.extend(value)
        else:
            setattr(request.guide, name, value.read_text(encoding="utf-8") if isinstance(value, Path) else value)


def _message(raw: Any) -> pb.ChatMessage:
    """A message as OpenAI's API spells it."""
    from loraplex.inference.v1 import inference_service_pb2 as pb

    known = {"role", "content", "name", "tool_call_id", "reasoning_content"}
    try:
        calls = [json.dumps(call, ensure_ascii=False) for call in raw.get("tool_calls") or ()]
        if unknown := raw.keys() - known - {"tool_calls"}:
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        return pb.ChatMessage(**{name: raw[name] for name in known if raw.get(name) is not None}, tool_calls=calls)
    except (AttributeError, TypeError, ValueError) as error:
        shown = json.dumps(raw, ensure_ascii=False)[:60]
        raise click.BadParameter(
            f"expected messages of texts, found {shown}: {error}", param_hint="--messages"
        ) from None


def _read_json(path: Path, kind: type[Any], flag: str) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint=flag) from None
    if not isinstance(found, kind):
        raise click.BadParameter(f"expected a JSON {kind.__name__} in {path}", param_hint=flag)
    return found


def _pair(item: str, kind: Callable[[str], Any], flag: str, form: str) -> tuple[Any, float]:
    name, _, value = item.rpartition("=")
    try:
        return kind(name), float(value)
    except ValueError:
        raise click.BadParameter(f"expected {form}, found {item!r}", param_hint=flag) from None


def _token_id(text: str) -> int:
    found = int(text)
    if not 0 <= found <= MAX_TOKEN_ID:
        raise ValueError(text)
    return found


def _outcome(done: pb.Finished) -> str:
    from loraplex.inference.v1 import inference_service_pb2 as pb

    seconds = done.timings.total.ToNanoseconds() / 1e9
    rate = done.output_tokens / seconds if seconds else 0.0
    why = {
        pb.FINISH_REASON_LENGTH: ", cut at its length",
        pb.FINISH_REASON_STOP_STRING: f", stopped at {done.stop_string!r}",
    }.get(done.reason, "")
    return f"[{done.output_tokens} tokens{why}, {rate:.0f} tokens/s]"


def _remark(text: str) -> None:
    click.secho(text, dim=True, err=True)


def _print_json(message: pb.GenerateResponse) -> None:
    click.echo(to_json(message))
