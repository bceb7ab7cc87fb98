"""A small OpenAI-compatible server for tests: streams as many tokens as asked for, or fails as told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class SseServer:
    """What the server does, and what it saw."""

    token_interval_s: float = 0.0
    usage: str = "end"  # "end", "continuous" or "none"
    tokens_per_chunk: int = 1
    misbehave: dict[int, str] = field(default_factory=dict)  # request number -> what goes wrong
    hold: asyncio.Event | None = None  # answers wait for it
    bodies: list[dict] = field(default_factory=list)
    url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a request came or ended

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until requests have come or ended so that ``condition`` holds."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "tiny"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        number = len(self.bodies)
        self.bodies.append(await request.json())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.changed.set()
        try:
            return await self._answer(request, self.bodies[number], self.misbehave.get(number, ""))
        finally:
            self.in_flight -= 1
            self.changed.set()

    async def _answer(self, request: web.Request, body: dict, trouble: str) -> web.StreamResponse:
        if trouble == "500":
            return web.json_response({"error": {"message": "no room"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if self.hold is not None:
            await self.hold.wait()
        async for event in self._events(body, trouble):
            await response.write(
                event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n"
            )
        if trouble == "disconnect":
            request.transport.abort()
        return response

    async def _events(self, body: dict, trouble: str) -> AsyncIterator[dict | bytes]:
        chat, wanted, sent = "messages" in body, body["max_tokens"], 0
        usage = {"prompt_tokens": len(str(body.get("prompt") or body.get("messages")).split()), "completion_tokens": 0}
        if chat:
            yield {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
        while sent < wanted and trouble not in ("empty", "error event"):
            await asyncio.sleep(self.token_interval_s)
            count = min(self.tokens_per_chunk, wanted - sent)
            sent += count
            usage["completion_tokens"] = sent
            choice = {"delta": {"content": "tok " * count}} if chat else {"text": "tok " * count}
            yield {"choices": [choice]} | ({"usage": usage} if self.usage == "continuous" else {})
            if trouble in ("truncated", "disconnect") and sent >= wanted / 2:
                return
        if trouble == "error event":
            yield {"error": {"message": "the decode engine died", "code": 502}}
            return
        if trouble != "empty":
            yield {
                "choices": [
                    {"delta": {}, "text": "", "finish_reason": "length"}
                    if chat
                    else {"text": "", "finish_reason": "length"}
                ]
            }
        if self.usage != "none":
            yield {"choices": [], "usage": usage}
        yield b"data: [DONE]\n\n"


@asynccontextmanager
async def running(server: SseServer) -> AsyncIterator[SseServer]:
    """Run ``server`` on a free port; its ``url`` is set."""
    app = web.Application()
    app.router.add_get("/v1/models", server.models)
    app.router.add_post("/v1/chat/completions", server.answer)
    app.router.add_post("/v1/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
