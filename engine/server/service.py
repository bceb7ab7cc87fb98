"""From a job to its answer: what chat and completions share."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from engine.server.answer import Answer
from engine.server.disaggregation import prefill, receive_prompt, refuse_peers
from engine.server.job import Job
from engine.server.responses import Response, json_response
from engine.server.state import Backend, ServerState
from engine.server.streaming import stream_answer
from engine.server.style import Style


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
    with state.streams.open(job.request.request_id) as stream:
        answer = Answer(job, stream, backend.tokenizer.decode, state.metrics)
        try:
            if state.args.role == "decode":
                await receive_prompt(backend, answer, stream)
            else:
                refuse_peers(job)
                backend.core.submit(job.request)
                answer.started = True
            yield answer
        finally:
            if answer.generating:
                backend.core.abort(job.request.request_id)
