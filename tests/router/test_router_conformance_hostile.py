"""Hostile HTTP: whatever is ambiguous or malformed is refused, its connection closed, and no more read."""

import pytest
from router_mocks import engine, quick, running
from router_raw import Reply, chunked, converse, head, post, prompt, replies, seen

FIRST = prompt("first")
SIZE = str(len(FIRST))
MARKER = post(prompt("smuggled"), "Connection: close")
TE = "Transfer-Encoding: chunked"


async def conversation(data: bytes, methods: tuple[str, ...]) -> tuple[list[Reply], list[str]]:
    """What bytes with a marker behind them are answered, and what an engine sees: the same however they are cut."""
    outcomes = []
    async with engine() as mixed, running(limits=quick(body_timeout=0.3)) as at:
        await at.admit("mixed", mixed)
        stream = data + MARKER
        middle = len(data) // 2
        for pieces in (
            [stream],
            [stream[:middle], stream[middle:]],
            [data, MARKER],
            [data[:-1], stream[len(data) - 1 :]],
        ):
            answers = replies(await converse(at, pieces), *methods)
            await at.idle()
            counted = sum(at.metrics.requests.values())
            at.metrics.requests.clear()
            prompts = seen(mixed)
            assert counted >= len(prompts)
            outcomes.append(([(a.status, a.error if a.status >= 400 else "") for a in answers], prompts))
    assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
    return answers, prompts


async def refused(data: bytes, status: int) -> None:
    [answer], prompts = await conversation(data, ("POST",))
    assert answer.status == status, answer
    assert answer.headers["connection"] == "close"
    assert answer.error
    assert prompts == []


async def taken(data: bytes) -> None:
    answers, prompts = await conversation(data, ("POST", "POST"))
    assert [answer.status for answer in answers] == [200, 200]
    assert prompts == ["first", "smuggled"]


@pytest.mark.parametrize(
    "value",
    [
        f"+{SIZE}", f"-{SIZE}", "0x10", "1 6", f"{SIZE}.0", "1e1", f"{SIZE}a", f'"{SIZE}"', f"{SIZE};", f"{SIZE},",
        f"{SIZE}, {SIZE}", "", " ", f"\x0b{SIZE}", f"{SIZE}\0", "\u00b2", "18446744073709551632", "9" * 100,
    ],
)  # fmt: skip
async def test_a_length_that_is_no_number(value: str):
    await refused(head(f"Content-Length: {value}") + FIRST, 400)


@pytest.mark.parametrize("other", [SIZE, "0", str(len(FIRST) + 1)])
async def test_two_lengths(other: str):
    await refused(head(f"Content-Length: {SIZE}", f"Content-Length: {other}") + FIRST, 400)


@pytest.mark.parametrize("value", [f"  {SIZE}", f"\t{SIZE}", f"{SIZE} \t", f"000{SIZE}"])
async def test_whitespace_and_zeros_around_a_length_mean_nothing(value: str):
    await taken(head(f"Content-Length:{value}") + FIRST)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("chunked, chunked", 400), ("chunked, identity", 400), ("chunked,", 400), ("", 400), (" ", 400),
        ("\x0bchunked", 400), ("chunked\x0b", 400), ("chunked\0", 400), ("\r\n chunked", 400), ("x\r\n chunked", 400),
        ("xchunked", 501), ("chunkedx", 501), ("identity", 501), ("identity, chunked", 501), ("gzip", 501),
        ("gzip, chunked", 501), (",chunked", 501), ("chunked;q=1", 501), ('"chunked"', 501), ("chun ked", 501),
        ("\xa0chunked", 501), ("cow", 501),
    ],
)  # fmt: skip
async def test_a_transfer_encoding_that_is_not_chunked(value: str, status: int):
    await refused(head(f"Transfer-Encoding: {value}") + chunked(FIRST, ()), status)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((TE, TE), 400),
        ((TE, "Transfer-Encoding: identity"), 400),
        (("Transfer-Encoding: identity", TE), 501),
        (("Transfer-Encoding: cow", TE), 501),
        ((TE, "Content-Length: 5"), 400),
        (("Content-Length: 5", TE), 400),
        (("Content-Length: 5", "Transfer-Encoding: identity"), 400),
        (("Transfer-Encoding : chunked",), 400),
        ((f"Content-Length : {SIZE}",), 400),
        (("Transfer-Encoding\0: chunked",), 400),
        (("X: y\nTransfer-Encoding: chunked",), 400),
        (("X: y\rTransfer-Encoding: chunked",), 400),
        ((f"X: y\nContent-Length: {SIZE}",), 400),
    ],
)
async def test_more_than_one_framing(headers: tuple[str, ...], status: int):
    await refused(head(*headers) + chunked(FIRST, ()), status)


async def test_chunks_in_http_1_0():
    await refused(head(TE, version="1.0") + chunked(FIRST, ()), 400)


@pytest.mark.parametrize(
    "value", ["Transfer-Encoding:chunked", "transfer-encoding: CHUNKED", "TRANSFER-ENCODING:\tchunked  "]
)
async def test_the_one_transfer_encoding_in_every_spelling(value: str):
    await taken(head(value) + chunked(FIRST, (1, 2, 3)))


@pytest.mark.parametrize(
    "body",
    [
        b"-5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5.0\r\nhello\r\n0\r\n\r\n", b"5g\r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n", b"5\t\r\nhello\r\n0\r\n\r\n", b"5 ;a\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n", b"10000000000000000\r\nhello\r\n0\r\n\r\n", b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n0\r\n\r\n", b"5;a\nhello\r\n0\r\n\r\n", b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;\0\r\nhello\r\n0\r\n\r\n", b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n', b"5;\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello\r\n\r\n0\r\n\r\n", b"5\r\nhello\r\n-0\r\n\r\n", b"5\r\nhello\r\n0 \r\n\r\n",
        b"5\r\nhello\r\n0\n\n", b"5\r\nhello\r\n0\r\n\n", b"5\r\nhello\r\n0\n\r\n",
        b"5\r\nhello\r\n0\r\nX y\r\n\r\n", b"5\r\nhello\r\n0\r\n X: y\r\n\r\n", b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        b"5\r\nhello\r\n0\r\nX: y\n\r\n", b"5\r\nhello\r\n0\r\nX: y\r\n z\r\n\r\n",
        b"5\r\nhello\r\n0\r\nContent-Length: 7\r\n\r\n",
    ],
)  # fmt: skip
async def test_chunks_that_are_none(body: bytes):
    await refused(head(TE) + body, 400)


async def test_a_chunk_larger_than_any_body_takes_what_follows_with_it():
    await refused(head(TE) + b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", 408)


@pytest.mark.parametrize(
    "lines",
    [
        b"NoColon\r\n", b" X: y\r\n", b": y\r\n", b"X Y: z\r\n", b"X : y\r\n", b"X\t: y\r\n", b"X\0: y\r\n",
        b'"X": y\r\n', b"X@: y\r\n", b"X(: y\r\n", b"[: y\r\n", b"\x80: y\r\n", b"X: \0\r\n", b"X: \x01\r\n",
        b"X: \x0b\r\n", b"X: \x1b\r\n", b"X: \x7f\r\n", b"X: a\r\n b\r\n", b"X: a\r\n\tb\r\n", b"X: a\nY: b\r\n",
        b"X: a\rY: b\r\n", b"X: a\n\r\n", b"X: a\r\r\n", b"\r: y\r\n", b"Host: y\r\n", b"Host: x\r\n",
        b"Connection: close, \0\r\n", b"X: a\n\n",
    ],
)  # fmt: skip
async def test_headers_that_are_none(lines: bytes):
    whole = head(f"Content-Length: {SIZE}")
    await refused(whole[:-2] + lines + b"\r\n" + FIRST, 400)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /v1/completions HTTP/1.1 ", 400), (b"POST /v1/completions\tHTTP/1.1", 400),
        (b" POST /v1/completions HTTP/1.1", 400), (b"POST\x0b/v1/completions HTTP/1.1", 400),
        (b"post /v1/completions HTTP/1.1", 400), (b"FOO /v1/completions HTTP/1.1", 400),
        (b"POST /v1/completions http/1.1", 400), (b"POST /v1/completions HTTP/1.10", 400),
        (b"POST /v1/completions HTTP/11", 400), (b"POST /v1/completions HTTP/1,1", 400),
        (b"POST /v1/completions HTTP 1.1", 400), (b"POST /v1/completions XTTP/1.1", 400),
        (b"POST v1/completions HTTP/1.1", 400), (b"POST HTTP/1.1", 400), (b"POST /v1\0 HTTP/1.1", 400),
        (b"POST /v1\x80 HTTP/1.1", 400), (b"POST /v1\r HTTP/1.1", 400), (b"POST /v1\n HTTP/1.1", 400),
        (b"POST /v1/completions HTTP/3.0", 400), (b"POST /v1/completions HTTP/1.2", 400),
        (b"PRI * HTTP/2.0", 400), (b"POST /v1/completions HTTP/2.0", 505), (b"POST /v1/completions HTTP/0.9", 505),
    ],
)  # fmt: skip
async def test_request_lines_that_are_none(line: bytes, status: int):
    await refused(line + b"\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(FIRST) + FIRST, status)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(*(f"X-{n}: y" for n in range(4000))), 431),
        (head(*["a:"] * 10_000), 431),
        (head("X: " + "y" * 40_000), 431),
        (head("y" * 40_000 + ": x"), 431),
        (head(path="/" + "y" * 40_000), 431),
        (head(path="/v1/completions?" + "y" * 40_000), 431),
        (head("Content-Length: 40000000"), 413),
        (head("Content-Length: 18446744073709551615"), 413),
        (head("Expect: miracles", "Content-Length: 0"), 417),
    ],
)
async def test_what_is_too_large_or_asks_too_much(data: bytes, status: int):
    await refused(data, status)


async def test_a_body_that_grows_too_large():
    async with engine() as mixed, running(limits=quick(body_bytes=100_000)) as at:
        await at.admit("mixed", mixed)
        for size in (1, 1000, 200_000):
            body = chunked(b"x" * 100_001, [size] * (100_001 // size))
            [answer] = replies(await converse(at, [head(TE) + body + MARKER]), "POST")
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            assert seen(mixed) == []
        [first, last] = replies(await converse(at, [post(prompt("x" * 90_000)) + MARKER]), "POST", "POST")
        assert (first.status, last.status) == (200, 200)


async def test_a_trailer_is_no_header_and_an_extension_no_body():
    extended = b'%x;a;b=c;d="e f"\r\n%b\r\n000\r\nX-Request-Id: stolen\r\nAuthorization: b\r\n\r\n' % (
        len(FIRST),
        FIRST,
    )
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        first, _ = replies(await converse(at, [head(TE) + extended + MARKER]), "POST", "POST")
        assert first.headers["x-request-id"] != "stolen"
        turn = await mixed.turn()
        assert turn.json["prompt"] == "first"
        assert not {"authorization", "transfer-encoding"} & set(turn.headers)
        assert turn.headers["x-request-id"] == first.headers["x-request-id"]


async def test_a_header_that_comes_twice_is_one_list_or_stays_two():
    raw = post(FIRST, "Connection: close", "X-Request-Id: a", "X-Mine: 1", "x-request-id: b", "x-mine: 2")
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        [answer] = replies(await converse(at, [raw]), "POST")
        assert answer.headers["x-request-id"] == "a,b"
        turn = await mixed.turn()
        assert turn.headers["x-request-id"] == turn.json["request_id"] == "a,b"
        assert turn.headers["x-mine"] == "2"  # the last one: the mock keeps no more


REPEATED = head(f"Content-Length: {SIZE}", "X-Header-A: chunked-12345", "Authorization: Bearer a")


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Bearer a", b"Bearer b", 200),
        (b"X-Header-A: chunked-12345", b"X-Header-B: chunked-12345", 200),
        (b"POST /v1/completions", b"POST /v1/completionz", 404),
        (b"X-Header-A: chunked-12345", b"X-Header-A: chunked-1234\0", 400),
        (b"X-Header-A: chunked-12345", b"X-Header-A : chunked12345", 400),
        (b"X-Header-A: chunked-12345", b"Host:  another-server-456", 400),
        (b"X-Header-A: chunked-12345", b"Content-Length: " + SIZE.encode().rjust(9), 400),
        (b"X-Header-A: chunked-12345", b"Transfer-Encoding:chunked", 400),
        (b"Content-Length: " + SIZE.encode(), b"Content-Length: +1", 400),
        (b"Content-Length: " + SIZE.encode(), b"Content-Length: 1x", 400),
        (b"HTTP/1.1", b"HTTP/2.0", 505),
    ],
)
async def test_a_request_that_is_almost_the_one_before_it_is_read_anew(old: bytes, new: bytes, status: int):
    assert len(old) == len(new)
    assert old in REPEATED
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        pieces = [REPEATED + FIRST, REPEATED + FIRST, REPEATED.replace(old, new) + FIRST]
        if status in (200, 404):
            pieces.append(MARKER)
        answers = replies(await converse(at, pieces), *["POST"] * len(pieces))
        assert [answer.status for answer in answers] == [200, 200, status, 200][: len(pieces)]
        turns = [await mixed.turn() for _ in range(mixed.turns.qsize())]
        assert len(turns) == (2 if status >= 400 else 3) + (status == 404) + (status == 200)
        if status == 200:
            name, _, value = next(line for line in REPEATED.replace(old, new).split(b"\r\n") if new in line).partition(
                b": "
            )
            assert turns[2].headers[name.decode().lower()] == value.decode()
