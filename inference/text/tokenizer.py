"""Text to token ids and back, from the files of a Hugging Face folder, without transformers.

tokenizer.json decides how text is cut, special tokens included; tokenizer_config.json and special_tokens_map.json name
the special tokens; generation_config.json or config.json says which tokens end an answer. `decode` is that of the
tokenizer itself, without the clean-up of spaces that transformers may add: it changes text that was meant.

An adapter that was trained with tokens or a chat template of its own brings these files along, and each takes the place
of the model's. What ends an answer is what the model says, and the eos_token of the adapter's tokenizer too.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from inference.constraints.spelled_vocabulary import SpelledVocabulary
from inference.errors import BaseModelRefused
from inference.text.chat import TEMPLATE_FILE, ChatTemplate, Message
from inference.text.detokenize import IncrementalDecoder, Spelling, StopStrings, read_spelling

__all__ = ["IncrementalDecoder", "StopStrings", "Tokenizer"]


class Tokenizer:
    """The tokenizer of one model; safe to share between threads.

    `eos_ids` are the tokens that end an answer. They have no text in it, as special tokens have none.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        chat_template: ChatTemplate,
        *,
        spelling: Spelling,
        eos_ids: frozenset[int],
        identity: str,
    ) -> None:
        self.eos_ids = eos_ids
        self.identity = identity
        """Equal for tokenizers that treat every text alike, whatever else their files say."""
        self._spelling = spelling
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special} | eos_ids

    @classmethod
    def load(cls, folder: Path, *, adapter: Path | None = None) -> Tokenizer:
        """Read a Hugging Face folder, and before it the files of an adapter's folder.

        Raises BaseModelRefused when a file is missing, broken or not understood.
        """

        def find(name: str) -> Path:
            return adapter / name if adapter is not None and (adapter / name).exists() else folder / name

        path = find("tokenizer.json")
        raw = _read_object(path)
        try:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library raises plain Exception
            raise BaseModelRefused(f"{path}: {error}") from None
        tokenizer.no_truncation()  # a prompt is refused when it is too long, never cut
        tokenizer.no_padding()
        settings = _read_object(find("tokenizer_config.json"), is_needed=False)
        _check_added_tokens(tokenizer, settings)
        if adapter is not None:
            _check_known(tokenizer, _read_object(adapter / "added_tokens.json", is_needed=False), "added_tokens.json")
        special_tokens = _special_tokens(_read_object(find("special_tokens_map.json"), is_needed=False) | settings)
        own_settings = _read_object(adapter / "tokenizer_config.json", is_needed=False) if adapter is not None else {}
        if adapter is not None and ("chat_template" in own_settings or (adapter / TEMPLATE_FILE).exists()):
            chat_template = ChatTemplate.load(adapter, own_settings, special_tokens)
        else:
            model_settings = _read_object(folder / "tokenizer_config.json", is_needed=False)
            chat_template = ChatTemplate.load(folder, model_settings, special_tokens)
        eos_ids = _eos_ids(folder, tokenizer, special_tokens)
        decisive = {name: value for name, value in raw.items() if name not in ("truncation", "padding")}
        parts = [decisive, special_tokens, chat_template.sources, sorted(eos_ids)]
        return cls(
            tokenizer,
            chat_template,
            spelling=read_spelling(raw.get("decoder")),
            eos_ids=eos_ids,
            identity=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
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
        arguments: Mapping[str, object] | None = None,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Ids of a conversation, as `render_chat` writes it."""
        text = self.render_chat(
            messages, tools=tools, arguments=arguments, continue_final_message=continue_final_message
        )
        return self.encode_rendered(text)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        arguments: Mapping[str, object] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt that the model's chat template makes. Raises InvalidRequest; see `inference.text.chat`."""
        return self._chat_template.render(
            messages, tools=tools, arguments=arguments, continue_final_message=continue_final_message
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in self._special_ids]
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

    def open_bytes(self, token_ids: Sequence[int]) -> bytes:
        """Those at the end of these tokens that begin a character and do not complete it."""
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        utf8.decode(b"".join(self.vocabulary[token_id] for token_id in token_ids if token_id < len(self.vocabulary)))
        return utf8.getstate()[0]

    @functools.cached_property
    def size(self) -> int:
        """Every id is below."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def vocabulary(self) -> tuple[bytes, ...]:
        """What each token id adds to a text; empty for a special token, and for an id that is none."""
        size = max(self.size, max(self.eos_ids, default=-1) + 1)  # the model's own end may be no word of the tokenizer
        texts = map(self._text_token, range(size))
        return tuple(b"" if text is None else self._spelling.token_bytes(text) for text in texts)

    @functools.cached_property
    def spelled(self) -> SpelledVocabulary:
        """`vocabulary`, to be searched; it takes a moment to make."""
        return SpelledVocabulary(self.vocabulary)

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
    by_id = added.items() if isinstance(added, dict) else ()
    _check_known(tokenizer, {str(token.get("content")): token_id for token_id, token in by_id}, "tokenizer_config.json")


def _check_known(tokenizer: tokenizers.Tokenizer, added: Mapping[str, object], what: str) -> None:
    for content, token_id in added.items():
        found = tokenizer.token_to_id(content)
        if str(found) != str(token_id):
            raise BaseModelRefused(
                f"{what}: expected the added token {content!r} at {token_id}, where tokenizer.json has it at {found}"
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
    return frozenset(eos_id for eos_id in ids if eos_id >= 0)  # some configurations say -1 for none
