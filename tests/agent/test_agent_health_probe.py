"""Whether a process still answers, and when its silence says nothing of it."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pdctl.agent.health_probe import SILENT, HealthProbe

URL = "http://127.0.0.1:{api}/health"


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[tuple[dict[str, int], list[bytes]]]:
    """A server that answers so, or never; its ports, and what it was asked."""
    asked: list[bytes] = []
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if answer is not None:
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield {"api": server.sockets[0].getsockname()[1]}, asked
    finally:
        server.close()
        for writer in connections:
            writer.close()


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_any_status_is_an_answer(status: int) -> None:
    async with answering(b"HTTP/1.1 %d x\r\n\r\n" % status) as (ports, asked):
        assert await HealthProbe(URL, 20).ask(ports) == status
        host = b"Host: 127.0.0.1:%d" % ports["api"]
        assert asked == [b"GET /health HTTP/1.1\r\n" + host + b"\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "answer", [None, b"", b"HTTP/1.1\r\n", b"SSH-2.0-x y\r\n", b"HTTP/1.1 x y\r\n", b"x" * 100_000]
)
async def test_what_is_no_answer(answer: bytes | None) -> None:
    async with answering(answer) as (ports, _):
        assert await HealthProbe(URL, 0.2 if answer is None else 20).ask(ports) == SILENT


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert await HealthProbe(URL, 20).ask({"api": port}) == SILENT
    assert await HealthProbe(f"http://127.0.0.1:{port}/health", 20).ask({}) == SILENT


async def test_a_port_that_is_not_known_yet() -> None:
    assert await HealthProbe(URL, 20).ask({"metrics": 1}) == SILENT


async def test_while_its_address_is_gone_silence_says_nothing() -> None:
    """As when the host's interface is down: 192.0.2.0/24 is nobody's."""
    assert await HealthProbe("http://192.0.2.1:80/health", 20).ask({}) is None


async def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, resolved = asyncio.get_running_loop(), []

    async def getaddrinfo(host: str, port: object, **_: object) -> list[Any]:
        if host != "gpu1.lan":
            return await real(host, port, **_)
        resolved.append(host)
        if len(resolved) != 2:
            raise socket.gaierror("no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    real = loop.getaddrinfo
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (ports, _):
        probe = HealthProbe("http://gpu1.lan:{api}/health", 20)
        assert [await probe.ask(ports) for _ in range(4)] == [None, 200, 200, 200]
    assert len(resolved) == 2


async def test_what_is_wrong_on_this_side_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", full)
    assert await HealthProbe(URL, 20).ask({"api": 1}) is None
