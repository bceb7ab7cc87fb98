"""What tests of protocols and of failures share: pairs of one protocol, streams of tokens, clients that read slowly."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from router_mocks import CHAT, LIMIT, PROMPT, Running, Split, Turn, answer_at_once, engine, running

from pdctl.router.engines.instance import Instance, Registration
from pdctl.router.engines.load import Load
from pdctl.router.engines.pairs import Pair
from pdctl.router.settings import Limits

OnRequest = Callable[[Turn], Awaitable[None]]

STREAM = PROMPT | {"stream": True}
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def protocol_pair(
    protocol: str,
    on_prefill: OnRequest = answer_at_once,
    on_decode: OnRequest = answer_at_once,
    fields: dict[str, object] | None = None,
    **settings: Any,
) -> AsyncIterator[Split]:
    """A splitwise router with one prefill and one decode engine of a protocol. `fields` are the prefill's, too."""
    async with engine(on_prefill) as prefill, engine(on_decode) as decode, running(splitwise=True, **settings) as at:
        await at.admit("prefill", prefill, protocol=protocol, **(fields or {}))
        await at.admit("decode", decode, protocol=protocol)
        yield Split(at, prefill, decode)


def pair_of(protocol: str, prefill: dict[str, Any] | None = None, decode: dict[str, Any] | None = None) -> Pair:
    """Two instances that have never been connected. Needs a running event loop."""
    p = _instance("prefill", "10.0.0.1", protocol, prefill or {})
    d = _instance("decode", "10.0.0.2", protocol, decode or {})
    return Pair(p, d)


def _instance(role: Any, host: str, protocol: str, fields: dict[str, Any]) -> Instance:
    registration = Registration(role=role, host_ip=host, port=8100, protocol=protocol, **fields)
    return Instance(registration, Limits(), Load())


def token_event(text: str, *ids: int, finish: str | None = None, created: int = 1760000000) -> bytes:
    """An event of a builtin engine: a piece of text and the tokens that it came of."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "token_ids": list(ids)}
    event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": created, "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()


def failed_event(kind: str, text: str = "it failed") -> bytes:
    """An error that an engine writes into a stream."""
    return (
        b"event: error\ndata: %b\n\n"
        % json.dumps(
            {"error": {"message": text, "type": kind, "param": None, "code": None}}, separators=(",", ":")
        ).encode()
    )


async def send_events(turn: Turn, *events: bytes, end: bool = True) -> None:
    """Answer with a stream."""
    await turn.start_stream()
    for event in events:
        await turn.chunk(event)
    if end:
        await turn.end_stream()


class StreamClient:
    """A client that reads an answer step by step."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""  # what has been read of it
        self.whole = False  # its end has been read, too

    async def head(self) -> None:
        """Read the answer's status and headers."""
        async with asyncio.timeout(LIMIT):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    async def until(self, text: bytes) -> None:
        """Read until the body so far ends with this."""
        while not self.body.endswith(text):
            assert await self._chunk(), f"the answer ended without {text!r}: {self.body!r}"

    async def rest(self) -> bytes:
        """Read to the end, be it one (`whole`) or a cut; the whole body."""
        while await self._chunk():
            pass
        return self.body

    def leave(self) -> None:
        self.writer.transport.abort()

    async def _chunk(self) -> bool:
        try:
            async with asyncio.timeout(LIMIT):
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self.body += data[:-2]
        self.whole = size == 0
        return size > 0


async def ask(at: Running, body: object = STREAM, path: str = CHAT, headers: str = "") -> StreamClient:
    """Send a request on a connection of its own."""
    reader, writer = await at.connect()
    data = json.dumps(body).encode()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return StreamClient(reader, writer)
