"""From the messages of a request to checked values: prompts to token ids, parameters to SamplingParams.

Everything here that is wrong raises InvalidRequest with the field at fault, before anything is computed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Sequence

from google.protobuf.json_format import MessageToDict

from inference.engine.request import SamplingParams
from inference.errors import InvalidRequest, NotImplementedYet, PromptTooLong
from inference.identity import ModelIdentity
from inference.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
# Longer text is tokenized on another thread, so that it does not hold up the streams of others.
INLINE_CHARS = 8192
# What the contract names and this release does not do; a request that asks for it is refused, never half served.
NOT_YET = ("priority", "n", "best_of", "echo", "prompt_logprobs", "guide", "tenant", "sampling.bad_words")


class RequestReader:
    """Reads requests for one model and one vocabulary."""

    def __init__(self, model: ModelIdentity, tokenizer: Tokenizer, *, vocab_size: int | None = None) -> None:
        """`vocab_size` is that of an adapter's own vocabulary, None for the model's."""
        self.tokenizer = tokenizer
        self._model = model
        self._vocab_size = model.vocab_size if vocab_size is None else vocab_size

    def of(self, tokenizer: Tokenizer, *, vocab_size: int | None) -> RequestReader:
        """A reader for the same model with an adapter's tokenizer and vocabulary."""
        return RequestReader(self._model, tokenizer, vocab_size=vocab_size)

    async def prompt_ids(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest("prompt: expected text, token_ids or chat, found none", field="prompt")
        if kind == "token_ids":
            ids = self.check_ids(request.token_ids.ids, "token_ids")
        else:
            is_chat = kind == "chat"
            text = self.render(request.chat) if is_chat else request.text
            # A tokenizer may know words that no row of the embedding stands for.
            ids = self.check_ids(await self.encode(text, is_rendered=is_chat), kind)
        if not ids:
            raise InvalidRequest("prompt: expected at least one token, found an empty prompt", field="prompt")
        if len(ids) >= self._model.max_context:
            raise PromptTooLong(
                f"prompt: expected fewer than {self._model.max_context} tokens, so that one can be answered; "
                f"found {len(ids)}",
                field="prompt",
            )
        return tuple(ids)

    def render(self, chat: pb.Chat) -> str:
        if not chat.messages:
            raise InvalidRequest("chat.messages: expected at least one message, found none", field="chat.messages")
        if not any(message.content for message in chat.messages):
            raise InvalidRequest("chat.messages: expected content, found empty messages only", field="chat.messages")
        return self.tokenizer.render_chat(
            [{"role": message.role, "content": message.content} for message in chat.messages],
            tools=[MessageToDict(tool) for tool in chat.tools] or None,
            continue_final_message=chat.continue_final_message,
        )

    async def encode(self, text: str, *, is_rendered: bool = False) -> list[int]:
        encode = self.tokenizer.encode_rendered if is_rendered else self.tokenizer.encode
        return encode(text) if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode, text)

    def check_ids(self, ids: Collection[int], field: str) -> list[int]:
        largest = max(ids, default=0)
        if largest >= self._vocab_size:
            raise InvalidRequest(f"{field}: expected ids below {self._vocab_size}, found {largest}", field=field)
        return list(ids)

    def sampling(self, request: pb.GenerateRequest, prompt_tokens: int) -> SamplingParams:
        sampling, stop = request.sampling, request.stop
        self.check_ids(sampling.logit_bias.keys(), "sampling.logit_bias")
        asked = {field.name for field, _ in request.ListFields()} | {
            f"sampling.{field.name}" for field, _ in sampling.ListFields()
        }
        if names := sorted(asked.intersection(NOT_YET)):
            raise NotImplementedYet(f"{names[0]} is not part of this release", field=names[0])
        room = self._model.max_context - prompt_tokens
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
            logprobs=request.logprobs if request.HasField("logprobs") else None,
        )


def stop_strings(strings: Sequence[str]) -> list[str]:
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop.strings: expected at most {MAX_STOP_STRINGS}, found {len(strings)}", field="stop.strings"
        )
    if any(not 0 < len(string) <= MAX_STOP_CHARS for string in strings):
        raise InvalidRequest(
            f"stop.strings: expected 1 to {MAX_STOP_CHARS} characters in each, found one outside", field="stop.strings"
        )
    return list(strings)
