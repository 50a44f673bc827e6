"""From the Chat of a request to the text of a prompt. Checks what a stranger may pass to the model's own template."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from inference.errors import InvalidRequest
from inference.tokenizer import Tokenizer
from loraplex.inference.v1 import inference_service_pb2 as pb

MAX_TEMPLATE_ARGUMENTS = 64
OPTIONAL = ("name", "tool_call_id", "reasoning_content")  # of a message; a template asks whether they are there


def chat_text(tokenizer: Tokenizer, chat: pb.Chat) -> str:
    """The prompt that the model's chat template makes. Raises InvalidRequest with the field at fault."""
    if not chat.messages:
        raise InvalidRequest("chat.messages: expected at least one message, found none", field="chat.messages")
    if not any(message.content or message.tool_calls for message in chat.messages):
        raise InvalidRequest("chat.messages: expected content, found empty messages only", field="chat.messages")
    arguments = plain(chat.template_arguments)
    if len(arguments) > MAX_TEMPLATE_ARGUMENTS:
        raise InvalidRequest(
            f"chat.template_arguments: expected at most {MAX_TEMPLATE_ARGUMENTS}, found {len(arguments)}",
            field="chat.template_arguments",
        )
    return tokenizer.render_chat(
        [_message(message) for message in chat.messages],
        tools=[plain(tool) for tool in chat.tools] or None,
        arguments=arguments,
        continue_final_message=chat.continue_final_message,
    )


def plain(struct: Struct) -> dict[str, object]:
    """A Struct as Python's own values. It has but one kind of number: those that are whole become integers."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _message(message: pb.ChatMessage) -> Mapping[str, object]:
    found: dict[str, object] = {"role": message.role, "content": message.content}
    found |= {name: value for name in OPTIONAL if (value := getattr(message, name))}
    if message.tool_calls:
        found["tool_calls"] = [plain(call) for call in message.tool_calls]
    return found


def _plain(value: Value | ListValue | Struct) -> object:
    if isinstance(value, Struct):
        return plain(value)
    if isinstance(value, ListValue):
        return [_plain(one) for one in value.values]
    kind = value.WhichOneof("kind")
    if kind in ("struct_value", "list_value"):
        return _plain(getattr(value, kind))
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in (None, "null_value") else getattr(value, kind)
