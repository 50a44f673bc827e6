"""From the Chat of a request to the text of a prompt. Checks what a stranger may pass to the model's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct

from inference.errors import InvalidRequest
from inference.text.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_TEMPLATE_ARGUMENTS = 64
OPTIONAL = ("name", "tool_call_id", "reasoning_content")  # of a message; a template asks whether they are there


def chat_text(tokenizer: Tokenizer, chat: pb.Chat) -> str:
    """The prompt that the model's chat template makes. Raises InvalidRequest with the field at fault."""
    if not chat.messages:
        raise InvalidRequest("chat.messages: expected at least one message, found none", field="chat.messages")
    if not any(message.content or message.tool_calls for message in chat.messages):
        raise InvalidRequest("chat.messages: expected content, found empty messages only", field="chat.messages")
    arguments = _object(chat.template_arguments, "chat.template_arguments") if chat.template_arguments else {}
    if len(arguments) > MAX_TEMPLATE_ARGUMENTS:
        raise InvalidRequest(
            f"chat.template_arguments: expected at most {MAX_TEMPLATE_ARGUMENTS}, found {len(arguments)}",
            field="chat.template_arguments",
        )
    return tokenizer.render_chat(
        [_message(message) for message in chat.messages],
        tools=_tools(chat) or None,
        arguments=arguments,
        continue_final_message=chat.continue_final_message,
    )


def _tools(chat: pb.Chat) -> list[dict[str, object]]:
    if chat.tools and chat.tool_texts:
        raise InvalidRequest(
            f"chat.tools: expected either tools or tool_texts, found {len(chat.tools)} and {len(chat.tool_texts)}",
            field="chat.tools",
        )
    return [_object(text, "chat.tool_texts") for text in chat.tool_texts] + [_plain(tool) for tool in chat.tools]


def _plain(tool: Struct) -> dict[str, object]:
    """A Struct with its keys sorted, since they come in any order and the prompt must be the same each time."""
    try:
        text = json.dumps(MessageToDict(tool), sort_keys=True)
    except (ValueError, SerializeToJsonError) as error:  # what is not a finite number
        raise InvalidRequest(f"chat.tools: expected what JSON can say: {error}", field="chat.tools") from None
    found: dict[str, object] = json.loads(text, parse_float=_number)
    return found


def _number(text: str) -> int | float:
    """A Struct has floating-point numbers only; the whole ones were written without a point."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _message(message: pb.ChatMessage) -> Mapping[str, object]:
    found: dict[str, object] = {"role": message.role, "content": message.content}
    found |= {name: value for name in OPTIONAL if (value := getattr(message, name))}
    if message.tool_calls:
        found["tool_calls"] = [_object(call, "chat.messages.tool_calls") for call in message.tool_calls]
    return found


def _object(text: str, field: str) -> dict[str, object]:
    """The object that JSON text means, its keys in their order."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field}: expected a JSON object, found {text[:40]!r}: {error}", field=field) from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{field}: expected a JSON object, found {text[:40]!r}", field=field)
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
