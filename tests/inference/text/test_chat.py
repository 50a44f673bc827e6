"""Messages become the prompt that transformers' chat templates would make of them."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from inference.errors import BaseModelRefused, InvalidRequest
from inference.text.chat import ChatTemplate

# In the manner of published templates: loops with breaks, macros, namespaces, tools, dates, trimmed content.
TEMPLATE = """\
{%- macro turn(role, text) -%}
{{ '<|' + role + '|>' }}{{ text }}{{ eos_token }}
{%- endmacro -%}
{{- bos_token }}
{%- set ns = namespace(system='none') %}
{% for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message['content'] %}{% break %}{% endif %}
{% endfor %}
{%- if tools %}
<tools>{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}</tools>
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role not in ('user', 'assistant') %}{{ raise_exception('unknown role ' + message.role) }}{% endif %}
    {%- if message.role == 'assistant' %}
{% generation %}{{ turn('assistant', message.content) }}{% endgeneration %}
    {%- else %}
{{ turn('user', message.content | trim) }} {{ ns.system }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "grüße", "parameters": {"a": ["<b>", "'", 1, None]}}}]
CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "  Hello!\n"},
    {"role": "assistant", "content": "Hi, what"},
]


def ours(messages, *, template=TEMPLATE, **settings):
    return ChatTemplate({"default": template}, special_tokens=TOKENS).render(messages, **settings)


def theirs(messages, *, template=TEMPLATE, tools=None, **settings):
    rendered, _ = render_jinja_template([messages], tools=tools, chat_template=template, **settings, **TOKENS)
    return rendered[0]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("messages", [CHAT, CHAT[:2], CHAT[1:2]])
def test_a_prompt_is_rendered_as_transformers_does(messages, tools):
    assert ours(messages, tools=tools) == theirs(messages, tools=tools, add_generation_prompt=True)


@pytest.mark.parametrize("content", ["Hi, what", "Hi, what ", "Hi,\n what\n"])
@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.replace("message.content)", "message.content | trim)")])
def test_the_last_message_is_left_open_as_transformers_does(template, content):
    messages = [*CHAT[:2], {"role": "assistant", "content": content}]
    expected = theirs(messages, template=template, continue_final_message=True)
    assert ours(messages, template=template, continue_final_message=True) == expected


def test_a_template_without_the_last_message_cannot_continue_it():
    with pytest.raises(InvalidRequest, match="does not render the last message"):
        ours(CHAT, template="{{ messages[0].content }}", continue_final_message=True)


def test_what_a_template_refuses_is_the_requests_fault_with_its_reason():
    with pytest.raises(InvalidRequest, match="unknown role robot"):
        ours([{"role": "robot", "content": "beep"}])


@pytest.mark.parametrize("template", ["{{ messages[0].content + 1 }}", "{{ nothing.at_all }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_an_invalid_request(template):
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        ours(CHAT, template=template)


@pytest.mark.parametrize(
    "template", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ messages.__init__.__globals__ }}"]
)
def test_a_template_cannot_leave_its_sandbox(template):
    with pytest.raises(InvalidRequest):
        ours(CHAT, template=template)


def test_a_template_that_is_no_template_is_refused_when_it_is_loaded():
    with pytest.raises(BaseModelRefused, match="line 2"):
        ChatTemplate({"default": "\n{% if %}"}, special_tokens={})


def test_no_messages_is_an_invalid_request():
    with pytest.raises(InvalidRequest, match="at least one message"):
        ours([])


def test_a_model_without_a_template_says_so(tmp_path):
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate.load(tmp_path, {}, {}).render(CHAT)


def test_a_template_file_goes_before_the_configuration(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(tmp_path, {"chat_template": "configuration"}, {}).render(CHAT) == "file"
    (tmp_path / "chat_template.jinja").unlink()
    assert ChatTemplate.load(tmp_path, {"chat_template": "configuration"}, {}).render(CHAT) == "configuration"


def test_a_model_may_have_a_template_of_its_own_for_tools(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    template = ChatTemplate.load(tmp_path, {"chat_template": named}, {})
    assert (template.render(CHAT), template.render(CHAT, tools=TOOLS)) == ("plain", "with tools")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("from a file")
    assert ChatTemplate.load(tmp_path, {"chat_template": "plain"}, {}).render(CHAT, tools=TOOLS) == "from a file"
