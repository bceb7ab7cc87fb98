"""POST /v1/chat/completions."""

import time

from aiohttp import web

from engine.server.job import job_of
from engine.server.prompts import encode_chat
from engine.server.protocol import ChatRequest, ContentPart, Invalid, Message, parse
from engine.server.service import read_body, serve
from engine.server.state import STATE
from engine.server.style import CHAT

_ROLES = {"developer": "system"}  # OpenAI's newer word for the same


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a conversation's next turn."""
    arrived = time.monotonic()
    state = request.app[STATE]
    body = parse(await read_body(request), ChatRequest)
    with state.admit() as backend:
        state.check_model(body.model)
        prompt = await encode_chat(backend.tokenizer, _turns(body.messages))
        wanted = body.max_completion_tokens or body.max_tokens
        job = job_of(body, prompt, wanted, backend, state.args.served_model_name, arrived)
        return await serve(request, state, backend, job, CHAT)


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    return [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _turn(message: Message, place: str) -> dict[str, str]:
    if message.role in ("tool", "function"):
        raise Invalid(f"{place}.role: tools are not supported by this engine", param=f"{place}.role")
    return {"role": _ROLES.get(message.role, message.role), "content": _text(message.content, f"{place}.content")}


def _text(content: str | list[ContentPart] | None, place: str) -> str:
    if content is None:
        raise Invalid(f"{place} is missing", param=place)
    if isinstance(content, str):
        return content
    return "\n".join(_part_text(part, f"{place}[{i}]") for i, part in enumerate(content))


def _part_text(part: ContentPart, place: str) -> str:
    if part.type != "text" or part.text is None:
        raise Invalid(f"{place}: only parts of type text are supported, this is {part.type!r}", param=place)
    return part.text
