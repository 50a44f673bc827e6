"""From the messages of a request to checked values: prompts to token ids, parameters to what the engine takes.

Everything here that is wrong raises InvalidRequest with the field at fault, before anything is computed.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from inference.constraints.bad_words import BadWords
from inference.constraints.forms import ANY_JSON_OBJECT, Form, FormKind
from inference.constraints.guides import Guides
from inference.engine.constraint import Constraint
from inference.engine.request import MAX_ANSWERS, MAX_PRIORITY, MAX_TENANT_CHARS, SamplingParams
from inference.errors import InvalidRequest, PromptTooLong
from inference.identity import ModelIdentity
from inference.text.tokenizer import IncrementalDecoder, Tokenizer
from inference.wire.chat_requests import chat_text
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256
MAX_CHOICES = 1000
# Longer text is tokenized on another thread, so that it does not hold up the streams of others.
INLINE_CHARS = 8192
CONTEXT_TOKENS = 16  # of the prompt, enough to know an open word and an open character


@dataclass(frozen=True, slots=True)
class Asked:
    """A GenerateRequest, checked. Its adapters are not: whether they can be had takes more than reading."""

    prompt_ids: tuple[int, ...]
    continued_ids: tuple[int, ...]
    """The end of the prompt, where the text of an answer goes on with it; empty where it is a text of its own."""
    sampling: SamplingParams
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    is_guided: bool
    answers: int
    """How many to send."""
    candidates: int
    """How many to compute."""
    is_ranked: bool
    """Whether the best of the candidates are sent, when all have ended."""
    has_logprobs: bool
    """Whether the caller sees log-probabilities, which ranking needs either way."""
    has_echo: bool
    tenant: str
    priority: int


class RequestReader:
    """Reads requests for one model and one vocabulary."""

    def __init__(
        self, model: ModelIdentity, tokenizer: Tokenizer, guides: Guides, *, vocab_size: int | None = None
    ) -> None:
        """`vocab_size` is that of an adapter's own vocabulary, None for the model's."""
        self.tokenizer = tokenizer
        self._model = model
        self._guides = guides
        self._vocab_size = model.vocab_size if vocab_size is None else vocab_size

    def of(self, tokenizer: Tokenizer, *, vocab_size: int | None) -> RequestReader:
        """A reader for the same model with an adapter's tokenizer and vocabulary."""
        return RequestReader(self._model, tokenizer, self._guides, vocab_size=vocab_size)

    async def read(self, request: pb.GenerateRequest) -> Asked:
        """Raises InvalidRequest and GuideRefused; QueueFull when too many guides are waiting to be compiled."""
        _expect(abs(request.priority) <= MAX_PRIORITY, "priority", "-100 to 100", request.priority)
        _expect(len(request.tenant) <= MAX_TENANT_CHARS, "tenant", "at most 128 characters", len(request.tenant))
        answers = request.n or 1
        _expect(answers <= MAX_ANSWERS, "n", f"at most {MAX_ANSWERS}", answers)
        candidates = request.best_of or answers
        _expect(answers <= candidates <= MAX_ANSWERS, "best_of", f"n, {answers}, to {MAX_ANSWERS}", candidates)
        is_ranked = request.best_of > 1
        strings = _texts(request.stop.strings, "stop.strings", most=MAX_STOP_STRINGS, most_chars=MAX_STOP_CHARS)
        stop_ids = frozenset(self.check_ids(request.stop.token_ids, "stop.token_ids"))
        if not request.stop.ignore_eos:
            stop_ids |= self.tokenizer.eos_ids
        prompt_ids = await self.prompt_ids(request)
        # A chat's answer begins a text of its own; any other continues the prompt's, where a word may be open.
        continued_ids = () if request.HasField("chat") else prompt_ids[-CONTEXT_TOKENS:]
        return Asked(
            prompt_ids=prompt_ids,
            continued_ids=continued_ids,
            sampling=self._sampling(request, len(prompt_ids), is_ranked=is_ranked),
            stop_ids=stop_ids,
            stop_strings=strings,
            constraints=await self._constraints(request, continued_ids),
            is_guided=request.HasField("guide"),
            answers=answers,
            candidates=candidates,
            is_ranked=is_ranked,
            has_logprobs=request.HasField("logprobs"),
            has_echo=request.echo,
            tenant=request.tenant,
            priority=request.priority,
        )

    def decoder(self, asked: Asked) -> IncrementalDecoder:
        """What makes the text of one answer."""
        if asked.is_guided:  # whose form is that of the bytes, from the first on
            return self.tokenizer.exact_decoder()
        return self.tokenizer.incremental_decoder(after=asked.continued_ids)

    def prompt_text(self, asked: Asked) -> str:
        """The prompt as the model reads it."""
        return self.tokenizer.decode(asked.prompt_ids, skip_special_tokens=False)

    async def prompt_ids(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt: expected text, token_ids or chat, found none", field="prompt")
        if kind == "token_ids":
            ids = list(request.token_ids.ids)
        elif kind == "chat":
            ids = await self.encode(await self.render(request.chat), is_rendered=True)
        else:
            ids = await self.encode(request.text)
        self.check_ids(ids, kind)  # a tokenizer may know words that no row of the embedding stands for
        if not ids:
            raise InvalidRequest("prompt: expected at least one token, found an empty prompt", field="prompt")
        if len(ids) >= self._model.max_context:
            raise PromptTooLong(
                f"prompt: expected fewer than {self._model.max_context} tokens, so that one can be answered; "
                f"found {len(ids)}",
                field="prompt",
            )
        return tuple(ids)

    async def render(self, chat: pb.Chat) -> str:
        """The prompt that the model's chat template makes."""
        render = functools.partial(chat_text, self.tokenizer, chat)
        return render() if chat.ByteSize() <= INLINE_CHARS else await asyncio.to_thread(render)

    async def encode(self, text: str, *, is_rendered: bool = False) -> list[int]:
        encode = self.tokenizer.encode_rendered if is_rendered else self.tokenizer.encode
        return encode(text) if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode, text)

    def check_ids(self, ids: Collection[int], field: str) -> list[int]:
        largest = max(ids, default=0)
        _expect(largest < self._vocab_size, field, f"ids below {self._vocab_size}", largest)
        return list(ids)

    def _sampling(self, request: pb.GenerateRequest, prompt_tokens: int, *, is_ranked: bool) -> SamplingParams:
        sampling, stop = request.sampling, request.stop
        self.check_ids(sampling.logit_bias.keys(), "sampling.logit_bias")
        room = self._model.max_context - prompt_tokens
        logprobs = request.logprobs if request.HasField("logprobs") else 0 if is_ranked else None
        return SamplingParams(
            max_tokens=min(stop.max_tokens, room) if stop.HasField("max_tokens") else room,
            temperature=sampling.temperature if sampling.HasField("temperature") else 0.0,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p if sampling.HasField("typical_p") else 1.0,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=tuple(sorted(sampling.logit_bias.items())),
            min_tokens=stop.min_tokens,
            seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
            logprobs=logprobs,
            prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        )

    async def _constraints(self, request: pb.GenerateRequest, continued_ids: Sequence[int]) -> tuple[Constraint, ...]:
        found: list[Constraint] = []
        words = _texts(
            request.sampling.bad_words, "sampling.bad_words", most=MAX_BAD_WORDS, most_chars=MAX_BAD_WORD_CHARS
        )
        if request.HasField("guide"):
            form = _form(request.guide)
            _expect(
                not request.stop.ignore_eos, "stop.ignore_eos", "false beside a guide, which ends the answer", "true"
            )
            _expect(bool(self.tokenizer.eos_ids), "guide", "a model that has an end token", "one that has none")
            found.append(await self._guides.compile(form, self.tokenizer))
        if words:
            found.append(await asyncio.to_thread(self._bad_words, words, continued_ids))
        return tuple(found)

    def _bad_words(self, words: Sequence[str], continued_ids: Sequence[int]) -> BadWords:
        open_bytes = self.tokenizer.open_bytes(continued_ids)
        return BadWords(words, self.tokenizer.spelled, vocab_size=self._vocab_size, open_bytes=open_bytes)


def _form(guide: pb.Guide) -> Form:
    match guide.WhichOneof("form"):
        case "json_schema":
            return Form(FormKind.JSON_SCHEMA, guide.json_schema)
        case "json_object":
            _expect(guide.json_object, "guide.json_object", "true", "false")
            return ANY_JSON_OBJECT
        case "regex":
            return Form(FormKind.REGEX, guide.regex)
        case "grammar":
            return Form(FormKind.GRAMMAR, guide.grammar)
        case "choices":
            texts = guide.choices.texts
            _expect(0 < len(texts) <= MAX_CHOICES, "guide.choices", f"1 to {MAX_CHOICES} texts", len(texts))
            _expect(all(texts), "guide.choices", "no empty text", "one")
            return Form.choices(texts)
        case _:
            raise InvalidRequest("guide: expected a form, found none", field="guide")


def _texts(texts: Sequence[str], field: str, *, most: int, most_chars: int) -> tuple[str, ...]:
    _expect(len(texts) <= most, field, f"at most {most}", len(texts))
    if any(not 0 < len(text) <= most_chars for text in texts):
        raise InvalidRequest(f"{field}: expected 1 to {most_chars} characters in each, found one outside", field=field)
    return tuple(texts)


def _expect(holds: bool, field: str, expected: str, found: object) -> None:
    if not holds:
        raise InvalidRequest(f"{field}: expected {expected}, found {found}", field=field)
