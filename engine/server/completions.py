"""POST /v1/completions."""

import time
from typing import Any

from aiohttp import web

from engine.server.job import job_of
from engine.server.prompts import encode_text
from engine.server.protocol import CompletionRequest, Invalid, parse
from engine.server.service import read_body, serve
from engine.server.state import STATE, Backend
from engine.server.style import TEXT

_DEFAULT_MAX_TOKENS = 16


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue a text."""
    arrived = time.monotonic()
    state = request.app[STATE]
    body = parse(await read_body(request), CompletionRequest)
    with state.admit() as backend:
        state.check_model(body.model)
        prompt = await _tokens(body.prompt, backend)
        wanted = body.max_tokens or _DEFAULT_MAX_TOKENS
        job = job_of(body, prompt, wanted, backend, state.args.served_model_name, arrived)
        return await serve(request, state, backend, job, TEXT)


async def _tokens(prompt: str | list[Any], backend: Backend) -> list[int]:
    """A prompt is a text or a list of token ids, or a list that holds one of these."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return await encode_text(backend.tokenizer, prompt)
    if any(isinstance(item, str | list) for item in prompt):
        raise Invalid("send one prompt a request; this body has several", param="prompt", code="several_prompts")
    return [_checked(token, backend.tokenizer.vocab_size) for token in prompt]


def _checked(token: object, vocab_size: int) -> int:
    if type(token) is not int or not 0 <= token < vocab_size:
        raise Invalid(f"prompt: {token!r} is not a token id of this model (0..{vocab_size - 1})", param="prompt")
    return token
