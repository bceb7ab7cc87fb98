"""OpenAI requests and answers; the text depends on prompt, choice and position only, whoever makes it."""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_WORDS = [
    "river", "stone", "light", "winter", "garden", "window", "silver", "morning",
    "paper", "bridge", "music", "copper", "harbour", "island", "letter", "meadow",
    "mirror", "needle", "orange", "pepper", "pillow", "rocket", "saddle", "shadow",
    "spring", "summer", "temple", "thunder", "valley", "velvet", "walnut", "yellow",
]  # fmt: skip
_DEFAULT_TOKENS = 16


class BadRequestError(Exception):
    """A client's mistake, which is no matter of the protocol between router and engine."""


@dataclass(frozen=True)
class Asked:
    """What a client wants."""

    body: dict[str, Any]
    chat: bool
    prompts: tuple[str, ...]
    n: int
    max_tokens: int
    stream: bool

    @cached_property
    def sequences(self) -> tuple[tuple[str, int], ...]:
        """The prompt and the number of the choice of each sequence, in the order of the answer's indices."""
        return tuple((prompt, choice) for prompt in self.prompts for choice in range(self.n))

    @cached_property
    def digest(self) -> str:
        """What two legs of one request have in common: the whole body."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(tokens_of(prompt) for prompt in self.prompts)

    def token(self, index: int, position: int) -> str:
        """A token of a sequence."""
        prompt, choice = self.sequences[index]
        return _WORDS[hashlib.sha256(f"{prompt}|{choice}|{position}".encode()).digest()[0] % len(_WORDS)] + " "

    def usage(self, tokens: int) -> dict[str, int]:
        """The answer's usage, with so many tokens for each sequence."""
        made = tokens * len(self.sequences)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }


def ask(body: dict[str, Any], *, chat: bool, max_model_len: int | None) -> Asked:
    """Read a request. BadRequestError says what is wrong with it."""
    prompts = (_chat_prompt(body),) if chat else _text_prompts(body)
    limit = body.get("max_completion_tokens") if chat else None
    max_tokens = _count(body, "max_tokens", _DEFAULT_TOKENS) if limit is None else _count(body, "max_completion_tokens")
    asked = Asked(body, chat, prompts, _count(body, "n", 1), max_tokens, bool(body.get("stream")))
    longest = max(tokens_of(prompt) for prompt in prompts)
    if max_model_len is not None and longest + max_tokens > max_model_len:
        raise BadRequestError(f"{longest} tokens of prompt and {max_tokens} to make are more than {max_model_len}")
    return asked


def tokens_of(prompt: str) -> int:
    """How many tokens a prompt has: its words."""
    return max(1, len(prompt.split()))


def whole(asked: Asked, identity: str, first: list[str], tokens: int) -> dict[str, Any]:
    """An answer that comes at once."""
    choices = []
    for index, token in enumerate(first):
        text = token + "".join(asked.token(index, position) for position in range(1, tokens))
        said = {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
        choices.append({"index": index, **said, "finish_reason": "length"})
    kind = "chat.completion" if asked.chat else "text_completion"
    return _frame(asked, identity, kind) | {"choices": choices, "usage": asked.usage(tokens)}


def role_event(asked: Asked, identity: str, index: int) -> dict[str, Any]:
    """The first event of a chat's choice."""
    return _event(asked, identity, index, {"delta": {"role": "assistant", "content": ""}}, None)


def token_event(asked: Asked, identity: str, index: int, token: str, *, last: bool) -> dict[str, Any]:
    """One token of a stream."""
    said = {"delta": {"content": token}} if asked.chat else {"text": token}
    return _event(asked, identity, index, said, "length" if last else None)


def usage_event(asked: Asked, identity: str, tokens: int) -> dict[str, Any] | None:
    """The event after the last token, for clients who want it."""
    if not (asked.body.get("stream_options") or {}).get("include_usage"):
        return None
    return _frame(asked, identity, _chunk(asked)) | {"choices": [], "usage": asked.usage(tokens)}


def error(status: int, message: str) -> dict[str, Any]:
    """An OpenAI error object."""
    kind = "invalid_request_error" if status < 500 else "internal_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _event(asked: Asked, identity: str, index: int, said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": index, **said, "finish_reason": finish_reason}
    return _frame(asked, identity, _chunk(asked)) | {"choices": [choice]}


def _chunk(asked: Asked) -> str:
    return "chat.completion.chunk" if asked.chat else "text_completion"


def _frame(asked: Asked, identity: str, kind: str) -> dict[str, Any]:
    return {"id": identity, "object": kind, "created": int(time.time()), "model": asked.body.get("model", "")}


def _chat_prompt(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise BadRequestError("messages: not a list of messages")
    return "\n".join(f"{one.get('role')}: {json.dumps(one.get('content'))}" for one in messages)


def _text_prompts(body: dict[str, Any]) -> tuple[str, ...]:
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise BadRequestError("prompt: neither text nor a list")
    if all(isinstance(token, int) for token in prompt):
        return (_ids(prompt),)
    return tuple(one if isinstance(one, str) else _ids(one) for one in prompt)


def _ids(tokens: object) -> str:
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise BadRequestError("prompt: neither texts nor lists of token ids")
    return " ".join(str(token) for token in tokens)


def _count(body: dict[str, Any], name: str, default: int | None = None) -> int:
    value = body.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or value < 1:
        raise BadRequestError(f"{name}: {value!r} is no positive whole number")
    return value
