"""Answers as server-sent events, in OpenAI's shape."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import msgspec
from aiohttp import web

from engine.server.answer import Answer, Piece
from engine.server.responses import Choice, Response, Usage, as_request_error, encode, error_body
from engine.server.sending import send
from engine.server.style import Style

_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_DONE = b"data: [DONE]\n\n"
_WRITE_TIMEOUT_S = 300.0  # for a client that does not read


async def stream_answer(request: web.Request, answer: Answer, style: Style) -> web.StreamResponse:
    """Send the answer piece by piece. What fails before the first piece is raised, and gets its true HTTP status."""
    async with aclosing(answer.pieces()) as pieces:
        first = await anext(pieces)
        response = web.StreamResponse(headers=_HEADERS)
        await response.prepare(request)
        with suppress(ConnectionResetError):  # the client has left; the caller aborts what is still being generated
            await _send_events(request, response, _Events(answer, style), first, pieces)
    return response


async def _send_events(
    request: web.Request,
    response: web.StreamResponse,
    events: "_Events",
    first: list[Piece],
    pieces: AsyncGenerator[list[Piece]],
) -> None:
    try:
        await send(request, response.write(events.opening() + events.pieces(first)), _WRITE_TIMEOUT_S)
        async for batch in pieces:
            await send(request, response.write(events.pieces(batch)), _WRITE_TIMEOUT_S)
        await send(request, response.write(events.closing()), _WRITE_TIMEOUT_S)
    except ConnectionResetError:
        raise
    except Exception as error:  # the head is out: only the body can tell
        data = b"event: error\n" + _event(error_body(as_request_error(error)))
        await send(request, response.write(data), _WRITE_TIMEOUT_S)
    await send(request, response.write_eof(), _WRITE_TIMEOUT_S)


class _Events:
    """The bytes of one stream's events."""

    def __init__(self, answer: Answer, style: Style) -> None:
        self._answer = answer
        self._style = style
        self._id = style.id_prefix + answer.job.answer_id

    def opening(self) -> bytes:
        if self._answer.job.resumed is not None:
            return b""  # the client has it
        choices = [choice for i in range(self._answer.job.request.sampling.n) for choice in self._style.opening(i)]
        return b"".join([self._chunk([choice], self._running_usage()) for choice in choices])

    def pieces(self, batch: list[Piece]) -> bytes:
        return b"".join([self._chunk([self._style.piece(piece)], self._running_usage()) for piece in batch])

    def closing(self) -> bytes:
        if not self._answer.job.include_usage:
            return _DONE
        return self._chunk([], self._answer.usage) + _DONE

    def _running_usage(self) -> Usage | msgspec.UnsetType | None:
        if not self._answer.job.include_usage:
            return msgspec.UNSET
        return self._answer.usage if self._answer.job.continuous_usage else None

    def _chunk(self, choices: list[Choice], usage: Usage | msgspec.UnsetType | None) -> bytes:
        job = self._answer.job
        chunk = Response(self._id, self._style.chunk_object, job.created, job.model, choices, usage)
        return _event(encode(chunk))


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
