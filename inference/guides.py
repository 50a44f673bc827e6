"""Answers in a form: JSON of a schema, a regular expression, a grammar, or one of some texts.

    Form ─► compiled on a thread of its own, once for equal forms ─► Guide ─► a walk for each answer

Joins llguidance, which knows the grammars, to `engine.constraint`, by which the engine knows neither. A form comes from
a stranger: its text is limited, compiling it and every step through it have a limit of work and of memory, and what is
over a limit or not understood is refused by name, never half obeyed.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import llguidance
import numpy as np
import torch
from torch import Tensor

from inference.errors import AnswerStuck, GuideRefused, GuideTooComplex, QueueFull

MAX_FORM_CHARS = 65_536
MAX_REGEX_CHARS = 4096  # a step through one is about 1 ms then
MAX_COMPILED = 128  # guides kept, the latest used; a large one is a few MB
MAX_WRAPPED = 8  # vocabularies kept; a large one is some ten MB
MAX_PENDING = 64  # forms that wait to be compiled, each for at most some 50 ms
MAX_REASON_CHARS = 500  # of the library's, which may quote all of the form
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms of compiling
    step_lexer_fuel=100_000,  # 7 ms of a step
    step_max_items=20_000,  # 1 ms of a step
    max_lexer_states=10_000,  # 20 MB of an answer
    max_grammar_size=100_000,
    verbose_errors=False,
)
# What a schema may change for itself, under its key x-guidance, and what it may not: it is obeyed in full or refused.
JSON_DEFAULTS: Any = {
    "whitespace_pattern": r"[ \n\r\t]{1,32}",  # enough to indent, and no way to go on with spaces for ever
    "coerce_one_of": False,  # to anyOf, which is less than what oneOf says
}
JSON_OVERRIDES: Any = {"lenient": False}


class FormKind(enum.Enum):
    """How the text of a form is to be read."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must look like. Equal forms have equal guides."""

    kind: FormKind
    text: str

    def __post_init__(self) -> None:
        most = MAX_REGEX_CHARS if self.kind is FormKind.REGEX else MAX_FORM_CHARS
        if not 0 < len(self.text) <= most:
            raise GuideRefused(
                f"guide.{self.kind.value}: expected 1 to {most} characters, found {len(self.text)}",
                field=f"guide.{self.kind.value}",
            )

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Form:
        """One of these texts."""
        return cls(FormKind.GRAMMAR, "start: " + " | ".join(json.dumps(text) for text in texts))


ANY_JSON_OBJECT = Form(FormKind.JSON_SCHEMA, '{"type": "object"}')


class Vocabulary(Protocol):
    """What of a tokenizer a guide depends on; Tokenizer is one."""

    @property
    def identity(self) -> str:
        """Equal for equal tokenizers."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""

    @property
    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of each token; see Tokenizer."""

    def encode_rendered(self, text: str) -> list[int]:
        """The tokens of a text, without special ones around it."""


class Guides:
    """Compiles forms, and keeps those that were used last."""

    def __init__(self) -> None:
        # One thread, however many forms come: compiling must not take the processor from the engine.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guides")
        self._wrapped: OrderedDict[str, llguidance.LLTokenizer] = OrderedDict()  # by identity; of the thread alone
        self._compiled: OrderedDict[tuple[str, Form], Guide] = OrderedDict()
        self._pending: dict[tuple[str, Form], asyncio.Future[Guide]] = {}

    async def compile(self, form: Form, vocabulary: Vocabulary) -> Guide:
        """The guide of a form in the tokens of a vocabulary that has end tokens.

        Raises GuideRefused when it is not understood or nothing has it, and QueueFull.
        """
        key = vocabulary.identity, form
        if (known := self._compiled.get(key)) is not None:
            self._compiled.move_to_end(key)
            return known
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise QueueFull(f"{len(self._pending)} guides are waiting to be compiled", retry_after_s=1.0)
            pending = asyncio.get_running_loop().run_in_executor(self._thread, self._compile, form, vocabulary)
            self._pending[key] = pending
            pending.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(pending)  # a caller that leaves must not take it from the others

    async def close(self) -> None:
        """Ends the thread, once what it compiles is done."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _keep(self, key: tuple[str, Form], done: asyncio.Future[Guide]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    def _compile(self, form: Form, vocabulary: Vocabulary) -> Guide:
        try:
            matcher = llguidance.LLMatcher(self._wrap(vocabulary), _grammar(form), limits=LIMITS, log_level=0)
        except ValueError as error:  # it is no JSON
            raise _refused(form, str(error)) from None
        matcher.compute_bitmask()  # what is far too complex shows at the first step, and so does what nothing has
        if _is_stuck(matcher):
            raise _refused(form, "expected a form that some answer has, found one that none has")
        if matcher.is_error():
            raise _refused(form, _reason(matcher))
        return Guide(matcher)

    def _wrap(self, vocabulary: Vocabulary) -> llguidance.LLTokenizer:
        wrapped = self._wrapped.get(vocabulary.identity)
        if wrapped is None:
            asked: Any = _Spelled(vocabulary)
            wrapped = llguidance.LLTokenizer(asked, eos_token=sorted(vocabulary.eos_ids))
            self._wrapped[vocabulary.identity] = wrapped
        self._wrapped.move_to_end(vocabulary.identity)
        while len(self._wrapped) > MAX_WRAPPED:
            self._wrapped.popitem(last=False)
        return wrapped


class Guide:
    """The constraint that an answer has a form."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def begin(self) -> GuideWalk:
        return GuideWalk(self._matcher.deep_copy())


class GuideWalk:
    """Where one answer stands. An end token is allowed exactly where the form is complete."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher
        self._count = 0

    def allowed(self, output_ids: Sequence[int]) -> Tensor:
        matcher = self._matcher
        matcher.consume_tokens(list(output_ids[self._count :]))
        self._count = len(output_ids)
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if _is_stuck(matcher):
            # What follows is in no token of the vocabulary, or the grammar has a way that leads nowhere.
            raise AnswerStuck(f"guide: after {self._count} tokens no token leads to the form")
        if matcher.is_error():
            raise GuideTooComplex(f"guide: after {self._count} tokens: {_reason(matcher)}")
        # A few bits more than there are tokens, all of them 0.
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").view(np.bool_))


class _Spelled:
    """What llguidance asks of a tokenizer; the public names are the library's."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.vocabulary
        # Tokens without a text are special, so that no form asks for them.
        self.special_token_ids = [token_id for token_id, token in enumerate(self.tokens) if not token]
        self.eos_token_id = min(vocabulary.eos_ids)
        self._encode = vocabulary.encode_rendered
        self._ids = {token: token_id for token_id, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly the text, by which forced text is answered; as far as there are any."""
        spelled = text.encode("utf-8")
        ids = self._encode(text)
        if b"".join(self.tokens[token_id] for token_id in ids) == spelled:
            return ids
        # A tokenizer that puts a space before every text: the longest token that fits, again and again.
        ids, start = [], 0
        while start < len(spelled):
            ends = range(min(len(spelled), start + self._longest), start, -1)
            end = next((end for end in ends if spelled[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[spelled[start:end]])
            start = end
        return ids


def _grammar(form: Form) -> str:
    match form.kind:
        case FormKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(form.text, JSON_DEFAULTS, JSON_OVERRIDES)
        case FormKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(form.text)
        case FormKind.GRAMMAR:
            return llguidance.LLMatcher.grammar_from_lark(form.text)


def _is_stuck(matcher: llguidance.LLMatcher) -> bool:
    """Whether nothing can follow, and the form is not complete either."""
    if matcher.is_error():
        return matcher.get_error().startswith("NoExtension")
    return matcher.is_stopped() and not matcher.is_accepting()


def _reason(matcher: llguidance.LLMatcher) -> str:
    """The library's words without its own state; of a failure within it they say nothing to a user."""
    error = matcher.get_error()
    return "it is not understood" if error.startswith("panic") else error.removesuffix("\n<non-verbose/>")


def _refused(form: Form, reason: str) -> GuideRefused:
    field = f"guide.{form.kind.value}"
    return GuideRefused(f"{field}: {reason.strip()[:MAX_REASON_CHARS]}", field=field)
