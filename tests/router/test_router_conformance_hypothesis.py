"""Whatever the pieces that bytes come in, clients and engines see the same; and no bytes whatever harm the router."""

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from router_mocks import LIMIT, MockEngine, Running, Turn, engine, quick, running, until
from router_raw import Reply, chunked, converse, head, let_read, post, replies

LAST = head("Connection: close", method="GET", path="/health/live")
REQUEST = b'{"prompt": "x"}'
SHORT = quick(tick=0.005, head_timeout=0.02, body_timeout=0.02, idle_timeout=0.02, linger=0.02)


@dataclass
class World:
    """A router with one engine, for many examples."""

    runner: asyncio.Runner
    at: Running
    mock: MockEngine
    answer: list[bytes] = field(default_factory=list)  # what the engine sends, piece by piece; empty: an echo
    closes: bool = False  # and then closes the connection
    problems: list[object] = field(default_factory=list)  # what nobody has handled

    async def respond(self, turn: Turn) -> None:
        if not self.answer:
            await turn.answer({"prompt": turn.json["prompt"]})
        for piece in self.answer:
            if turn.writer.transport.is_closing():
                return  # the router has had enough
            turn.writer.write(piece)
            await let_read()
        if self.closes:
            turn.writer.close()

    async def serves(self) -> bool:
        self.answer = []
        [answer] = replies(await converse(self.at, [post(REQUEST, "Connection: close")]), "POST")
        return answer.status == 200 and json.loads(answer.body) == json.loads(REQUEST)

    def seen(self) -> list[Turn]:
        return [self.mock.turns.get_nowait() for _ in range(self.mock.turns.qsize())]

    async def settled(self) -> None:
        """Nothing is left of an example."""
        await self.at.idle()
        await until(lambda: not self.at.router.server.clients, "the clients' connections to be closed")
        pool = self.at.router.registry.instances[self.mock.key].pool
        await until(lambda: len(pool.open) == pool.idle, "the engine's connections to be closed or idle")
        assert pool.idle <= 2
        assert self.problems == []


@contextmanager
def world(protocol: str = "fastdeploy", **options: Any) -> Iterator[World]:
    problems: list[object] = []

    class Errors(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            problems.append(record.getMessage())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: problems.append(context))
        stack, errors = AsyncExitStack(), Errors(logging.ERROR)
        logging.getLogger("pdctl").addHandler(errors)
        try:
            mock = runner.run(stack.enter_async_context(engine()))
            at = runner.run(stack.enter_async_context(running(heartbeat_timeout=600.0, **options)))
            registration = {"role": "mixed", "host_ip": "127.0.0.1", "port": mock.port, "protocol": protocol}
            data = post(json.dumps(registration).encode(), "Connection: close", path="/register")
            assert replies(runner.run(converse(at, [data])), "POST")[0].status == 200
            there = World(runner, at, mock, problems=problems)
            mock.on_request = there.respond
            yield there
        finally:
            logging.getLogger("pdctl").removeHandler(errors)
            runner.run(stack.aclose())


names = st.text("abcXYZ0-_", min_size=1, max_size=8).map(lambda name: f"x-h{name}".lower())
values = st.text(st.characters(codec="latin-1", min_codepoint=0x20, exclude_characters="\x7f"), max_size=20).map(
    str.strip
)
headers = st.dictionaries(names, values, max_size=3)
sizes = st.lists(st.integers(1, 40), max_size=8)
cuts = st.lists(st.integers(0, 1 << 16), max_size=12)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    """A stream in pieces."""
    places = sorted({place % len(stream) for place in at} - {0})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


def lines(fields: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in fields.items()]


# Requests.


@dataclass
class Message:
    """A request, and what of it an engine is to see."""

    method: str
    raw: bytes
    prompt: object = None
    fields: dict[str, str] = field(default_factory=dict)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(["length", "chunked", "GET", "HEAD"]))
    fields = draw(headers)
    if kind in ("GET", "HEAD"):
        return Message(kind, head(*lines(fields), method=kind, path="/health/live"))
    prompt = draw(st.text(max_size=30))
    body = json.dumps({"prompt": prompt}).encode()
    said = [*lines(fields), *draw(st.sampled_from([[], ["Expect: 100-continue"], ["Connection: keep-alive"]]))]
    if kind == "length":
        return Message("POST", post(body, *said), prompt, fields)
    trailers = draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"]))
    raw = head("Transfer-Encoding: chunked", *said) + chunked(body, draw(sizes), trailers)
    return Message("POST", raw, prompt, fields)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Requests, some of them more than once."""
    some = draw(st.lists(messages(), min_size=1, max_size=3))
    return draw(st.lists(st.sampled_from(some), min_size=1, max_size=6))


def test_requests_are_the_same_however_they_are_cut():
    with world() as there:

        async def example(sent: list[Message], at: list[int]) -> None:
            stream = b"".join(message.raw for message in sent) + LAST
            received = await converse(there.at, cut(stream, at))
            *answers, last = replies(received, *(message.method for message in sent), "GET")
            assert {answer.status for answer in (*answers, last)} == {200}
            posts = [
                (message, answer) for message, answer in zip(sent, answers, strict=True) if message.method == "POST"
            ]
            turns = there.seen()
            assert [turn.json["prompt"] for turn in turns] == [message.prompt for message, _ in posts]
            assert [json.loads(answer.body)["prompt"] for _, answer in posts] == [
                message.prompt for message, _ in posts
            ]
            for turn, (message, _) in zip(turns, posts, strict=True):
                assert {name: turn.headers[name] for name in turn.headers if name.startswith("x-h")} == message.fields
            await there.settled()

        @settings(max_examples=120)
        @given(conversations(), cuts)
        def check(sent: list[Message], at: list[int]) -> None:
            there.runner.run(example(sent, at))

        check()


# Answers.


@st.composite
def answers(draw: st.DrawFn, framings: tuple[str, ...] = ("length", "chunked", "close")) -> tuple[Reply, bytes, str]:
    """What the client is to get, the engine's bytes, and their framing."""
    reply = Reply(draw(st.sampled_from([200, 200, 201, 299, 204, 400, 404, 422])), draw(headers))
    if reply.status != 204:
        reply.body = draw(st.binary(min_size=1 if reply.status >= 400 else 0, max_size=200))
    framing = "length" if reply.status == 204 else draw(st.sampled_from(framings))
    kind = draw(st.sampled_from(["application/json", "text/event-stream", "text/event-stream; charset=utf-8"]))
    said = [f"Content-Type: {kind}", *lines(reply.headers)]
    body = reply.body
    if framing == "chunked":
        said.append(draw(st.sampled_from(["Transfer-Encoding: chunked", "transfer-encoding:Chunked"])))
        body = chunked(body, draw(sizes), draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"])))
    elif framing == "length" and reply.status != 204:
        said.append(f"Content-Length: {len(body)}")
    elif framing == "close":
        said.append("Connection: close")
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 X\r\nX-Hi: 1\r\n\r\n"]))
    start = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {reply.status} Some Reason", *said))
    return reply, interim + f"{start}\r\n".encode("latin-1") + body, framing


def test_answers_are_the_same_however_they_are_cut():
    with world() as there:

        async def example(expected: Reply, raw: bytes, framing: str, at: list[int], version: str) -> None:
            there.answer, there.closes = cut(raw, at), framing == "close"
            for _ in range(2):  # the second time on a kept connection, with a head that has been seen
                [got] = replies(await converse(there.at, [post(REQUEST, "Connection: close", version=version)]), "POST")
                assert (got.status, got.body) == (expected.status, expected.body)
                assert {name: got.headers[name] for name in got.headers if name.startswith("x-h")} == expected.headers
            await there.settled()

        @settings(max_examples=120)
        @given(answers(), cuts, st.sampled_from(["1.1", "1.1", "1.0"]))
        def check(answer: tuple[Reply, bytes, str], at: list[int], version: str) -> None:
            there.runner.run(example(*answer, at, version))

        check()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_answer_that_ends_early_never_looks_whole(framing: str):
    with world() as there:

        async def example(expected: Reply, raw: bytes, end: int, at: list[int]) -> None:
            there.answer, there.closes = cut(raw[: 1 + end % (len(raw) - 1)], at), True
            stream = await converse(there.at, [post(REQUEST, "Connection: close")])
            try:
                [got] = replies(stream, "POST")
            except (AssertionError, h11.RemoteProtocolError):
                assert stream.startswith(b"HTTP/1.1 %d " % expected.status)
            else:
                assert got.status == 502 or (expected.status == 204 and got.status == 204)
            await there.settled()

        @settings(max_examples=80)
        @given(answers((framing,)), st.integers(0, 1 << 16), cuts)
        def check(answer: tuple[Reply, bytes, str], end: int, at: list[int]) -> None:
            there.runner.run(example(answer[0], answer[1], end, at))

        check()


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    """A builtin engine's stream: its texts may look like anything, its own tokens included."""
    texts = st.text(max_size=10) | st.sampled_from(
        ['"token_ids":[', "\n\n", "event: error\n", "data: [DONE]\n\n", "\\"]
    )
    pieces = [
        {
            "created": 1,
            "choices": [{"delta": {"content": draw(texts)}, "token_ids": draw(st.lists(st.integers(0, 99)))}],
        }
        for _ in range(draw(st.integers(0, 5)))
    ]
    return [b"data: " + json.dumps(piece, separators=(",", ":")).encode() + b"\n\n" for piece in pieces]


def test_streams_that_could_be_resumed_are_the_same_however_they_are_cut():
    with world("builtin") as there:

        async def example(sent: list[bytes], chunks: list[int], at: list[int], version: str) -> None:
            body = b"".join(sent) + b"data: [DONE]\n\n"
            start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            there.answer, there.closes = cut(start + chunked(body, chunks), at), False
            request = post(b'{"prompt": "x", "stream": true}', "Connection: close", version=version)
            [got] = replies(await converse(there.at, [request]), "POST")
            assert got.body == body
            await there.settled()
            assert there.at.metrics.resumes.value == 0

        @settings(max_examples=80)
        @given(events(), sizes, cuts, st.sampled_from(["1.1", "1.0"]))
        def check(sent: list[bytes], chunks: list[int], at: list[int], version: str) -> None:
            there.runner.run(example(sent, chunks, at, version))

        check()


# Garbage.


@st.composite
def spoilt(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with something put in, left out, or put for something else; or bytes that never were valid."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(min_size=1, max_size=200))
    data = bytearray(draw(whole))
    bits = st.sampled_from(
        [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"chunked", b"-1", b"\xff", b"HTTP/1.1 "]
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(bits | st.binary(max_size=3))
    return bytes(data) or b"x"


def test_garbage_from_clients_is_answered_or_cut_and_leaves_nothing():
    with world(limits=SHORT) as there:

        async def example(data: bytes, at: list[int]) -> None:
            stream = await converse(there.at, cut(data, at))  # which ends only if the router ends it
            assert stream == b"" or stream.startswith(b"HTTP/1.1 ")
            assert b"internal_error" not in stream
            await there.settled()
            there.seen()

        @settings(max_examples=60)
        @given(spoilt(conversations().map(lambda sent: b"".join(message.raw for message in sent))), cuts)
        def check(data: bytes, at: list[int]) -> None:
            there.runner.run(example(data, at))

        check()
        assert there.runner.run(there.serves())


def test_garbage_from_engines_ends_a_request_and_leaves_nothing():
    with world() as there:

        async def example(data: bytes, at: list[int]) -> None:
            there.answer, there.closes = cut(data, at), True
            async with asyncio.timeout(LIMIT):
                stream = await converse(there.at, [post(REQUEST, "Connection: close")])
            assert stream.startswith(b"HTTP/1.1 ")
            assert b"internal_error" not in stream
            await there.settled()
            there.seen()

        @settings(max_examples=100)
        @given(spoilt(answers().map(lambda answer: answer[1])), cuts)
        def check(data: bytes, at: list[int]) -> None:
            there.runner.run(example(data, at))

        check()
        assert there.runner.run(there.serves())
