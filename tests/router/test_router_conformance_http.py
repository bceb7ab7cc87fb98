"""HTTP/1.1 as clients speak it: turns on one connection, framings, expectations, methods and targets."""

import asyncio
import json

import pytest
from router_mocks import ANSWER, LIMIT, Turn, engine, hold, running, split
from router_raw import COMPLETIONS, chunked, converse, head, let_read, post, prompt, replies, seen

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ALIVE = b'{"status":"alive"}'
CHUNKED = "Transfer-Encoding: chunked"
CONTINUE = "Expect: 100-continue"
BODY = json.dumps({"prompt": "first"}).encode()


# Turns.


async def echo(turn: Turn) -> None:
    await turn.answer({"prompt": turn.json["prompt"]})


async def test_pipelined_requests_of_all_kinds_are_answered_in_order():
    requests = [
        ("POST", post(prompt("one"))),
        ("GET", LIVE),
        ("POST", head(CHUNKED) + chunked(prompt("two"), (1, 2, 3))),
        ("HEAD", head(method="HEAD", path="/health/live")),
        ("OPTIONS", head(method="OPTIONS", path=COMPLETIONS)),
        ("POST", post(b"nonsense")),
        ("GET", head(method="GET", path="/nothing")),
        ("POST", post(prompt("three"), CONTINUE)),
        ("GET", LAST),
    ]
    async with engine(echo) as mixed, running() as at:
        await at.admit("mixed", mixed)
        stream = await converse(at, [b"".join(data for _, data in requests)])
        answers = replies(stream, *(method for method, _ in requests))
        assert [answer.status for answer in answers] == [200, 200, 200, 200, 204, 400, 404, 200, 200]
        assert [json.loads(answers[n].body)["prompt"] for n in (0, 2, 7)] == ["one", "two", "three"]
        assert [answers[n].body for n in (1, 3, 8)] == [ALIVE, b"", ALIVE]
        assert seen(mixed) == ["one", "two", "three"]
        await at.idle()


async def test_requests_behind_a_slow_one_wait_and_keep_their_order():
    async with engine(hold) as mixed, running() as at:
        await at.admit("mixed", mixed)
        sending = asyncio.create_task(converse(at, [post(prompt("slow")), post(prompt("next")) + LIVE, LAST]))
        turn = await mixed.turn()
        await let_read()
        assert mixed.turns.empty(), "the second request was sent before the first was answered"
        mixed.on_request = echo
        await echo(turn)
        turn.drop()  # whoever holds it: the next request comes on a new connection
        answers = replies(await sending, "POST", "POST", "GET", "GET")
        assert [answer.status for answer in answers] == [200, 200, 200, 200]
        assert [json.loads(answer.body) for answer in answers[:2]] == [{"prompt": "slow"}, {"prompt": "next"}]
        await at.idle()


async def test_a_request_behind_a_stream_is_answered_after_its_end():
    async def stream(turn: Turn) -> None:
        await turn.start_stream()
        for number in range(3):
            await turn.event({"n": number})
        await turn.end_stream()

    async with split(on_decode=stream) as pair:
        answers = replies(
            await converse(pair.at, [post(BODY) + LIVE + post(BODY) + LAST]), "POST", "GET", "POST", "GET"
        )
        streamed = b'data: {"n": 0}\n\ndata: {"n": 1}\n\ndata: {"n": 2}\n\n'
        assert [answer.body for answer in answers] == [streamed, ALIVE, streamed, ALIVE]
        await pair.at.idle()


@pytest.mark.parametrize(
    ("version", "connection", "said"),
    [
        ("1.1", None, None),
        ("1.1", "keep-alive", None),
        ("1.1", "Close", "close"),
        ("1.1", "x-mine, close", "close"),
        ("1.0", None, "close"),
        ("1.0", "close", "close"),
        ("1.0", "Keep-Alive", "keep-alive"),
    ],
)
@pytest.mark.parametrize("framing", ["length", "none", "chunked"])
async def test_whether_a_connection_is_kept(version: str, connection: str | None, said: str | None, framing: str):
    """Also where an engine's answer has no length: an HTTP/1.0 client then sees its end by the connection's."""

    async def answer(turn: Turn) -> None:
        if framing == "length":
            await turn.answer(ANSWER)
        elif framing == "chunked":
            await turn.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await turn.send(chunked(json.dumps(ANSWER).encode(), (5,)))
        else:
            await turn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(ANSWER).encode())
            turn.writer.close()

    async with engine(answer) as mixed, running() as at:
        await at.admit("mixed", mixed)
        headers = [f"Connection: {connection}"] if connection else []
        data = post(BODY, *headers, version=version)
        if version == "1.0" and framing != "length":
            said = "close"
        stream = await converse(at, [data if said == "close" else data + LAST])
        answers = replies(stream, *(["POST"] if said == "close" else ["POST", "GET"]))
        assert answers[0].headers.get("connection") == said
        assert json.loads(answers[0].body) == ANSWER
        assert (version == "1.1") or "transfer-encoding" not in answers[0].headers


async def test_nothing_is_answered_after_connection_close():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        for data in (post(BODY, "Connection: close") + post(prompt("late")), post(BODY, version="1.0") + LIVE):
            [answer] = replies(await converse(at, [data]), "POST")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert seen(mixed) == ["first", "first"]


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\n"])
async def test_blank_lines_before_a_request_mean_nothing(blank: bytes):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        answers = replies(await converse(at, [blank, post(BODY) + blank, LAST]), "POST", "GET")
        assert [answer.status for answer in answers] == [200, 200]


# Bodies.


@pytest.mark.parametrize(
    "body",
    [
        chunked(BODY, [1] * 100),
        chunked(BODY, (7, 1, 2)),
        b"%x;name=value\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
        b'%X;a;b="c d"\r\n%b\r\n0;last\r\n\r\n' % (len(BODY), BODY),
        b"000%x\r\n%b\r\n00000\r\n\r\n" % (len(BODY), BODY),
        chunked(BODY, (), trailers=b"X-Checksum: 1\r\nX-Other: 2\r\n"),
    ],
)
async def test_chunked_bodies_of_every_kind(body: bytes):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        for pieces in ([head(CHUNKED) + body + LAST], [head(CHUNKED), *(bytes([b]) for b in body), LAST]):
            assert [a.status for a in replies(await converse(at, pieces), "POST", "GET")] == [200, 200]
            turn = await mixed.turn()
            assert turn.json["prompt"] == "first"
            assert not {"transfer-encoding", "x-checksum", "trailer"} & set(turn.headers)


async def test_methods_without_a_body_may_have_one():
    bodies = [head("Content-Length: 5", method="GET", path="/health/live") + b"hello"]
    bodies.append(head(CHUNKED, method="GET", path="/health/live") + chunked(b"hello", (2,)))
    async with running() as at:
        answers = replies(await converse(at, [*bodies, LAST]), "GET", "GET", "GET")
        assert [answer.body for answer in answers] == [ALIVE] * 3


# Expectations.


@pytest.mark.parametrize("framing", [f"Content-Length: {len(BODY)}", CHUNKED])
async def test_a_client_that_waits_is_told_to_continue_once(framing: str):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        reader, writer = await at.connect()
        writer.write(head(framing, CONTINUE))
        async with asyncio.timeout(LIMIT):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            for byte in BODY if framing != CHUNKED else chunked(BODY, (3,)):
                writer.write(bytes([byte]))
                await let_read()
            writer.write(LAST)
            answers = replies(await reader.read(), "POST", "GET")
        assert [(answer.status, answer.interim) for answer in answers] == [(200, []), (200, [])]
        assert "expect" not in (await mixed.turn()).headers
        writer.close()


async def test_a_client_that_does_not_wait_gets_its_answer_all_the_same():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        whole = post(BODY, CONTINUE)
        for pieces in ([whole + LAST], [whole[:-5], whole[-5:] + LAST], [whole[:20], whole[20:], LAST]):
            answers = replies(await converse(at, pieces), "POST", "GET")
            assert [answer.status for answer in answers] == [200, 200]
            assert answers[0].interim in ([], [100])
            assert answers[1].interim == []
        assert seen(mixed) == ["first"] * 3


async def test_a_client_that_would_be_refused_is_not_told_to_continue():
    async with running() as at:
        for raw, status in ((head("Content-Length: 40000000", CONTINUE), 413), (head(CONTINUE, "X : y"), 400)):
            [answer] = replies(await converse(at, [raw]), "POST")
            assert (answer.status, answer.interim) == (status, [])


async def test_http_1_0_knows_no_continue():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        raw = post(BODY, CONTINUE, version="1.0")
        [answer] = replies(await converse(at, [raw[: -len(BODY)], BODY]), "POST")
        assert (answer.status, answer.interim) == (200, [])


# Methods and targets.

GETS = [
    "/v1/models", "/v1/models/m", "/health", "/health/live", "/health_generate", "/metrics", "/registered",
    "/registered_number", "/instances",
]  # fmt: skip
POSTS = ["/v1/chat/completions", COMPLETIONS, "/register", "/v1/abort_requests"]


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_a_body(path: str):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        requests = [head(method=method, path=path) for method in ("GET", "HEAD", "GET")]
        answers = replies(await converse(at, [*requests, LAST]), "GET", "HEAD", "GET", "GET")
        got, headed, again, _ = answers
        assert (got.status, headed.status, again.status) == (200, 200, 200)
        assert got.body
        assert headed.body == b""
        assert set(headed.headers) == set(got.headers)
        assert int(got.headers["content-length"]) == len(got.body)
        if path not in ("/metrics", "/instances"):  # these count what was asked
            assert headed.headers == got.headers


@pytest.mark.parametrize("path", [*GETS, *POSTS, "/instances/127.0.0.1:1", "/instances/127.0.0.1:1/drain"])
async def test_options_of_every_path(path: str):
    async with running() as at:
        methods = ("OPTIONS", "PATCH", "TRACE", "GET")
        stream = await converse(at, [*(head(method=method, path=path) for method in methods[:3]), LAST])
        options, patch, trace, _ = replies(stream, *methods)
        allowed = options.headers["allow"].split(", ")
        assert (options.status, options.body) == (204, b"")
        assert allowed[-1] == "OPTIONS"
        assert ("GET" in allowed) == ("HEAD" in allowed) == (path in GETS)
        assert (patch.status, trace.status) == (405, 405)
        assert patch.headers["allow"] == trace.headers["allow"] == options.headers["allow"]


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [
        (COMPLETIONS, COMPLETIONS),
        (f"{COMPLETIONS}?a=b&c=/%20?", f"{COMPLETIONS}?a=b&c=/%20?"),
        (f"http://x{COMPLETIONS}", COMPLETIONS),
        (f"http://x:80{COMPLETIONS}?a=b", f"{COMPLETIONS}?a=b"),
        (f"HTTPS://user:word@y{COMPLETIONS}?#", COMPLETIONS),
    ],
)
async def test_targets_of_every_form_reach_the_engine_as_path_and_query(target: str, forwarded: str):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        [answer] = replies(await converse(at, [post(BODY, "Connection: close", path=target)]), "POST")
        assert answer.status == 200
        turn = await mixed.turn()
        assert (turn.target, turn.headers["host"]) == (forwarded, mixed.key)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/completions", "/v1/completions/", "/v1/completions#a", "/v1/../v1/completions", "/V1/completions",
        "http://x", "x:80",
    ],
)  # fmt: skip
async def test_paths_are_not_guessed(path: str):
    method = "CONNECT" if path == "x:80" else "POST"
    async with running() as at:
        data = head("Connection: close", "Content-Length: 0", method=method, path=path)
        [answer] = replies(await converse(at, [data]), "GET")
        assert answer.status == 404


async def test_a_client_that_offers_http_2_is_answered_in_http_1():
    """Java's and curl's clients offer it with the first request, which may have a body."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        whole = post(BODY, *offer)
        for pieces in ([whole], [whole[:-5], whole[-5:]], [whole, LIVE], [head(CHUNKED, *offer) + chunked(BODY, (3,))]):
            [answer] = replies(await converse(at, pieces), "POST")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            turn = await mixed.turn()
            assert turn.json["prompt"] == "first"
            assert not {"upgrade", "http2-settings", "connection"} & set(turn.headers)


# Names and values of headers.


async def test_names_mean_the_same_in_any_case_and_values_pass_as_they_are():
    raw = (
        b"POST /v1/completions HTTP/1.1\r\nhOST: x\r\ncOnTeNt-LeNgTh: %d\r\nX-REQUEST-ID:mine  \r\n"
        b"cONNECTION: CLOSE\r\nX-Latin: \xe9\xff\r\nX-Tab: a\tb\r\nX-Empty:\r\nX-!#$%%&'*+.^_`|~: odd\r\n\r\n%b"
        % (len(BODY), BODY)
    )
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        [answer] = replies(await converse(at, [raw]), "POST")
        assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")
        got = (await mixed.turn()).headers
        assert got["x-request-id"] == "mine"
        assert (got["x-latin"], got["x-tab"], got["x-empty"]) == ("\xe9\xff", "a\tb", "")
        assert got["x-!#$%&'*+.^_`|~"] == "odd"


async def test_large_but_allowed_headers_pass():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        lines = [f"X-{n}: {'v' * 100}" for n in range(250)]
        [answer] = replies(await converse(at, [post(BODY, *lines, "Connection: close")]), "POST")
        assert answer.status == 200
        got = (await mixed.turn()).headers
        assert [got[f"x-{n}"] for n in range(250)] == ["v" * 100] * 250
