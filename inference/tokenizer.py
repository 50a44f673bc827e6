"""Text to token ids and back, from the files of a Hugging Face folder, without transformers.

tokenizer.json decides how text is cut, special tokens included; tokenizer_config.json and special_tokens_map.json name
the special tokens; generation_config.json or config.json says which tokens end an answer. `decode` is that of the
tokenizer itself, without the clean-up of spaces that transformers may add: it changes text that was meant.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from inference.chat import ChatTemplate, Message
from inference.detokenize import IncrementalDecoder, Spelling, StopStrings, read_spelling
from inference.errors import BaseModelRefused

__all__ = ["IncrementalDecoder", "StopStrings", "Tokenizer"]


class Tokenizer:
    """The tokenizer of one model; safe to share between threads. `eos_ids` are the tokens that end an answer."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_template: ChatTemplate,
        *,
        spelling: Spelling,
        eos_ids: frozenset[int],
    ) -> None:
        self.eos_ids = eos_ids
        self._spelling = spelling
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a Hugging Face folder. Raises BaseModelRefused when a file is missing, broken or not understood."""
        raw = _read_object(folder / "tokenizer.json")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library raises plain Exception
            raise BaseModelRefused(f"{folder / 'tokenizer.json'}: {error}") from None
        tokenizer.no_truncation()  # a prompt is refused when it is too long, never cut
        tokenizer.no_padding()
        settings = _read_object(folder / "tokenizer_config.json", is_needed=False)
        _check_added_tokens(tokenizer, settings)
        special_tokens = _special_tokens(_read_object(folder / "special_tokens_map.json", is_needed=False) | settings)
        return cls(
            tokenizer,
            ChatTemplate.load(folder, settings, special_tokens),
            spelling=read_spelling(raw.get("decoder")),
            eos_ids=_eos_ids(folder, tokenizer, special_tokens),
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a plain prompt, with the special tokens that the tokenizer puts around one, such as a first bos."""
        return self._tokenizer.encode(text).ids

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a prompt that a chat template rendered: it holds its special tokens already."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Ids of a conversation, as `render_chat` writes it."""
        text = self.render_chat(messages, tools=tools, continue_final_message=continue_final_message)
        return self.encode_rendered(text)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt that the model's chat template makes. Raises InvalidRequest; see `inference.chat`."""
        return self._chat_template.render(messages, tools=tools, continue_final_message=continue_final_message)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def incremental_decoder(self, *, after: Sequence[int] = (), skip_special_tokens: bool = True) -> IncrementalDecoder:
        """A decoder of one answer. Its pieces together are `decode` of the answer, or what the answer adds to `after`.

        `after` matters to tokenizers whose decoder drops the first space of a text: an answer that goes on with a plain
        prompt's last word keeps its space. It also holds the beginning of a character that the answer may complete.
        """
        decoder = self._spelling.decoder(self._text_token if skip_special_tokens else self._tokenizer.id_to_token)
        for token_id in after:
            decoder.push(token_id)
        decoder.forget()
        return decoder

    def exact_decoder(self) -> IncrementalDecoder:
        """A decoder of one answer whose text is the bytes of `vocabulary`, with no space taken from its beginning."""
        return self._spelling.exact_decoder(self._text_token)

    @functools.cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """What each token id adds to a text; empty for a special token, and for an id that is none."""
        size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        texts = map(self._text_token, range(size))
        return tuple(b"" if text is None else self._spelling.token_bytes(text) for text in texts)

    def _text_token(self, token_id: int) -> str | None:
        return None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)


def _read_object(path: Path, *, is_needed: bool = True) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_needed:
            raise BaseModelRefused(f"{path.parent} holds no {path.name}") from None
        return {}
    except ValueError as error:
        raise BaseModelRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BaseModelRefused(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _special_tokens(settings: Mapping[str, object]) -> dict[str, str]:
    """The special tokens that have a name, as `eos_token`; each is a string or an object with its content."""
    found = {}
    for name, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


def _check_added_tokens(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, object]) -> None:
    """Tokens that only tokenizer_config.json knows would be cut into pieces that the model never saw."""
    added = settings.get("added_tokens_decoder")
    for token_id, token in added.items() if isinstance(added, dict) else ():
        content = str(token.get("content"))
        found = tokenizer.token_to_id(content)
        if str(found) != token_id:
            raise BaseModelRefused(
                f"tokenizer_config.json: expected the added token {content!r} at {token_id}, "
                f"where tokenizer.json has it at {found}"
            )


def _eos_ids(folder: Path, tokenizer: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> frozenset[int]:
    """The ids of generation_config.json, or else of config.json, and the eos_token of the tokenizer."""
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_object(folder / name, is_needed=False).get("eos_token_id")
        if value is not None:
            ids.update(value if isinstance(value, list) else [value])  # type: ignore[list-item] # checked below
            break
    if (eos := special_tokens.get("eos_token")) is not None and (eos_id := tokenizer.token_to_id(eos)) is not None:
        ids.add(eos_id)
    if not all(isinstance(eos_id, int) for eos_id in ids):
        raise BaseModelRefused(f"eos_token_id: expected an integer or a list of them, found {sorted(map(str, ids))}")
    return frozenset(ids)
