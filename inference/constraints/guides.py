"""Answers in a form: JSON of a schema, a regular expression, a grammar, or one of some texts.

    Form ─► tried in another process ─► compiled, once for equal forms and vocabularies ─► Guide ─► a walk per answer

Joins llguidance, which knows the grammars, to `engine.constraint`, by which the engine knows neither.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import llguidance
import numpy as np
import torch
from torch import Tensor

from inference.constraints.form_trial import FormTrial
from inference.constraints.forms import Form, is_stuck, read, reason
from inference.errors import AnswerStuck, GuideTooComplex, QueueFull

MAX_COMPILED = 128  # guides kept, the latest used; a large one is a few MB
MAX_WRAPPED = 8  # vocabularies kept; a large one is some ten MB
MAX_PENDING = 32  # forms that wait to be read, each for at most the time of a trial


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
        self._trial = FormTrial()
        self._wrapped: OrderedDict[str, llguidance.LLTokenizer] = OrderedDict()  # by identity; of the thread alone
        self._compiled: OrderedDict[tuple[str, Form], Guide] = OrderedDict()
        self._pending: dict[tuple[str, Form], asyncio.Task[Guide]] = {}

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
            pending = asyncio.create_task(self._compile(form, vocabulary))
            self._pending[key] = pending
            pending.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(pending)  # a caller that leaves must not take it from the others

    async def close(self) -> None:
        """Ends what was started, and whatever waits for it."""
        for pending in list(self._pending.values()):
            pending.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._trial.close()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _keep(self, key: tuple[str, Form], done: asyncio.Task[Guide]) -> None:
        del self._pending[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[key] = done.result()
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    async def _compile(self, form: Form, vocabulary: Vocabulary) -> Guide:
        await self._trial.check(form)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, form, vocabulary)

    def _read(self, form: Form, vocabulary: Vocabulary) -> Guide:
        return Guide(read(form, self._wrap(vocabulary)))

    def _wrap(self, vocabulary: Vocabulary) -> llguidance.LLTokenizer:
        wrapped = self._wrapped.get(vocabulary.identity)
        if wrapped is None:
            wrapped = self._wrapped[vocabulary.identity] = wrap(vocabulary)
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
        if is_stuck(matcher):
            # What follows is in no token of the vocabulary, or the grammar has a way that leads nowhere.
            raise AnswerStuck(f"guide: after {self._count} tokens no token leads to the form")
        if matcher.is_error():
            raise GuideTooComplex(f"guide: after {self._count} tokens: {reason(matcher)}")
        # A few bits more than there are tokens, all of them 0.
        return torch.from_numpy(np.unpackbits(bits, bitorder="little").view(np.bool_))


def wrap(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """The vocabulary as llguidance knows it; it takes a moment for a large one."""
    spelled: Any = _Spelled(vocabulary)
    return llguidance.LLTokenizer(spelled, eos_token=sorted(vocabulary.eos_ids))


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
