"""The boundary where bytes become requests: what is taken, what is refused, and that segmentation does not matter."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.router.client.reader import Budget, RequestReader
from pdctl.router.messages import Refusal, Request
from pdctl.router.settings import Limits

LIMITS = Limits(head_bytes=1024, body_bytes=4096)


def read(data: bytes, *, pieces: list[int] | None = None, limits: Limits = LIMITS) -> list[Request | Refusal]:
    reader = RequestReader(limits, Budget(limits.bodies_bytes))
    start = 0
    for length in pieces or []:
        reader.feed(data[start : start + length])
        start += length
    reader.feed(data[start:])
    return list(reader.ready)


def one(data: bytes) -> Request:
    [request] = read(data)
    assert isinstance(request, Request), request
    return request


def refusal(data: bytes) -> Refusal:
    last = read(data)[-1]
    assert isinstance(last, Refusal), last
    return last


def test_a_request_with_a_body():
    request = one(b"POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Mine: 1\r\n\r\nabc")
    assert request.method == b"POST"
    assert request.path == b"/v1/completions"
    assert request.target == b"/v1/completions?a=b"
    assert request.body == b"abc"
    assert request.forwarded == b"x-mine: 1\r\n"
    assert request.keep_alive


def test_requests_sent_at_once_come_in_order():
    items = read(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(5)))
    assert [item.path for item in items if isinstance(item, Request)] == [b"/0", b"/1", b"/2", b"/3", b"/4"]


def test_a_chunked_body_without_its_framing_extensions_and_trailers():
    request = one(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;quality=high\r\nabc\r\n2\r\nde\r\n0\r\nX-Pdctl-Token: stolen\r\nX-Trailer: 1\r\n\r\n"
    )
    assert request.body == b"abcde"
    assert request.forwarded == b""
    assert b"x-pdctl-token" not in request.headers


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", False),
    ],
)
def test_whether_the_connection_is_kept(version: bytes, header: bytes, kept: bool):
    assert one(b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n" % (version, header)).keep_alive is kept


def test_headers_of_the_connection_are_not_forwarded():
    request = one(
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: 5\r\n"
        b"TE: trailers\r\nProxy-Authorization: p\r\nAuthorization: Bearer mine\r\n"
        b"Accept-Encoding: gzip\r\nX-Public: 2\r\n\r\n"
    )
    assert request.forwarded == b"authorization: Bearer mine\r\nx-public: 2\r\n"


def test_an_absolute_target():
    request = one(b"GET http://elsewhere/health?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert request.path == b"/health"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\x00y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\nContent-Length: 1\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4097\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1001\r\n" + b"x" * 4097, 413),
        (b"GET /" + b"x" * 1024 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 1024 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
    ],
)
def test_what_is_refused(data: bytes, status: int):
    assert refusal(data).status == status


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ",
    ],
)
def test_what_never_ends_is_refused_before_it_fills_the_memory(beginning: bytes):
    reader = RequestReader(LIMITS, Budget(LIMITS.bodies_bytes))
    reader.feed(beginning)
    sent = 0
    while not reader.ready:
        reader.feed(b"x" * 100)
        sent += 100
        assert sent < 10 * LIMITS.head_bytes
    assert reader.ready[0] == Refusal(431, reader.ready[0].message)


def test_one_byte_chunks_up_to_the_limit_are_taken():
    body = b"1\r\nx\r\n" * LIMITS.body_bytes
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    [request] = read(head + body + b"0\r\n\r\n", pieces=[100] * 200)
    assert isinstance(request, Request)
    assert len(request.body) == LIMITS.body_bytes


def test_after_a_refusal_nothing_is_read():
    reader = RequestReader(LIMITS, Budget(LIMITS.bodies_bytes))
    reader.feed(b"nonsense\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(reader.ready) == 1


def test_a_smuggled_request_is_not_seen():
    items = read(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nPOST /register HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert [type(item) for item in items] == [Refusal]


tokens = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-", min_size=1, max_size=12).map(lambda name: "x-" + name)
values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
bodies = st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = json.dumps({"prompt": draw(bodies)}).encode()
    headers = [("Host", "x"), *draw(st.lists(st.tuples(tokens, values), max_size=4))]
    if draw(st.booleans()):
        headers.append(("Transfer-Encoding", "chunked"))
        size = draw(st.integers(1, 40))
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        headers.append(("Content-Length", str(len(body))))
        framed = body
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"POST /v1/completions?n={draw(st.integers(0, 9))} HTTP/1.1\r\n{lines}\r\n".encode() + framed


@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(1, 60), max_size=60))
def test_segments_do_not_matter(messages: list[bytes], pieces: list[int]):
    stream = b"".join(messages)
    limits = Limits()
    whole = read(stream, limits=limits)
    assert len(whole) == len(messages)
    assert all(isinstance(item, Request) for item in whole)
    assert read(stream, pieces=pieces, limits=limits) == whole


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_garbage_is_refused_or_waited_for_but_never_an_error(data: bytes, pieces: list[int]):
    items = read(data, pieces=pieces)
    assert all(isinstance(item, Request) for item in items[:-1])
