"""The boundary where an engine's bytes become an answer: wherever reads cut them, and whatever else an engine sends."""

from dataclasses import dataclass

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from router_relay_mocks import Ask, Conversation, cut

from pdctl.router.settings import Limits

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


BODY = b'data: {"n": 1}\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n'  # nothing in a body is framing
ANSWERS = {
    "length": OK + b"Content-Length: %d\r\nX-Engine: 1\r\n\r\n%b" % (len(BODY), BODY),
    "chunks": CHUNKED + b"7\r\n%b\r\n%X\r\n%b\r\n0\r\n\r\n" % (BODY[:7], len(BODY) - 7, BODY[7:]),
    "extensions and trailers": CHUNKED
    + b'5;a=b;c="d"\r\n%b\r\n%x;e\r\n%b\r\n000;f\r\nX-Trailer: 1\r\nY: 2\r\n\r\n' % (BODY[:5], len(BODY) - 5, BODY[5:]),
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 0\r\n\r\n"
    + OK + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    "interim and chunks": b"HTTP/1.1 100 Continue\r\nContent-Type: text/event-stream\r\n\r\n"
    + CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_cut_anywhere(answer: bytes):
    for first in range(len(answer) + 1):
        talk = Conversation()
        call = talk.hear(*cut(answer, first))
        assert (call.failure, call.ended, call.body) == (None, True, BODY), f"cut at {first}"
        assert call.head is not None
        assert not call.head.event_stream
        assert talk.kept


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_byte_by_byte_on_a_connection_that_is_used_again(answer: bytes):
    talk = Conversation()
    for _ in range(3):
        call = talk.hear(*cut(answer, *range(len(answer))))
        assert (call.failure, call.ended, call.body) == (None, True, BODY)
        call = talk.next_call()
    assert talk.transport.written == b"asked" * 4


async def test_a_chunked_body_is_passed_on_as_it_came_read_by_read():
    talk = Conversation()
    pieces = [CHUNKED, b"3\r\nab", b"c\r\n", b"0\r\nX: 1\r\n", b"\r\n"]
    call = talk.hear(*pieces)
    assert call.framed == b"".join(pieces[1:])
    assert call.reads == len(pieces)


async def test_a_body_without_length_ends_with_its_connection():
    talk = Conversation()
    call = talk.hear(OK + b"\r\nab", b"cd")
    assert not call.ended
    talk.connection.connection_lost(None)
    assert (call.ended, call.body, talk.kept) == (True, b"abcd", False)


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_that_breaks_off_anywhere_is_never_whole(answer: bytes, error: Exception | None):
    for end in range(1, len(answer)):
        talk = Conversation()
        call = talk.hear(answer[:end])
        talk.connection.connection_lost(error)
        assert not call.ended
        assert call.failure is not None
        assert call.failure.kind == "dropped"


# What an engine sends without having been asked.

EXTRA = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"x",
    b"0\r\n\r\n",
    b"\x00",
    OK + b"Content-Length: 4\r\n\r\nevil",
    b"HTTP/1.1 2",
]


@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("name", ["length", "chunks", "extensions and trailers", "interim"])
async def test_bytes_after_the_end_never_reach_a_client(name: str, extra: bytes):
    answer = ANSWERS[name]
    whole = Conversation().hear(answer).framed
    data = answer + extra
    for first in range(len(data) + 1):
        talk = Conversation()
        call = talk.hear(*cut(data, first))
        assert whole.startswith(call.framed), f"cut at {first}"
        if call.ended:
            assert call.framed == whole
            if first <= len(answer):
                assert not talk.kept, f"cut at {first}"
        else:
            assert call.failure is not None
            assert call.failure.kind == "invalid"


async def test_bytes_on_an_idle_connection_close_it():
    talk = Conversation()
    talk.hear(ANSWERS["length"])
    assert talk.kept
    talk.connection.data_received(b"x")
    assert talk.transport.closed
    call = Ask(talk.pool)
    talk.pool.send(call)
    assert talk.transport.written == b"asked", "the next call goes elsewhere"
    call.cancel()


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("framing", [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n", b""])
async def test_an_answer_that_has_no_body_by_its_status(status: int, framing: bytes):
    talk = Conversation()
    head = b"HTTP/1.1 %d X\r\n%b\r\n" % (status, framing)
    call = talk.hear(head)
    assert (call.ended, call.framed, call.failure) == (True, b"", None)
    assert talk.kept
    for more in (head + b"evil", head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")):
        talk = Conversation()
        call = talk.hear(more)
        assert (call.ended, call.framed) == (True, b"")
        assert not talk.kept


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00",
        b"HTTQ",
        b"SSH-2.0-x\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"-1\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"1\r\nab\r\n",
        CHUNKED + b"\r\n",
    ],
)
async def test_what_is_no_answer(nonsense: bytes):
    for pieces in ([nonsense], cut(nonsense, *range(len(nonsense)))):
        talk = Conversation()
        call = talk.hear(*pieces)
        assert call.failure is not None
        assert call.failure.kind == "invalid"
        assert talk.transport.closed


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_head_without_end_is_not_collected_for_ever(interim: bytes):
    talk = Conversation(Limits(head_bytes=1000))
    call = talk.hear(interim + OK, *[b"X: %b\r\n" % (b"x" * 90)] * 20)
    assert call.failure is not None
    assert "1000 bytes" in call.failure.reason
    assert talk.transport.closed


async def test_a_connection_that_its_engine_will_close_is_not_kept():
    for head in (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"):
        talk = Conversation()
        assert talk.hear(head + b"Content-Length: 2\r\n\r\n{}").ended
        assert not talk.kept


async def test_only_an_uncompressed_stream_of_events_is_one():
    for lines, expected in (
        (b"Content-Type: text/event-stream; charset=utf-8\r\n", True),
        (b"Content-Type: application/json\r\n", False),
        (b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n", False),
        (b"Content-Encoding: gzip\r\nContent-Type: text/event-stream\r\n", False),
    ):
        head = Conversation().hear(OK + lines + b"\r\n").head
        assert head is not None
        assert head.event_stream is expected, lines


# Any bytes at all, against a parser that is asked after each byte.


@dataclass
class Reference:
    """What the first whole answer in some bytes is: where its body begins and ends."""

    data: bytes
    body: bytes = b""
    begin: int = -1
    end: int = -1  # -1: it does not end, or is invalid before

    def __post_init__(self) -> None:
        self._at = 0
        self._final = False
        parser = self._parser = httptools.HttpResponseParser(self)
        try:
            for at in range(len(self.data)):
                self._at = at
                parser.feed_data(self.data[at : at + 1])
                if self.end >= 0:
                    return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return

    def on_headers_complete(self) -> None:
        self._final = self._parser.get_status_code() >= 200
        if self._final:
            self.begin = self._at + 1

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        if self._final:
            self.end = self._at + 1


PARTS = [
    OK, CHUNKED, OK + b"Content-Length: 3\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 500 X\r\n", b"\r\n",
    b"\n", b"\r", b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"X: y\r\n",
    b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nT: 1\r\n\r\n", b"3;e\r\nabc\r\n", b"1\r\n", b" ", b"\x00", b":",
    b"\r\n\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=8).map(b"".join), st.lists(st.integers(0, 200), max_size=6))
@example(CHUNKED + b"0\r\n\r\n\r\n\r\n", [])
@example(OK + b"Content-Length: 3\r\n\r\nabc\r\n", [])
@example(b"HTTP/1.1 100 X\r\n\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", [])
async def test_what_reaches_a_client_is_what_the_answer_says(data: bytes, places: list[int]):
    truth = Reference(data)
    call = Conversation().hear(*cut(data, *(place for place in places if place < len(data))))
    if call.ended:
        assert truth.end >= 0, "an answer that is not whole passes for one"
        if call.head is not None and call.head.status not in (204, 304):
            assert call.framed == data[truth.begin : truth.end]
            assert call.body == truth.body
    elif call.head is not None:
        end = truth.end if truth.end >= 0 else len(data)
        assert data[truth.begin : end].startswith(call.framed)
    head = data[: truth.begin]
    if truth.end == len(data) and head.startswith(b"HTTP") and b"\r\n\r\n\r" not in head and b"\r\n\r\n\n" not in head:
        assert call.ended, f"a good answer is refused: {call.failure}"
