"""From a job to its answer: what chat and completions share."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from aiohttp import web

from engine.errors import RequestError
from engine.server.answer import Answer
from engine.server.disaggregation import prefill, receive_prompt, refuse_peers
from engine.server.job import Job
from engine.server.responses import Response, json_response
from engine.server.state import Backend, ServerState
from engine.server.streaming import stream_answer
from engine.server.style import Style

BODY_TIMEOUT_S = 60.0


async def read_body(request: web.Request) -> bytes:
    """Read a request's body. Raises RequestError where it does not come in time."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        message = f"the request's body did not arrive within {BODY_TIMEOUT_S:.0f} s"
        raise RequestError(message, status=408, code="timeout") from None


async def serve(
    request: web.Request, state: ServerState, backend: Backend, job: Job, style: Style
) -> web.StreamResponse:
    """Play this engine's part in a request. Raises RequestError."""
    if state.args.role == "prefill":
        return json_response(await prefill(state, backend, job))
    created = int(time.time())
    async with _answering(state, backend, job) as answer:
        if job.stream:
            return await stream_answer(request, answer, style, created)
        choices = [style.whole(piece) for piece in await answer.whole()]
        response_id = style.id_prefix + job.request.request_id
        return json_response(Response(response_id, style.whole_object, created, job.model, choices, answer.usage))


@asynccontextmanager
async def _answering(state: ServerState, backend: Backend, job: Job) -> AsyncIterator[Answer]:
    """Have the core generate inside the block; what is still being generated at its end is aborted."""
    with state.streams.open(job.request.request_id, job.core_id) as stream:
        answer = Answer(job, stream, backend.tokenizer.decode, state.metrics)
        try:
            if state.args.role == "decode":
                await receive_prompt(backend, answer, stream)
            else:
                refuse_peers(job)
                backend.core.submit(replace(job.request, request_id=job.core_id))
                answer.started = True
            yield answer
        finally:
            if answer.generating:
                backend.core.abort(job.core_id)
