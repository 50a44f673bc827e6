"""Token ids to text as they come. Knows the two ways in which decoders of the Llama family spell text, and no model.

    ByteLevel       every token is bytes (Llama 3, SmolLM2, Qwen): text = UTF-8 of all bytes, U+FFFD for what is none
    SentencePiece   tokens are text with a mark for spaces, and <0xNN> for a byte where the vocabulary has no
                    character (Llama 2, Mistral): a run of bytes is UTF-8 as a whole, or a U+FFFD for each of its bytes

A piece is given out when no later token can change it; all pieces together are what `decode` makes of all the ids. So
a character whose bytes come in several tokens waits for the last of them, and with SentencePiece a run of bytes waits
for its end, as one wrong byte spoils all of it.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from inference.errors import BaseModelRefused

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
REPLACEMENT = "\ufffd"
CONTINUATION_BYTES = bytes(range(0x80, 0xC0))  # of UTF-8; no character begins with one

TokenText = Callable[[int], str | None]
"""The text of a token id as the vocabulary spells it, or None for an id that decoding leaves out."""


class IncrementalDecoder(Protocol):
    """One answer's decoder. All pieces of `push` and the one of `finish` make the text."""

    def push(self, token_id: int) -> str:
        """The text that is certain with this token and was not given out before; often empty."""

    def finish(self) -> str:
        """The rest, in which unfinished characters are U+FFFD."""

    def forget(self) -> None:
        """Takes what was pushed as said already: of it, only what completes an open character is given out later."""


class Spelling(Protocol):
    """How the tokens of a vocabulary spell text."""

    def token_bytes(self, token: str) -> bytes:
        """What a token adds to the bytes of a text, without what a decoder does at the text's beginning."""

    def decoder(self, token_text: TokenText) -> IncrementalDecoder:
        """Decodes a text of its own: what the tokenizer put at its beginning is taken away."""

    def exact_decoder(self, token_text: TokenText) -> IncrementalDecoder:
        """Decodes the bytes of the tokens and takes nothing away."""


def read_spelling(spec: object) -> Spelling:
    """The spelling of a tokenizer, from the `decoder` object of its tokenizer.json.

    Raises BaseModelRefused on any other decoder, naming its steps.
    """
    steps = _steps(spec)
    names = [str(step.get("type")) for step in steps]
    if names == ["ByteLevel"]:
        return ByteLevel()
    if names in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        strip = steps[3] if len(steps) == 4 else {"content": "", "start": 0, "stop": 0}
        match steps[0], strip:
            case (
                {"pattern": {"String": str(mark)}, "content": str(space)},
                {"content": str(strip_char), "start": int(strip_count), "stop": 0},
            ):
                return SentencePiece(mark, space, strip_char, strip_count)
    raise BaseModelRefused(
        "tokenizer.json: expected the decoder ByteLevel, or Replace, ByteFallback, Fuse and Strip at the start; "
        f"found {', '.join(names) or 'none'}"
    )


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """Tokens are bytes, each byte spelled as one visible character (the GPT-2 vocabulary's way)."""

    def token_bytes(self, token: str) -> bytes:
        table = _byte_of_char()
        try:
            return bytes([table[char] for char in token])
        except KeyError:  # an added token that spells no bytes is its own text
            return token.encode("utf-8")

    def decoder(self, token_text: TokenText) -> IncrementalDecoder:
        return ByteLevelDecoder(self, token_text)

    def exact_decoder(self, token_text: TokenText) -> IncrementalDecoder:
        return ByteLevelDecoder(self, token_text)


class ByteLevelDecoder:
    """Decodes a stream of UTF-8."""

    def __init__(self, spelling: ByteLevel, token_text: TokenText) -> None:
        self._spelling = spelling
        self._token_text = token_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        token = self._token_text(token_id)
        return "" if token is None else self._utf8.decode(self._spelling.token_bytes(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)

    def forget(self) -> None:
        """Only an open character is kept, and it is given out once it is whole."""


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """Tokens are text: `mark` stands for `space`, <0xNN> for a byte.

    Of a whole text the first `strip_count` characters go if they are `strip_char`: the tokenizer put them there.
    """

    mark: str
    space: str
    strip_char: str
    strip_count: int

    def text(self, token: str) -> str:
        """A token's text or its <0xNN>. The space is put in first, as in the tokenizer's own order of steps."""
        return token.replace(self.mark, self.space)

    def token_bytes(self, token: str) -> bytes:
        text = self.text(token)
        byte = BYTE_TOKEN.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.encode("utf-8")

    def decoder(self, token_text: TokenText) -> IncrementalDecoder:
        return SentencePieceDecoder(self, token_text, strip_count=self.strip_count)

    def exact_decoder(self, token_text: TokenText) -> IncrementalDecoder:
        return SentencePieceDecoder(self, token_text, strip_count=0)


class SentencePieceDecoder:
    """Decodes text and runs of bytes, each run at its end."""

    def __init__(self, spelling: SentencePiece, token_text: TokenText, *, strip_count: int) -> None:
        self._spelling = spelling
        self._token_text = token_text
        self._strip_left = strip_count
        self._run = bytearray()
        self._said = 0
        """Bytes of the run whose text was given out before."""

    def push(self, token_id: int) -> str:
        token = self._token_text(token_id)
        if token is None:
            return ""
        text = self._spelling.text(token)
        if byte := BYTE_TOKEN.fullmatch(text):
            self._run.append(int(byte[1], 16))
            return ""
        return self._stripped(self._end_of_run() + text)

    def finish(self) -> str:
        return self._stripped(self._end_of_run())

    def forget(self) -> None:
        """Of an open run, its whole characters were said."""
        # What was pushed may begin in the middle of a text, and so of a character, whose bytes spoil the run.
        self._run = self._run.lstrip(CONTINUATION_BYTES)
        try:
            bytes(self._run).decode("utf-8")
        except UnicodeDecodeError as error:
            is_open = error.reason == "unexpected end of data"
            self._said = error.start if is_open else len(self._run)
        else:
            self._said = len(self._run)
        self._stripped(bytes(self._run[: self._said]).decode("utf-8", "replace"))  # what was said began the text

    def _end_of_run(self) -> str:
        run, said = bytes(self._run), self._said
        self._run.clear()
        self._said = 0
        try:
            run.decode("utf-8")
            return run[said:].decode("utf-8")
        except UnicodeDecodeError:
            return REPLACEMENT * (len(run) - said)

    def _stripped(self, text: str) -> str:
        char = self._spelling.strip_char
        while self._strip_left and text:
            if not text.startswith(char):
                self._strip_left = 0
                break
            text = text[len(char) :]
            self._strip_left -= 1
        return text


class StopStrings:
    """Finds the first of several strings in a text that comes in pieces, and holds back what may become one.

    The first is the one that is complete first; of two that are complete at the same character, the longer. So the
    answer does not depend on where the pieces end.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise ValueError("expected stop strings of at least one character, found an empty one")
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Returns the text that is now certain to stay, and the stop string that ended it, if one did."""
        if not self._strings:
            return text, None
        seen = self._held + text
        found = [
            (begin + len(string), -len(string), string) for string in self._strings if (begin := seen.find(string)) >= 0
        ]
        if found:
            end, _, string = min(found)
            self._held = ""
            return seen[: end - len(string)], string
        kept = len(seen) - self._longest_beginning(seen)
        self._held = seen[kept:]
        return seen[:kept], None

    def finish(self) -> str:
        """The text that was held back and has not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, seen: str) -> int:
        """Length of the longest end of `seen` with which a stop string begins."""
        longest = max(map(len, self._strings)) - 1
        for length in range(min(longest, len(seen)), 0, -1):
            end = seen[-length:]
            if any(string.startswith(end) for string in self._strings):
                return length
        return 0


def _steps(spec: object) -> list[Mapping[str, object]]:
    """The steps of a decoder, sequences opened."""
    if not isinstance(spec, dict):
        return []
    if spec.get("type") == "Sequence":
        return [step for inner in spec.get("decoders", []) for step in _steps(inner)]
    return [spec]


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling: printable Latin-1 characters are themselves, the other bytes follow from U+0100 in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in table]
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}
