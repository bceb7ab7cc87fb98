"""Engines whose answers are not what HTTP allows: clients get a clean error or a cut, never what was not theirs."""

import h11
import pytest
from router_mocks import Turn, engine, running
from router_raw import converse, head, let_read, post, prompt, replies

FIRST = prompt("first")
WHOLE = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
}
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize(
    "more", [b"\r\n", b"\n", b"\r\n\r\n", EVIL, b"\r\n" + EVIL, b"garbage", b"0\r\n\r\n", b"HTTP/1.1 100 X\r\n\r\n"]
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_an_engine_says_unasked_reaches_no_client(kind: str, more: bytes, at_once: bool):
    """Neither the one that it answers nor the next: a request behind it gets its own answer, or none."""

    async def chatty(turn: Turn) -> None:
        await turn.send(WHOLE[kind] + more if at_once else WHOLE[kind])
        if not at_once:
            await let_read()
            turn.writer.write(more)

    live = head("Connection: close", method="GET", path="/health/live")
    async with engine(chatty) as mixed, running() as at:
        await at.admit("mixed", mixed)
        for _ in range(3):
            stream = await converse(at, [post(FIRST) + live])
            assert b"evil" not in stream
            try:
                first, second = replies(stream, "POST", "GET")
            except (AssertionError, h11.RemoteProtocolError):
                assert kind == "chunked"
                assert b"alive" not in stream, "the cut answer is followed by another one"
                continue
            assert first.status == 502 or (first.status, first.body) in ((200, b"{}"), (204, b""))
            assert second.status == 200
            assert b"alive" in second.body
        await at.idle()
        connections = [mixed.turns.get_nowait().connection for _ in range(mixed.turns.qsize())]
        assert len(set(connections)) == len(connections), "a connection that says more than it was asked was kept"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nconnection: x, Close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
)
async def test_an_engine_that_says_close_is_asked_no_more_on_that_connection(answer: bytes):
    async def closing(turn: Turn) -> None:
        await turn.send(answer)  # and leaves it to the router

    async with engine(closing) as mixed, running() as at:
        await at.admit("mixed", mixed)
        for _ in range(3):
            [got] = replies(await converse(at, [post(FIRST, "Connection: close")]), "POST")
            assert (got.status, got.body) == (200, b"{}")
        assert len({(await mixed.turn()).connection for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    ],
)
async def test_an_engines_answer_that_is_not_valid_is_a_bad_gateway(answer: bytes):
    async def broken(turn: Turn) -> None:
        await turn.send(answer)

    async with engine(broken) as mixed, running() as at:
        await at.admit("mixed", mixed)
        [got] = replies(await converse(at, [post(FIRST, "Connection: close")]), "POST")
        assert got.status == 502
        assert mixed.url in got.error
        assert "callback" not in got.error
        await at.idle()
