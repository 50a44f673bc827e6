"""The text of one answer as it grows: token by token in, pieces of text out, stop strings found. Knows no protobuf.

A piece of text is given out when no later token can change it: bytes of an unfinished character and characters that
may begin a stop string wait. Token ids are never held back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inference.engine.request import Token
from inference.text.detokenize import IncrementalDecoder, StopStrings


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens in order, the first at `index` of the answer, and the text that they complete."""

    index: int
    tokens: tuple[Token, ...]
    text: str


class Answer:
    """The text side of one answer."""

    def __init__(self, decoder: IncrementalDecoder, stop_strings: Sequence[str]) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stop_strings)
        self._logprobs = 0.0
        self.num_tokens = 0
        self.stop_string = ""
        """The stop string that ended the answer; empty when none did."""

    def push(self, tokens: Sequence[Token]) -> Piece:
        """Takes the next tokens. After a stop string the rest of them is dropped, and nothing more may be pushed."""
        assert not self.stop_string, "expected no tokens after a stop string"
        first, text, taken = self.num_tokens, "", 0
        for token in tokens:
            taken += 1
            self._logprobs += token.logprob or 0.0
            emitted, matched = self._stops.push(self._decoder.push(token.token_id))
            text += emitted
            if matched:
                self.stop_string = matched
                break
        self.num_tokens += taken
        return Piece(first, tuple(tokens[:taken]), text)

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, which were asked for with their log-probabilities."""
        return self._logprobs / max(1, self.num_tokens)

    def finish(self) -> str:
        """The text that was held back and now stays: nothing after a stop string."""
        if self.stop_string:
            return ""
        emitted, matched = self._stops.push(self._decoder.finish())
        self.stop_string = matched or ""
        return emitted if matched else emitted + self._stops.finish()
