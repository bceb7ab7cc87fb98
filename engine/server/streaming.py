"""Answers as server-sent events, in OpenAI's shape."""

import asyncio
from contextlib import aclosing

import msgspec
from aiohttp import web

from engine.server.answer import Answer, Piece
from engine.server.responses import Choice, Response, Usage, as_request_error, encode, error_body
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
        events = _Events(answer, style)
        try:
            await _write(response, events.opening() + events.pieces(first))
            async for batch in pieces:
                await _write(response, events.pieces(batch))
            await _write(response, events.closing())
        except ConnectionResetError:  # the client has left; the caller aborts what is still being generated
            return response
        except Exception as error:  # the head is out: only the body can tell
            await response.write(b"event: error\n" + _event(error_body(as_request_error(error))))
        await response.write_eof()
    return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError(f"the client has read nothing for {_WRITE_TIMEOUT_S:.0f} s") from None


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
