"""Engines whose answers a test decides, on real sockets with HTTP written by hand; and a router to put before them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from pdctl.router.app import Router
from pdctl.router.figures.metrics import Metrics
from pdctl.router.listener import bind
from pdctl.router.settings import Limits, Settings

LIMIT = 10.0  # seconds that any wait of a test may take

CHAT = "/v1/chat/completions"
PROMPT = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
ANSWER = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "Paris"}}]}


@dataclass
class Turn:
    """One request that an engine got, and the means to answer it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: int  # which of the engine's connections it came on

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: object, status: int = 200, headers: str = "") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
        await self.send(head.encode() + data)

    async def start_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, data: object) -> None:
        await self.chunk(b"data: %b\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode()))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    def drop(self) -> None:
        self.writer.transport.abort()

    async def peer_left(self) -> None:
        """Wait until the router closes this connection."""
        try:
            async with asyncio.timeout(LIMIT):
                assert await self.reader.read(1) == b"", "the router sent more instead of leaving"
        except ConnectionError:
            pass


async def answer_at_once(turn: Turn) -> None:
    await turn.answer(ANSWER)


@dataclass
class MockEngine:
    """Answers /health and /v1/models itself, and hands all other requests to `on_request`."""

    on_request: Callable[[Turn], Awaitable[None]] = answer_at_once
    health_status: int = 200
    models: object = None  # its answer to /v1/models; None: 404
    models_status: int = 200
    turns: asyncio.Queue[Turn] = field(default_factory=asyncio.Queue)  # every request, when it has come in whole
    health_checks: int = 0
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.key}"

    @property
    def open(self) -> int:
        """How many connections it has now."""
        return len(self._tasks)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection, as a killed process does."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LIMIT)

    async def turn(self) -> Turn:
        """The next request."""
        async with asyncio.timeout(LIMIT):
            return await self.turns.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._converse(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, target, _ = first.split(" ")
            turn = Turn(method, target, headers, body, reader, writer, number)
            if target == "/health":
                self.health_checks += 1
                await turn.answer({}, self.health_status)
                continue
            if target == "/v1/models":
                await turn.answer(self.models, 404 if self.models is None else self.models_status)
                continue
            self.turns.put_nowait(turn)
            await self.on_request(turn)


@asynccontextmanager
async def engine(on_request: Callable[[Turn], Awaitable[None]] = answer_at_once) -> AsyncIterator[MockEngine]:
    mock = MockEngine(on_request)
    await mock.start()
    try:
        yield mock
    finally:
        await mock.stop()


async def drop(turn: Turn) -> None:
    turn.drop()


async def hold(turn: Turn) -> None:
    """Leave the request to the test, which answers through the Turn."""
    await asyncio.Event().wait()


@dataclass
class Running:
    """A router on a port of its own, in this process."""

    router: Router
    port: int
    http: httpx.AsyncClient

    @property
    def metrics(self) -> Metrics:
        """The figures, those of requests that are just over included."""
        self.router.reports.tell()
        return self.router.metrics

    async def register(self, role: str, mock: MockEngine, **fields: object) -> httpx.Response:
        payload = {"role": role, "host_ip": "127.0.0.1", "port": mock.port, "transfer_protocol": ["ipc"], "model": "m"}
        token = self.router.settings.token
        headers = {"Authorization": f"Bearer {token}"} if token else None
        return await self.http.post("/register", json=payload | fields, headers=headers)

    async def admit(self, role: str, mock: MockEngine, **fields: object) -> None:
        response = await self.register(role, mock, **fields)
        assert response.status_code == 200, response.text

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and read until the router closes it."""
        reader, writer = await self.connect()
        writer.write(data)
        try:
            async with asyncio.timeout(LIMIT):
                return await reader.read()
        finally:
            writer.close()

    async def post(
        self, body: object = PROMPT, headers: dict[str, str] | None = None, path: str = CHAT
    ) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)

    def load(self, mock: MockEngine) -> tuple[int, int]:
        """Requests and tokens that the router counts at an engine."""
        load = self.router.registry.instances[mock.key].load
        return load.requests, load.tokens

    async def idle(self) -> None:
        """Wait until no request is in flight, and check that no load is left anywhere."""
        await until(lambda: not self.router.in_flight, "no request in flight")
        for instance in self.router.registry.instances.values():
            assert (instance.load.requests, instance.load.tokens) == (0, 0), instance.key


def message(response: httpx.Response) -> str:
    """What an error object says."""
    return response.json()["error"]["message"]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait, turn by turn of the event loop, for something that no event tells of."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIMIT
    while not condition():
        assert loop.time() < end, f"waited {LIMIT} s for: {what}"
        turn = loop.create_future()
        loop.call_later(0.002, turn.set_result, None)
        await turn


def quick(**limits: object) -> Limits:
    """Limits with a fast clock."""
    return Limits(**({"tick": 0.01} | limits))  # type: ignore[arg-type]


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Running]:
    router = Router(Settings(**({"limits": quick()} | settings)))
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    await router.serve(sock)
    # verify=False: loading certificates takes longer than a test.
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT, verify=False) as http:
        try:
            yield Running(router, port, http)
        finally:
            router.close()


@dataclass
class Split:
    """A splitwise router with one prefill and one decode engine."""

    at: Running
    prefill: MockEngine
    decode: MockEngine


@asynccontextmanager
async def split(
    on_prefill: Callable[[Turn], Awaitable[None]] = answer_at_once,
    on_decode: Callable[[Turn], Awaitable[None]] = answer_at_once,
    **settings: Any,
) -> AsyncIterator[Split]:
    async with engine(on_prefill) as prefill, engine(on_decode) as decode, running(splitwise=True, **settings) as at:
        await at.admit("prefill", prefill)
        await at.admit("decode", decode)
        yield Split(at, prefill, decode)
