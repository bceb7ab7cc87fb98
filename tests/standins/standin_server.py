"""The HTTP side of a stand-in: OpenAI's API, readiness, and what tests may ask (`/standin/...`)."""

import asyncio
import json
import uuid
from abc import ABC, abstractmethod
from socket import socket
from typing import Any

import msgspec
from aiohttp import web
from standin_answers import (
    Asked,
    BadRequestError,
    ask,
    error,
    role_event,
    token_event,
    usage_event,
    whole,
)
from standin_faults import RefusedError, Role, Strike, fault_of, print_error, seconds
from standin_links import PeerError

KEEP_ALIVE_S = 5  # uvicorn's default, with which both engines run
_BODY_BYTES = 64 * 1024 * 1024


class ViolationError(Exception):
    """Somebody, most likely the router, does not keep to the engine's protocol."""


class Engine(ABC):
    """How one engine serves a role."""

    early_head = False  # a stream's status is sent before there is a token
    python_errors = False  # an error in a stream is quoted as Python does, and is the last that is sent

    @abstractmethod
    def identity(self, body: dict[str, Any]) -> str:
        """By which name the request can be aborted."""

    @abstractmethod
    def check(self, asked: Asked) -> None:
        """Look at what the router has added. ViolationError if that is wrong."""

    @abstractmethod
    async def meet(self, asked: Asked, strike: Strike) -> list[str]:
        """The first token of each sequence, from or to the other leg. PeerError if the KV does not get there."""

    def forget(self, body: dict[str, Any]) -> None:  # noqa: B027 (most have nothing to forget)
        """The request will not be served here, whatever the other leg sends for it."""

    @abstractmethod
    def held(self) -> int:
        """What is kept for requests that have not met their other leg."""


class Reply:
    """What a client gets: an object, or events."""

    def __init__(self, request: web.Request, *, python_errors: bool) -> None:
        self._request = request
        self._python_errors = python_errors
        self._stream: web.StreamResponse | None = None

    async def begin(self) -> web.StreamResponse:
        """Send the head of a stream."""
        if self._stream is None:
            self._stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
            await self._stream.prepare(self._request)
        return self._stream

    async def event(self, data: object) -> None:
        """One event."""
        await (await self.begin()).write(b"data: %b\n\n" % json.dumps(data).encode())

    async def end(self) -> web.StreamResponse:
        """The last event."""
        stream = await self.begin()
        await stream.write(b"data: [DONE]\n\n")
        await stream.write_eof()
        return stream

    async def whole(self, data: object, strike: Strike) -> web.StreamResponse:
        """An object; half of it, where something is to go wrong in between."""
        if not strike.due("streaming"):
            return web.json_response(data)
        body = json.dumps(data).encode()
        half = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await half.prepare(self._request)
        await half.write(body[: len(body) // 2])
        await strike.at("streaming")
        return half

    async def fail(self, status: int, message: str, *, stream: bool = False) -> web.StreamResponse:
        """An error; an event of a stream if that has begun, or is to carry it."""
        if self._stream is None and not stream:
            return web.json_response(error(status, message), status=status)
        if not self._python_errors:
            await self.event(error(status, message))
            return await self.end()
        stream = await self.begin()
        await stream.write(f"data: {error(status, message)}\n\n".encode())
        await stream.write_eof()
        return stream


class Server:
    """One API server of an engine."""

    def __init__(self, engine: Engine, role: Role, port: int, model: str) -> None:
        self.engine = engine
        self.role = role
        self.port = port
        self.model = model
        self.max_model_len: int | None = None
        self.api_key: str | None = None
        self.healthy = False
        self.violations: list[str] = []
        self.running = self.prompt_tokens = self.generated_tokens = 0
        self._tasks: dict[str, asyncio.Task[web.StreamResponse]] = {}
        self._aborted: set[str] = set()
        self.app = web.Application(client_max_size=_BODY_BYTES)
        self.app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._completions),
                web.post("/v1/completions", self._completions),
                web.get("/standin/violations", self._violations),
                web.get("/standin/state", self._state),
            ]
        )

    def violated(self, message: str) -> None:
        """Keep in mind that somebody broke the protocol, and say so."""
        self.violations.append(message)
        print_error(f"VIOLATION: {message}")

    def abort(self, identities: list[str] | None) -> list[str]:
        """End requests, all if none are named; those that were there."""
        found = [name for name in self._tasks if identities is None or name in identities]
        for name in found:
            self._aborted.add(name)
            self._tasks[name].cancel()
        return found

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        reply = Reply(request, python_errors=self.engine.python_errors)
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return await reply.fail(401, "Unauthorized")
        if not self.healthy:
            return await reply.fail(503, "the engine is starting")
        try:
            body = json.loads(await request.read())
            if not isinstance(body, dict):
                raise BadRequestError("the body is no object")
            strike = await self._strike(body, request)
            asked = ask(body, chat=request.path.startswith("/v1/chat"), max_model_len=self.max_model_len)
            self.engine.check(asked)
        except (BadRequestError, ValueError, msgspec.ValidationError) as problem:
            return await reply.fail(400, str(problem))
        except RefusedError as refused:
            return await reply.fail(refused.status, str(refused))
        except ViolationError as violation:
            self.violated(str(violation))
            return await reply.fail(400, str(violation))
        return await self._abortable(asked, strike, reply)

    async def _strike(self, body: dict[str, Any], request: web.Request) -> Strike:
        """The request's fault, that of its arrival having happened."""
        strike = Strike(fault_of(body, self.role, self.port), request)
        try:
            await strike.at("arrived")
        except BaseException:
            self.engine.forget(body)
            raise
        return strike

    async def _abortable(self, asked: Asked, strike: Strike, reply: Reply) -> web.StreamResponse:
        identity = self.engine.identity(asked.body) or f"standin-{uuid.uuid4().hex}"
        task = self._tasks[identity] = asyncio.ensure_future(self._serve(asked, identity, strike, reply))
        self.running += 1
        try:
            return await task
        except PeerError as problem:
            print_error(f"request {identity}: {problem}")
            return await reply.fail(500, str(problem), stream=asked.stream)
        except RefusedError as refused:
            return await reply.fail(refused.status, str(refused))
        except ViolationError as violation:
            self.violated(str(violation))
            return await reply.fail(400, str(violation))
        except asyncio.CancelledError:
            if identity not in self._aborted:
                raise
            return await reply.fail(500, "the request was aborted", stream=asked.stream)
        finally:
            self.running -= 1
            self._aborted.discard(identity)
            self._tasks.pop(identity, None)

    async def _serve(self, asked: Asked, identity: str, strike: Strike, reply: Reply) -> web.StreamResponse:
        if asked.stream and self.engine.early_head:
            await reply.begin()
        first = await self.engine.meet(asked, strike)
        tokens = 1 if self.role == "prefill" else asked.max_tokens
        self.prompt_tokens += asked.prompt_tokens
        self.generated_tokens += tokens * len(first)
        pause = seconds("STANDIN_TOKEN_S", 0.0)
        if not asked.stream:
            await asyncio.sleep(pause * tokens)
            return await reply.whole(whole(asked, identity, first, tokens), strike)
        for position in range(tokens):
            await asyncio.sleep(pause)
            if strike.fault is not None and strike.fault.after == position:
                await strike.at("streaming")
            await self._tell_tokens(asked, identity, first, position, tokens, reply)
        usage = usage_event(asked, identity, tokens)
        if usage is not None:
            await reply.event(usage)
        return await reply.end()

    async def _tell_tokens(
        self, asked: Asked, identity: str, first: list[str], position: int, tokens: int, reply: Reply
    ) -> None:
        for index, token in enumerate(first):
            if position == 0 and asked.chat:
                await reply.event(role_event(asked, identity, index))
            said = token if position == 0 else asked.token(index, position)
            await reply.event(token_event(asked, identity, index, said, last=position == tokens - 1))

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "standin"}
        return web.json_response({"object": "list", "data": [model | {"max_model_len": self.max_model_len}]})

    async def _violations(self, _: web.Request) -> web.Response:
        return web.json_response(self.violations)

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response({"running": self.running, "held": self.engine.held()})


def metrics_page(prefix: str, model: str, figures: dict[str, float]) -> web.Response:
    """Prometheus' text. Names that end in `_total` are counters."""
    lines = []
    for name, value in figures.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.append(f'# TYPE {prefix}:{name} {kind}\n{prefix}:{name}{{model_name="{model}"}} {float(value)}\n')
    return web.Response(text="".join(lines), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def serve_http(app: web.Application, sock: socket) -> web.AppRunner:
    """Serve on a socket that listens. A request ends when its client leaves."""
    runner = web.AppRunner(
        app, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_S, access_log=None, shutdown_timeout=0.5
    )
    await runner.setup()
    await web.SockSite(runner, sock).start()
    return runner
