"""Renders messages to the text of a prompt with the chat template that comes with a model. Knows no tokens.

A template is a program by whoever published the model: it runs in jinja2's sandbox and sees only what is given here.
The environment is the one that templates are written for: that of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.errors import BaseModelRefused, InvalidRequest

TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"  # a folder of more of them, as transformers saves it
DEFAULT, WITH_TOOLS = "default", "tool_use"
END_OF_TEXT = "<<end of the text to continue>> "  # the space tells whether the template trims the text

Message = Mapping[str, object]


class ChatTemplate:
    """The chat templates of a model, compiled. `special_tokens` are the names that templates know, as bos_token."""

    def __init__(self, templates: Mapping[str, str], *, special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        self._special_tokens = dict(special_tokens)
        self.sources = dict(templates)
        """The templates by name, as their publisher wrote them."""
        try:
            self._templates = {name: environment.from_string(source) for name, source in templates.items()}
        except jinja2.TemplateSyntaxError as error:
            raise BaseModelRefused(f"chat template, line {error.lineno}: {error.message}") from None

    @classmethod
    def load(
        cls, folder: Path, tokenizer_config: Mapping[str, object], special_tokens: Mapping[str, str]
    ) -> ChatTemplate:
        """The templates of a Hugging Face folder; one that has none can render nothing. Raises BaseModelRefused."""
        stored = tokenizer_config.get("chat_template")
        templates: dict[str, str] = {}
        if isinstance(stored, str):
            templates[DEFAULT] = stored
        elif isinstance(stored, list):
            templates = {str(entry["name"]): str(entry["template"]) for entry in stored}
        for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
            templates[path.stem] = path.read_text(encoding="utf-8")
        if (folder / TEMPLATE_FILE).exists():
            templates[DEFAULT] = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        return cls(templates, special_tokens=special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        arguments: Mapping[str, object] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt: the messages and the opening of the assistant's turn, or the last message left open.

        `arguments` are what else the template gets by name. Raises InvalidRequest when the model has no template, its
        template refuses the messages, or an argument has the name of what the template gets anyway.
        """
        if not messages:
            raise InvalidRequest("chat.messages: expected at least one message, found none", field="chat.messages")
        name = WITH_TOOLS if tools and WITH_TOOLS in self._templates else DEFAULT
        if name not in self._templates:
            raise InvalidRequest("chat: this model has no chat template; send text or token ids", field="chat")
        template = self._templates[name]
        context = self._context(tools, arguments or {}, opens_turn=not continue_final_message)
        if not continue_final_message:
            return _run(template, messages, context)
        text = messages[-1].get("content")
        if not isinstance(text, str):
            raise InvalidRequest("chat.messages: expected text to continue in the last message", field="chat.messages")
        marked = [*messages[:-1], {**messages[-1], "content": text + END_OF_TEXT}]
        return _up_to_the_mark(_run(template, marked, context))

    def _context(
        self, tools: Sequence[Mapping[str, object]] | None, arguments: Mapping[str, object], *, opens_turn: bool
    ) -> dict[str, object]:
        """What a template gets beside the messages."""
        own = {
            "tools": [dict(tool) for tool in tools] if tools else None,
            "add_generation_prompt": opens_turn,
            **self._special_tokens,
        }
        for name in arguments:
            if name in {"messages", *own} or not name.isidentifier():
                raise InvalidRequest(
                    f"chat.template_arguments: expected names that the template does not get anyway, found {name!r}",
                    field="chat.template_arguments",
                )
        return {"documents": None, **arguments, **own}


def _run(template: jinja2.Template, messages: Sequence[Message], context: Mapping[str, object]) -> str:
    try:
        return template.render(messages=[dict(message) for message in messages], **context)
    except Exception as error:  # the template is a program of others and may fail in any way
        raise InvalidRequest(f"chat: the model's template refuses these messages: {error}", field="chat") from error


def _up_to_the_mark(text: str) -> str:
    """The rendered text before the mark; a template that trims messages has taken the mark's space away."""
    end = text.rfind(END_OF_TEXT.rstrip())
    if end < 0:
        raise InvalidRequest("chat: the model's template does not render the last message as it is", field="chat")
    is_kept = text.startswith(END_OF_TEXT, end)
    return text[:end] if is_kept else text[:end].rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class GenerationTag(jinja2.ext.Extension):
    """{% generation %}: marks the assistant's words for training; to a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
