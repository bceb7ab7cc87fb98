"""Chat templates, rendered as transformers renders them. They come with the model, so they run in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ModelError, RequestError

Message = Mapping[str, Any]  # role, content, and what else the template reads


class ChatTemplate:
    """A compiled template, and the special tokens that it can name (``bos_token``, ...)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template is wrong: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, **values: object) -> str:
        """The conversation as one text. Raises RequestError if the template refuses it."""
        context = {"tools": None, "documents": None, **self._special_tokens, **values}
        try:
            return self._template.render(context, messages=messages, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RequestError(f"the model's chat template refuses this conversation: {error}") from error


def _environment() -> jinja2.Environment:
    extensions = [_GenerationTag, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here, they are just text."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes of HTML that jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now(UTC).strftime(layout)  # both engines of a request must write the same date
