"""Conversations with tools come through as the templates of three families expect them; transformers is the judge.

The templates are our own, written in the manner of those that come with the models: the same variables, tests and
filters.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from inference.errors import InvalidRequest
from inference.text.chat import ChatTemplate
from inference.wire.chat_requests import MAX_TEMPLATE_ARGUMENTS, chat_text
from loraplex.inference.v1 import inference_service_pb2 as pb

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == 'user' %}{%- set ns.last_query = index %}{% break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- endif %}
        {{- '<|im_start|>assistant' }}
        {%- if loop.index0 > ns.last_query and reasoning %}
            {{- '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n' }}
        {%- endif %}
        {{- '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if loop.first and tools and tools_in_user_message %}{{- tools | tojson(indent=4) }}{%- endif %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """\
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and (message == users[-1]) %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != 'return' %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ', ' }}{%- endif %}
                {%- endfor %}
                {{- '}}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
            {%- endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {%- if message.name is defined %}{{- message.name }}{%- endif %}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
            "required": ["place"],
        },
    },
}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Łódź", "days": 2, "exact": 0.5, "more": [None, True, {}]}},
}
MESSAGES = [
    {"role": "user", "content": "  How is it in Łódź? "},
    {"role": "assistant", "content": "", "reasoning_content": "I should look.\n", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "abcdef123", "name": "weather"},
    {"role": "assistant", "content": "Grey."},
    {"role": "user", "content": "And tomorrow?"},
]


class Renderer:
    """The part of a Tokenizer that renders."""

    def __init__(self, source: str) -> None:
        self._template = ChatTemplate({"default": source}, special_tokens=TOKENS)

    def render_chat(self, messages: Any, **settings: Any) -> str:
        return self._template.render(messages, **settings)


def ours(source: str, messages: Any, *, tools: Any = (), arguments: Any = None, **fields: Any) -> str:
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(**message | {"tool_calls": [json.dumps(call) for call in message.get("tool_calls", ())]})
            for message in messages
        ],
        tool_texts=[json.dumps(tool) for tool in tools],
        template_arguments="" if arguments is None else json.dumps(arguments),
        **fields,
    )
    return chat_text(Renderer(source), chat)  # type: ignore[arg-type]


def theirs(source: str, messages: Any, **settings: Any) -> str:
    rendered, _ = render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=True, **{"tools": None, **settings}, **TOKENS
    )
    return str(rendered[0])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, WEATHER]])
@pytest.mark.parametrize("count", range(1, len(MESSAGES) + 1))
def test_a_conversation_with_tools_is_rendered_as_transformers_does(name: str, tools: Any, count: int) -> None:
    expected = theirs(TEMPLATES[name], MESSAGES[:count], tools=tools)
    assert ours(TEMPLATES[name], MESSAGES[:count], tools=tools or ()) == expected
    if count > 1:
        assert '{"place": "Łódź", "days": 2,' in expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("qwen", {"enable_thinking": False}),
        ("qwen", {"enable_thinking": True}),
        ("llama", {"date_string": "yesterday", "tools_in_user_message": False}),
        ("llama", {"custom_tools": [WEATHER], "documents": [{"title": "a", "pages": 3}]}),
    ],
)
def test_template_arguments_arrive_by_name(name: str, arguments: dict[str, Any]) -> None:
    expected = theirs(TEMPLATES[name], MESSAGES[:1], tools=[WEATHER], **arguments)
    found = ours(TEMPLATES[name], MESSAGES[:1], tools=[WEATHER], arguments=arguments)
    assert found == expected
    assert name == "llama" or (arguments["enable_thinking"] != ("<think>" in found))


def test_what_the_template_refuses_is_the_requests_fault_with_its_reason() -> None:
    short = [*MESSAGES[:1], {"role": "assistant", "tool_calls": [CALL | {"id": "short"}]}]
    with pytest.raises(InvalidRequest, match="length 9"):
        ours(MISTRAL, short)
    twice = [*MESSAGES[:1], {"role": "assistant", "tool_calls": [CALL, CALL]}]
    with pytest.raises(InvalidRequest, match="single tool-calls"):
        ours(LLAMA, twice)


def test_a_turn_without_tools_has_none_of_their_fields() -> None:
    source = "{% for message in messages %}{{ message | list | sort | join(' ') }};{% endfor %}"
    plain = {"role": "user", "content": "hi"}
    full = {
        "role": "tool",
        "content": "x",
        "name": "n",
        "tool_call_id": "i",
        "reasoning_content": "r",
        "tool_calls": [{}],
    }
    assert ours(source, [plain, full]) == "content role;content name reasoning_content role tool_call_id tool_calls;"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token", "not a name", ""])
def test_an_argument_cannot_replace_what_the_template_gets_anyway(name: str) -> None:
    with pytest.raises(InvalidRequest, match="names that the template does not get anyway") as refused:
        ours(QWEN, MESSAGES[:1], arguments={name: 1})
    assert refused.value.field == "chat.template_arguments"


def test_too_many_arguments_are_refused() -> None:
    most = {f"a{number}": number for number in range(MAX_TEMPLATE_ARGUMENTS)}
    assert ours("{{ a7 }}", MESSAGES[:1], arguments=most) == "7"
    with pytest.raises(InvalidRequest, match="at most 64, found 65"):
        ours("{{ a7 }}", MESSAGES[:1], arguments=most | {"one_more": 1})


def test_a_last_message_with_thoughts_can_be_continued() -> None:
    messages = [*MESSAGES[:1], {"role": "assistant", "content": "It is", "reasoning_content": "Grey, I think."}]
    found = ours(QWEN, messages, continue_final_message=True)
    assert found.endswith("<think>\nGrey, I think.\n</think>\n\nIt is")


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', '{"a": NaN}', '{"a": Infinity}', '{"a":' * 100_000, "{} {}"])
@pytest.mark.parametrize("field", ["tool_texts", "tool_calls", "template_arguments"])
def test_what_is_no_json_object_is_refused_with_its_field(field: str, text: str) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    if field == "tool_calls":
        chat.messages.add(role="assistant", tool_calls=[text])
    elif field == "tool_texts":
        chat.tool_texts.append(text)
    elif not text:
        return  # which means none
    else:
        chat.template_arguments = text
    with pytest.raises(InvalidRequest, match="expected a JSON object, found") as refused:
        chat_text(Renderer(QWEN), chat)  # type: ignore[arg-type]
    assert str(refused.value.field).endswith(field)
    assert len(str(refused.value)) < 300


def test_tools_without_an_order_come_in_the_alphabet_s() -> None:
    tool = {"type": "function", "function": {"name": "b", "arguments": {"z": 1, "y": 0.5, "a": [True, None, "é"]}}}
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    chat.tools.add().update(tool)
    ordered = json.loads(json.dumps(tool, sort_keys=True))
    expected = ours(QWEN, [{"role": "user", "content": "hi"}], tools=[ordered])
    assert chat_text(Renderer(QWEN), chat) == expected  # type: ignore[arg-type]
    chat.tool_texts.append("{}")
    with pytest.raises(InvalidRequest, match="either tools or tool_texts, found 1 and 1"):
        chat_text(Renderer(QWEN), chat)  # type: ignore[arg-type]
    del chat.tool_texts[:]
    chat.tools[0]["nan"] = float("nan")
    with pytest.raises(InvalidRequest, match=r"chat\.tools: expected what JSON can say"):
        chat_text(Renderer(QWEN), chat)  # type: ignore[arg-type]
