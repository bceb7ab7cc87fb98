"""What clients get: OpenAI's response bodies."""

import logging

import msgspec
from aiohttp import web

from engine.errors import RequestError

logger = logging.getLogger(__name__)

encode = msgspec.json.Encoder().encode


TokenIds = list[int] | msgspec.UnsetType  # an extension of the API: what the text was made of, if asked for


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How much of the prompt needed no computation."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's whole turn."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """A choice of a chat answer."""

    index: int
    message: AnswerMessage
    finish_reason: str | None
    logprobs: None = None
    token_ids: TokenIds = msgspec.UNSET


class TextChoice(msgspec.Struct, frozen=True):
    """A choice of a completion, whole or one piece of it."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: None = None
    token_ids: TokenIds = msgspec.UNSET


class MessageDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the assistant's turn."""

    role: str | None = None
    content: str | None = None


class ChatPiece(msgspec.Struct, frozen=True):
    """A piece of a choice of a chat answer."""

    index: int
    delta: MessageDelta
    finish_reason: str | None = None
    logprobs: None = None
    token_ids: TokenIds = msgspec.UNSET


Choice = ChatChoice | TextChoice | ChatPiece


class Response(msgspec.Struct, frozen=True):
    """An answer, or one chunk of its stream."""

    id: str
    object: str
    created: int  # seconds since the epoch
    model: str
    choices: list[Choice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class PrefillResponse(msgspec.Struct, frozen=True):
    """What a prefill engine answers: the KV is delivered, the text comes from the decode engine."""

    id: str
    model: str
    usage: Usage
    object: str = "prefill"


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def as_request_error(error: Exception) -> RequestError:
    """Make of any error one that a client may see; what is a bug of ours is logged whole."""
    if isinstance(error, RequestError):
        return error
    logger.error("a request failed", exc_info=error)
    return RequestError("internal error; the engine's log says more", status=500)


def error_body(error: RequestError) -> bytes:
    """Make OpenAI's error object."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = getattr(error, "param", None)
    return encode({"error": {"message": str(error), "type": kind, "param": param, "code": error.code}})


def error_response(error: RequestError) -> web.Response:
    """Make the HTTP response of a request that failed."""
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return web.Response(body=error_body(error), status=error.status, content_type="application/json", headers=headers)


def json_response(body: object) -> web.Response:
    """Make the HTTP response of a request that succeeded."""
    return web.Response(body=encode(body), content_type="application/json")


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
    """Count a request's tokens."""
    details = PromptTokensDetails(cached_tokens)
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, details)
