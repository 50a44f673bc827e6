"""Forms that an answer may be asked to have, and what llguidance makes of their text. Knows no vocabulary and no torch.

A form comes from a stranger: its text is limited, reading it and every step through it have a limit of work and of
memory, and what is over a limit or not understood is refused by name, never half obeyed.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from inference.errors import GuideRefused

MAX_FORM_CHARS = 65_536
MAX_REGEX_CHARS = 4096  # a step through one is about 1 ms then
MAX_REASON_CHARS = 500  # of the library's, which may quote all of the form
LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms of reading
    step_lexer_fuel=100_000,  # 7 ms of a step
    step_max_items=50_000,  # 3 ms of a step
    max_items_in_row=10_000,  # 4 for each property that an object may or may not have
    max_lexer_states=10_000,  # 20 MB of an answer
    max_grammar_size=100_000,
    verbose_errors=False,
)
# What a schema may change for itself, under its key x-guidance, and what it may not: it is obeyed in full or refused.
JSON_DEFAULTS: Any = {
    # One blank, or a new line and its indent: small models love to go on with blanks and empty lines for ever.
    "whitespace_pattern": r" |\r?\n[ \t]{0,32}",
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
            raise self.refused(f"expected 1 to {most} characters, found {len(self.text)}")

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Form:
        """One of these texts."""
        return cls(FormKind.GRAMMAR, "start: " + " | ".join(json.dumps(text) for text in texts))

    def refused(self, reason: str) -> GuideRefused:
        """The error that it cannot be followed."""
        field = f"guide.{self.kind.value}"
        return GuideRefused(f"{field}: {reason.strip()[:MAX_REASON_CHARS]}", field=field)


ANY_JSON_OBJECT = Form(FormKind.JSON_SCHEMA, '{"type": "object"}')


def read(form: Form, tokenizer: llguidance.LLTokenizer) -> llguidance.LLMatcher:
    """What follows the form from its beginning, in the tokens of a vocabulary.

    Raises GuideRefused when the form is not understood, over a limit, or no answer has it.
    """
    try:
        matcher = llguidance.LLMatcher(tokenizer, _grammar(form), limits=LIMITS, log_level=0)
    except ValueError as error:  # it is no JSON
        raise form.refused(str(error)) from None
    matcher.compute_bitmask()  # what is far too complex shows at the first step, and so does what nothing has
    if is_stuck(matcher):
        raise form.refused("expected a form that some answer has, found one that none has")
    if matcher.is_error():
        raise form.refused(reason(matcher))
    return matcher


def is_stuck(matcher: llguidance.LLMatcher) -> bool:
    """Whether nothing can follow, and the form is not complete either."""
    if matcher.is_error():
        return matcher.get_error().startswith("NoExtension")
    return matcher.is_stopped() and not matcher.is_accepting()


def reason(matcher: llguidance.LLMatcher) -> str:
    """Why it failed, in the library's words without its own state, which say nothing to a user."""
    error = matcher.get_error()
    if error.startswith("panic"):
        return "it is not understood"
    return error.removesuffix("\n<non-verbose/>")[:MAX_REASON_CHARS]


def _grammar(form: Form) -> str:
    match form.kind:
        case FormKind.JSON_SCHEMA:
            return llguidance.LLMatcher.grammar_from_json_schema(form.text, JSON_DEFAULTS, JSON_OVERRIDES)
        case FormKind.REGEX:
            return llguidance.LLMatcher.grammar_from_regex(form.text)
        case FormKind.GRAMMAR:
            return llguidance.LLMatcher.grammar_from_lark(form.text)
