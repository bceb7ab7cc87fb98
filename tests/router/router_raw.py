"""Raw HTTP for the conformance tests: any bytes in, and answers that a strict client must be able to read."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import h11
from router_mocks import LIMIT, MockEngine, Running

COMPLETIONS = "/v1/completions"


@dataclass
class Reply:
    """One answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)  # statuses of the 1xx before it

    @property
    def error(self) -> str:
        """The message of an OpenAI error object."""
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["message"]


def replies(stream: bytes, *methods: str) -> list[Reply]:
    """What h11 reads from a connection that was closed, as answers to these methods; nothing may be left over."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(stream)
    client.receive_data(b"")
    found = []
    for number, method in enumerate(methods):
        if number:
            client.start_next_cycle()
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        found.append(_read(client))
    left = client.trailing_data[0]
    assert not left, f"after the last answer: {left[:200]!r}"
    return found


def _read(client: h11.Connection) -> Reply:
    interim: list[int] = []
    reply: Reply | None = None
    while True:
        event = client.next_event()
        if isinstance(event, h11.InformationalResponse):
            interim.append(event.status_code)
        elif isinstance(event, h11.Response):
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            reply = Reply(event.status_code, headers, interim=interim)
        elif isinstance(event, h11.Data) and reply is not None:
            reply.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and reply is not None:
            return reply
        else:
            raise AssertionError(f"no whole answer: {event!r}")


def post(body: bytes, *headers: str, path: str = COMPLETIONS, version: str = "1.1") -> bytes:
    """A POST with a Content-Length."""
    return head(f"Content-Length: {len(body)}", *headers, path=path, version=version) + body


def head(*headers: str, method: str = "POST", path: str = COMPLETIONS, version: str = "1.1") -> bytes:
    """A request's head."""
    lines = "".join(f"{line}\r\n" for line in ("Host: x", *headers))
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1")


def chunked(body: bytes, sizes: Iterable[int], trailers: bytes = b"") -> bytes:
    """A body in chunks of these sizes, the rest in one."""
    pieces, start = [], 0
    for size in (*sizes, len(body)):
        piece = body[start : start + size]
        start += size
        if piece:
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return b"".join(pieces) + b"0\r\n%b\r\n" % trailers


def prompt(text: str) -> bytes:
    """A completion request's body."""
    return json.dumps({"prompt": text}).encode()


def seen(mock: MockEngine) -> list[str]:
    """The prompts of the requests that an engine has got and that have not been looked at."""
    return [mock.turns.get_nowait().json["prompt"] for _ in range(mock.turns.qsize())]


async def converse(at: Running, pieces: Sequence[bytes]) -> bytes:
    """Send bytes, piece by piece, on a connection of their own; read until the router closes it."""
    reader, writer = await at.connect()
    try:
        async with asyncio.timeout(LIMIT):
            for piece in pieces:
                writer.write(piece)
                await let_read()
            return await reader.read()
    finally:
        writer.transport.abort()


async def let_read() -> None:
    """Let the event loop deliver what has been written, so that the next bytes come with another read."""
    for _ in range(3):
        await asyncio.sleep(0)
