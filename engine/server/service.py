"""From a job to its answer: what chat and completions share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from aiohttp import web

from engine.errors import RequestError
from engine.server.answer import Answer
from engine.server.detokenizer import ChoiceText
from engine.server.disaggregation import peers_of, prefill, prefilled_before, receive_prompt
from engine.server.job import Job
from engine.server.protocol import DisaggregateInfo
from engine.server.replay import begin
from engine.server.responses import Response, json_response
from engine.server.state import Backend, ServerState
from engine.server.streaming import stream_answer
from engine.server.streams import TokenStream
from engine.server.style import Style
from engine.server.text_keys import prompt_text, text_keys

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
    job = _name_text(job, await request.read())  # the handler has read it before: nothing is waited for
    peers = peers_of(job, state.args.role)
    choices = await begin(job, backend.tokenizer.decode)
    if peers is not None and state.args.role == "prefill":
        ended = all(choice.finish_reason for choice in choices)
        return json_response(prefilled_before(job) if ended else await prefill(state, backend, job, peers))
    async with _answering(state, backend, job, choices, peers) as answer:
        if job.stream:
            return await stream_answer(request, answer, style)
        whole = [style.whole(piece) for piece in await answer.whole()]
        response_id = style.id_prefix + job.answer_id
        return json_response(Response(response_id, style.whole_object, job.created, job.model, whole, answer.usage))


def _name_text(job: Job, body: bytes) -> Job:
    keys = text_keys(prompt_text(body), job.prompt_tokens)
    return replace(job, request=replace(job.request, text_keys=keys))


@asynccontextmanager
async def _answering(
    state: ServerState, backend: Backend, job: Job, choices: list[ChoiceText], peers: DisaggregateInfo | None
) -> AsyncIterator[Answer]:
    """Have the core generate inside the block; what is still being generated at its end is aborted."""
    with state.streams.open(job.request.request_id, job.core_id) as stream:
        answer = Answer(job, stream, choices, state.metrics)
        try:
            if not answer.finished:
                await _start(backend, answer, stream, peers)
            yield answer
        finally:
            if answer.generating:
                backend.core.abort(job.core_id)


async def _start(backend: Backend, answer: Answer, stream: TokenStream, peers: DisaggregateInfo | None) -> None:
    if peers is not None:
        await receive_prompt(backend, answer, stream, peers)
        return
    backend.core.submit(replace(answer.job.request, request_id=answer.job.core_id))
    answer.started = True
